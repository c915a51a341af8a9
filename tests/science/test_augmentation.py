"""Augmentation: shifts and flips against what they are by definition, and their gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from bench.science.augmentation import Augmentation, Draw
from bench.science.seeds import torch_stream

FILL = (0.2, 0.5, 0.9)


def augmentation(kind: str, shift: int = 3, flip: bool = True) -> Augmentation:
    return Augmentation(kind, shift, flip, FILL)


def pixels_of(n: int = 6, size: int = 8, dtype: torch.dtype = torch.float32, seed: Any = 0) -> Tensor:
    return torch.rand(n, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def whole_draw(n: Any = 6, shift: Any = 3, seed: Any = 1) -> Draw:
    chance = torch.Generator().manual_seed(seed)
    dx, dy = torch.randint(-shift, shift + 1, (2, n), generator=chance).float()
    return Draw(dx, dy, torch.arange(n) % 2 == 0)


def shifted_by_loop(pixels: Tensor, draw: Draw) -> Tensor:
    """output(y, x) = input(y + dy, x' + dx), where x' mirrors x in a flipped image; outside is the fill colour."""
    n, channels, height, width = pixels.shape
    result = torch.empty_like(pixels)
    for i in range(n):
        for y in range(height):
            for x in range(width):
                column = (width - 1 - x if draw.flip[i] else x) + int(draw.dx[i])
                row = y + int(draw.dy[i])
                inside = 0 <= row < height and 0 <= column < width
                for c in range(channels):
                    result[i, c, y, x] = pixels[i, c, row, column] if inside else FILL[c]
    return result


def test_crop_is_a_whole_pixel_shift_after_a_flip() -> None:
    pixels, draw = pixels_of(), whole_draw()
    torch.testing.assert_close(augmentation("crop")(pixels, draw), shifted_by_loop(pixels, draw), rtol=0, atol=1e-6)


def test_crop_handles_images_that_are_not_square() -> None:
    pixels, draw = pixels_of()[..., :6], whole_draw()
    torch.testing.assert_close(augmentation("crop")(pixels, draw), shifted_by_loop(pixels, draw), rtol=0, atol=1e-6)


def test_bilinear_at_whole_shifts_is_crop() -> None:
    pixels, draw = pixels_of(dtype=torch.float64), whole_draw()
    bilinear, crop = (augmentation(kind)(pixels, draw) for kind in ("bilinear", "crop"))
    torch.testing.assert_close(bilinear, crop, rtol=0, atol=1e-12)


def test_bilinear_interpolates_as_scipy_does() -> None:
    pixels = pixels_of(dtype=torch.float64)[..., :7]
    draw = augmentation("bilinear").draw(6, torch_stream("cpu", 0, "x"))
    found = augmentation("bilinear")(pixels, draw)
    y, x = np.mgrid[0:8, 0:7].astype(float)
    for i in range(6):
        columns = (6 - x if draw.flip[i] else x) + draw.dx[i].item()
        for c in range(3):
            expected = ndimage.map_coordinates(
                pixels[i, c].numpy(), [y + draw.dy[i].item(), columns], order=1, mode="grid-constant", cval=FILL[c]
            )
            np.testing.assert_allclose(found[i, c].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("kind", ["crop", "bilinear"])
def test_a_flip_alone_is_a_mirror_image(kind: str) -> None:
    pixels, none = pixels_of(), torch.zeros(6)
    found = augmentation(kind)(pixels, Draw(none, none, torch.ones(6, dtype=torch.bool)))
    torch.testing.assert_close(found, pixels.flip(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["crop", "bilinear"])
def test_no_shift_and_no_flip_change_nothing(kind: str) -> None:
    pixels, none = pixels_of(), torch.zeros(6)
    found = augmentation(kind)(pixels, Draw(none, none, torch.zeros(6, dtype=torch.bool)))
    torch.testing.assert_close(found, pixels, rtol=0, atol=1e-5)


def test_none_hands_the_very_pixels_through() -> None:
    pixels = pixels_of()
    assert augmentation("none")(pixels, augmentation("none").draw(6, torch_stream("cpu", 0))) is pixels


@pytest.mark.parametrize("kind", ["crop", "bilinear"])
def test_what_enters_from_outside_has_the_fill_colour(kind: str) -> None:
    draw = Draw(torch.tensor([0.0, 3.0]), torch.tensor([-3.0, 0.0]), torch.tensor([False, False]))
    found = augmentation(kind)(torch.zeros(2, 3, 8, 8), draw)
    fill = torch.tensor(FILL).view(3, 1, 1)
    torch.testing.assert_close(found[0, :, :3], fill.expand(3, 3, 8), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1, :, :, -3:], fill.expand(3, 8, 3), rtol=0, atol=1e-6)
    assert found[0, :, 3:].abs().max() < 1e-6
    assert found[1, :, :, :-3].abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["crop", "bilinear"])
def test_the_gradient_is_that_of_finite_differences(kind: str) -> None:
    transform = augmentation(kind, shift=2)
    draw = transform.draw(2, torch_stream("cpu", 3))
    pixels = pixels_of(2, 4, torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: transform(p, draw), (pixels,), atol=1e-7)


@pytest.mark.parametrize("kind", ["crop", "bilinear"])
def test_each_image_has_its_own_shift_whatever_its_neighbours(kind: str) -> None:
    transform, pixels = augmentation(kind), pixels_of()
    draw = transform.draw(6, torch_stream("cpu", 0))
    parts = [transform(pixels[part], draw.rows(part)) for part in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts), transform(pixels, draw), rtol=0, atol=1e-6)


def test_whole_shifts_are_uniform_over_all_whole_numbers() -> None:
    draw = augmentation("crop", shift=2).draw(20_000, torch_stream("cpu", 0))
    for shift in (draw.dx, draw.dy):
        values, counts = torch.unique(shift, return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert (counts - 4000).abs().max() < 5 * math.sqrt(20_000 * 0.2 * 0.8)


def test_fractional_shifts_fill_the_interval_evenly() -> None:
    draw = augmentation("bilinear", shift=4).draw(20_000, torch_stream("cpu", 0))
    for shift in (draw.dx, draw.dy):
        assert shift.abs().max() <= 4
        counts = torch.histc(shift, bins=8, min=-4, max=4)
        assert (counts - 2500).abs().max() < 5 * math.sqrt(20_000 / 8)


def test_half_of_the_images_are_mirrored_and_shifts_are_independent() -> None:
    draw = augmentation("bilinear").draw(20_000, torch_stream("cpu", 0))
    assert abs(draw.flip.float().mean().item() - 0.5) < 0.02
    parts = torch.stack((draw.dx, draw.dy, draw.flip.float()))
    assert (torch.corrcoef(parts) - torch.eye(3)).abs().max() < 0.04
    assert not augmentation("bilinear", flip=False).draw(100, torch_stream("cpu", 0)).flip.any()


def test_a_draw_repeats_with_its_stream() -> None:
    first, again = (augmentation("crop").draw(9, torch_stream("cpu", 1, "a")) for _ in range(2))
    assert torch.equal(first.dx, again.dx)
    assert torch.equal(first.flip, again.flip)


@pytest.mark.parametrize(("kind", "factor"), [("bilinear", 4 / 9), ("crop", 1.0)])
def test_how_much_of_the_variance_of_independent_noise_is_left(kind: str, factor: float) -> None:
    transform = Augmentation(kind, 4, True, (0.0, 0.0, 0.0))
    noise = torch.randn(400, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shifted = transform(noise, transform.draw(400, torch_stream("cpu", 0)))[:, :, 4:-4, 4:-4]
    assert shifted.var().item() == pytest.approx(factor, abs=0.025)
