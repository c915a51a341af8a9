"""Random streams: named, stable, and independent of each other."""

from __future__ import annotations

import hashlib

import pytest
import torch

from bench.science.seeds import derive, numpy_stream, torch_stream


def test_derive_is_the_low_63_bits_of_a_sha256_of_seed_and_names() -> None:
    digest = hashlib.sha256(b'[7,"order",0,3]').digest()
    value = sum(byte << (8 * i) for i, byte in enumerate(digest[:8])) >> 1
    assert derive(7, "order", 0, 3) == value
    assert 0 <= value < 2**63


@pytest.mark.parametrize(
    "other", [(1, "a", 2), (0, "b", 2), (0, "a", 3), (0, "a"), (0, "a", "2"), (0, "a2"), (0, 2, "a"), (0, "a", 2, 0)]
)
def test_every_part_of_a_name_counts(other: tuple[int, str, int]) -> None:
    assert derive(0, "a", 2) != derive(*other)


def test_streams_of_one_name_repeat_and_of_two_names_differ() -> None:
    first, again, other = (torch.rand(8, generator=torch_stream("cpu", 0, name)) for name in ("x", "x", "y"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (numpy_stream(0, "x").random(8) == numpy_stream(0, "x").random(8)).all()
    assert (numpy_stream(0, "x").random(8) != numpy_stream(1, "x").random(8)).all()


def test_streams_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=torch_stream("cpu", 0, "x"))
    assert torch.equal(before, torch.get_rng_state())
