"""Noise schedules of diffusion models, and one-shot denoising with one of them.

Steps are counted from 0. abar is the share of a image's variance that is left at a step: x_t = sqrt(abar) x +
sqrt(1 - abar) z for pixels x in [-1, 1] and standard normal z. s = sqrt((1 - abar) / abar) is the noise in units of the
image; it rises with the step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.plugin import TrialFailed, torch_stream


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model as a predictor of the noise in a image.

    predict: (x_t float32 [n, 3, h, w], step) -> noise of the same shape; alphas: abar of every step, float64 [T],
    falling; identity: all that shapes it, as JSON; multiple: the side of the images must be a multiple of it; size:
    the only side that it takes, 0 for any.
    """

    predict: Callable[[Tensor, int], Tensor]
    alphas: Tensor
    identity: dict[str, Any]
    multiple: int = 1
    size: int = 0

    def must_take(self, size: int) -> None:
        """TrialFailed for images of a side that it cannot denoise."""
        what = f"the denoiser '{self.identity['source']}'"
        if self.size and size != self.size:
            raise TrialFailed(f"{what} knows images of {self.size} pixels, these have {size}; fix: source = fit")
        if size < self.multiple or size % self.multiple:
            allowed = f"multiples of {self.multiple} from {self.multiple} on"
            raise TrialFailed(f"{what}: images of {size} pixels; allowed: {allowed}")


def cosine_schedule(steps: int = 4000) -> Tensor:
    """abar of Nichol and Dhariwal (2021), eq. 17, offset 0.008, each step's loss of variance at most 0.999."""

    def share(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - share((t + 1) / steps) / share(t / steps), 0.999) for t in range(steps)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)


def linear_schedule(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """abar of Ho et al. (2020), section 4."""
    return (1 - torch.linspace(first, last, steps, dtype=torch.float64)).cumprod(0)


def noise_of(alphas: Tensor) -> Tensor:
    """s = sqrt((1 - abar) / abar)."""
    return ((1 - alphas) / alphas).sqrt()


def step_for(alphas: Tensor, s: float) -> int:
    """t*: the first step at which the noise is at least s (diffusion-denoising paper, GetTStep). TrialFailed when the
    schedule never gets there."""
    reached = torch.nonzero(noise_of(alphas) >= s).flatten()
    if len(reached) == 0:
        raise TrialFailed(f"noise {s:g}: the denoiser's schedule ends at {float(noise_of(alphas)[-1]):.3g}")
    return int(reached[0])


def one_shot(denoiser: Denoiser, pixels: Tensor, noise: Tensor, step: int) -> Tensor:
    """Noise images to `step` and take the noise out with one call of the network.

    pixels: float [n, 3, h, w] in [0, 1]; noise: standard normal of that shape. Returns pixels in [0, 1]. TrialFailed
    when the network gives what is not finite.
    """
    abar = float(denoiser.alphas[step])
    kept, added = math.sqrt(abar), math.sqrt(1 - abar)
    noisy = (kept * (2 * pixels - 1) + added * noise).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        found = denoiser.predict(noisy, step)
    clean = (noisy - added * found) / kept
    if not torch.isfinite(clean).all():
        raise TrialFailed(f"the denoiser '{denoiser.identity['source']}' gives values that are not finite")
    return (clean.clamp(-1, 1) + 1) / 2


def denoise_images(
    denoiser: Denoiser,
    images: Tensor,
    ids: Tensor,
    step: int,
    seed: int,
    chunk: int,
    report: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> Tensor:
    """uint8 [n, 3, h, w] denoised, rounded half up. A image's noise depends on `seed` and its id alone, so that the
    result does not depend on chunk or order."""
    cleaned = torch.empty_like(images)
    names = ids.tolist()
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        noise = noise_by_name(seed, names[start : start + chunk], part)
        pixels = one_shot(denoiser, part.to(torch.float32) / 255, noise, step)
        cleaned[start : start + chunk] = (pixels * 255 + 0.5).floor().to(torch.uint8)
        report("denoising", min(start + chunk, len(images)), len(images))
    return cleaned


def noise_by_name(seed: int, names: Sequence[int | str], like: Tensor) -> Tensor:
    """Standard normal noise [n, ...] of the shape and on the device of `like`, drawn for each name apart, on the CPU:
    the same on every device."""
    drawn = [torch.randn(like.shape[1:], generator=torch_stream("cpu", seed, name)) for name in names]
    return torch.stack(drawn).to(like.device)


def names_by_content(pixels: Tensor) -> list[str]:
    """A name for each image that depends on nothing but its pixels in levels of 255."""
    levels = (pixels * 255 + 0.5).floor().to(torch.uint8).cpu().contiguous()
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in levels]
