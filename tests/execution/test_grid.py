"""The poison image: layout, scale of the difference, and what it refuses."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.execution.poison_image import GUTTER, poison_grid
from bench.storage.poison_images import image_path, read

STEP = 64 + GUTTER


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)))


def images(n: int, side: int = 32) -> torch.Tensor:
    return torch.randint(16, 240, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_layout_is_base_poison_difference() -> None:
    base = images(3)
    poison = base.clone()
    poison[0, 0, 0, 0] += 8
    poison[1, 2, 31, 31] -= 4
    sheet = pixels(poison_grid(base, poison, rows=2))
    assert sheet.shape == (GUTTER + 2 * STEP, GUTTER + 3 * STEP, 3)
    assert (sheet[:GUTTER] == 255).all() and (sheet[:, GUTTER + 64 : 2 * GUTTER + 64] == 255).all()
    row, column = GUTTER + STEP, GUTTER + STEP  # second poison, second column
    shown = sheet[row : row + 64 : 2, column : column + 64 : 2]
    assert (shown == poison[1].permute(1, 2, 0).numpy()).all()
    assert (sheet[GUTTER : GUTTER + 64 : 2, GUTTER : GUTTER + 64 : 2] == base[0].permute(1, 2, 0).numpy()).all()


def test_difference_spans_the_grey_range() -> None:
    base = images(2)
    poison = base.clone()
    poison[0, 0, 0, 0] += 8
    poison[0, 1, 5, 5] -= 8
    poison[1, 2, 31, 31] -= 4
    difference = pixels(poison_grid(base, poison))[:, GUTTER + 2 * STEP :]
    top, bottom = difference[GUTTER : GUTTER + 64], difference[GUTTER + STEP : GUTTER + STEP + 64]
    assert top[0, 0].tolist() == [254, 127, 127] and top[10, 10].tolist() == [127, 0, 127]
    assert bottom[63, 63].tolist() == [127, 127, 64]  # half of the largest change, rounded half to even


def test_unchanged_poisons_are_flat_grey_and_bytes_repeat() -> None:
    base = images(1, side=96)
    png = poison_grid(base, base)
    assert png == poison_grid(base, base)
    assert (pixels(png)[GUTTER:-GUTTER, -GUTTER - 96 : -GUTTER] == 127).all()


@pytest.mark.parametrize("base, poison", [
    (images(0), images(0)), (images(2), images(1)), (images(1).float(), images(1)), (images(1)[0],) * 2,
])  # fmt: skip
def test_refuses_what_is_no_batch_of_images(base: Tensor, poison: Tensor) -> None:
    with pytest.raises(ValueError):
        poison_grid(base, poison)


@pytest.mark.parametrize("fault", ["swapped", "bits", "cut", "of an older version", "no image", "empty"])
def test_an_image_that_is_not_that_of_its_poisons_is_set_aside(tmp_path: Path, fault: str) -> None:
    said: list[str] = []
    key, other = "a" * 64, "b" * 64
    sound = poison_grid(images(2), images(2), key=key)
    path = image_path(tmp_path, key)
    path.parent.mkdir(parents=True)
    path.write_bytes(sound)
    assert read(tmp_path, key, said.append) == sound and not said
    bad = {
        "swapped": poison_grid(images(2), images(2), key=other),
        "bits": sound[:-200] + bytes([sound[-200] ^ 1]) + sound[-199:],
        "cut": sound[: len(sound) // 2],
        "of an older version": poison_grid(images(2), images(2)),
        "no image": b"GIF89a",
        "empty": b"",
    }[fault]
    path.write_bytes(bad)
    assert read(tmp_path, key, said.append) is None
    assert len(said) == 1 and str(path) in said[0] and path.with_suffix(".damaged").read_bytes() == bad
    assert read(tmp_path, key, said.append) is None and len(said) == 1
