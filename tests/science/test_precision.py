"""Precision is part of what a training is: of its recipe, its keys and its record; networks carry it along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.foundation import fingerprint
from bench.science import precision
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.identity import identities
from bench.science.precision import resolved
from bench.science.training import Recipe, train
from bench.storage.older import bring_settings_up_to_date
from tests.plans import prepare

PLAIN: dict[str, Any] = {"epochs": 2, "batch": 8, "drops": (), "augment": "none", "flip": False}


@pytest.mark.parametrize(
    ("capability", "avx512", "amx", "limit", "expected"),
    [
        ("AVX512", True, False, None, "bfloat16"),
        ("AVX512", False, True, None, "bfloat16"),
        ("AVX512", False, False, None, "float32"),
        ("AVX2", True, True, None, "float32"),
        ("AVX512", True, True, "AVX2", "float32"),
        ("AVX512", True, True, "avx512_core_bf16", "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_the_processor_has_units_for_it_and_may_use_them(
    monkeypatch: pytest.MonkeyPatch, capability: str, avx512: bool, amx: bool, limit: str | None, expected: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert resolved("auto", "cpu") == expected
    assert [resolved(asked, "cpu") for asked in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_a_network_gives_float32_and_its_bfloat16_is_that_of_autocast(make_model: Callable[..., Classifier]) -> None:
    model, pixels = make_model("convnet").eval(), torch.rand(4, 3, 16, 16)
    exact = model(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(pixels)
    model.precision = "bfloat16"
    rounded = model(pixels)
    assert rounded.dtype == model.features(pixels).dtype == model.stages(pixels)[0].dtype == torch.float32
    assert torch.equal(rounded, expected.float())
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_training_in_bfloat16_repeats_bit_by_bit_and_differs_from_float32(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images], weights_of: Callable[[nn.Module], Tensor]
) -> None:
    exact, once, again = (
        train(make_model("convnet"), make_images(), Recipe(**PLAIN, precision=asked), seed=0).model
        for asked in ("float32", "bfloat16", "bfloat16")
    )
    assert torch.equal(weights_of(once), weights_of(again))
    assert not torch.equal(weights_of(once), weights_of(exact))
    assert {weight.dtype for weight in once.parameters()} == {torch.float32}


def test_a_study_says_which_precision_it_computes_in_and_keys_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {}
    for has_units in (True, False):
        monkeypatch.setattr(precision, "_has_units", lambda kind, has_units=has_units: has_units)
        study = prepare("quick").study
        asked = study.protocol.train.model_copy(update={"precision": "auto"})
        study = replace(study, protocol=replace(study.protocol, train=asked, surrogate=asked))
        told = study.settings()
        assert told["train"]["precision"] == told["surrogate"]["precision"] == ("bfloat16" if has_units else "float32")
        keys[has_units] = identities(study).surrogate_keys()
    assert keys[True] != keys[False]


@pytest.mark.parametrize(("device", "expected"), [("cpu", "float32"), ("cuda", "bfloat16")])
def test_older_records_were_made_in_the_only_precision_of_their_device(device: str, expected: str) -> None:
    settings: dict[str, Any] = {"protocol": {"train": {"epochs": 1}, "surrogate": {"epochs": 1}}}
    assert bring_settings_up_to_date(settings, {"device": device})
    assert settings["protocol"]["train"]["precision"] == settings["protocol"]["surrogate"]["precision"] == expected
    assert not bring_settings_up_to_date(settings, {"device": device})


def test_the_fingerprint_of_arithmetic_covers_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint._arithmetic.cache_clear()
    both = fingerprint._arithmetic(1)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: torch.enable_grad())
    fingerprint._arithmetic.cache_clear()
    assert fingerprint._arithmetic(1) != both
    fingerprint._arithmetic.cache_clear()
