"""Noise schedules of diffusion models, and one-shot denoising with one of them.

Steps are counted from 0. abar is the share of an image's variance that remains at a step: x_t = sqrt(abar) x +
sqrt(1 - abar) z for pixels x in [-1, 1] and standard normal z. s = sqrt((1 - abar) / abar) is the noise in units of the
image; it increases with the step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.plugin import Report, TrialFailed, resumable, torch_stream


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model as a predictor of the noise in an image.

    predict: (x_t float32 [n, 3, h, w], step) -> noise of the same shape; alphas: abar of every step, float64 [T],
    decreasing; identity: everything that shapes it, as JSON, and nothing else; name: what a person calls it; multiple:
    the side of the images must be a multiple of it; size: the only side that it accepts, 0 for any.
    """

    predict: Callable[[Tensor, int], Tensor]
    alphas: Tensor
    identity: dict[str, Any]
    name: str
    multiple: int = 1
    size: int = 0

    def must_take(self, size: int) -> None:
        """TrialFailed for images of a side that it cannot denoise."""
        denoiser = f"the denoiser '{self.name}'"
        if self.size and size != self.size:
            raise TrialFailed(f"{denoiser} takes images of {self.size} pixels, not {size}; fix: source = fit")
        if size < self.multiple or size % self.multiple:
            raise TrialFailed(
                f"{denoiser}: images of {size} pixels; allowed: multiples of {self.multiple}; fix: other images"
            )


def cosine_schedule(steps: int = 4000) -> Tensor:
    """abar of Nichol and Dhariwal (2021), eq. 17, offset 0.008, at most 0.999 of the variance lost per step."""

    def share(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - share((t + 1) / steps) / share(t / steps), 0.999) for t in range(steps)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)


def noise_of(alphas: Tensor) -> Tensor:
    """s = sqrt((1 - abar) / abar)."""
    return ((1 - alphas) / alphas).sqrt()


def step_for(alphas: Tensor, s: float) -> int:
    """t*: the first step at which the noise is at least s (diffusion-denoising paper, GetTStep). TrialFailed when the
    schedule never reaches it."""
    reached = torch.nonzero(noise_of(alphas) >= s).flatten()
    if len(reached) == 0:
        last = float(noise_of(alphas)[-1])
        raise TrialFailed(f"noise {s:g}: the denoiser's schedule ends at {last:.3g}; fix: a smaller defense.sigma")
    return int(reached[0])


def one_shot(denoiser: Denoiser, pixels: Tensor, noise: Tensor, step: int) -> Tensor:
    """Add noise to images up to `step` and remove it with one call of the network.

    pixels: float [n, 3, h, w] in [0, 1]; noise: standard normal of that shape. Returns pixels in [0, 1]. TrialFailed
    when the network's output has another shape or is not finite.
    """
    abar = float(denoiser.alphas[step])
    signal, sigma = math.sqrt(abar), math.sqrt(1 - abar)
    noisy = (signal * (2 * pixels - 1) + sigma * noise).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        predicted = denoiser.predict(noisy, step)
    if predicted.shape != noisy.shape:
        raise TrialFailed(
            f"the denoiser '{denoiser.name}' makes {list(predicted.shape)} of images {list(noisy.shape)}; "
            "fix: another denoiser"
        )
    clean = (noisy - sigma * predicted) / signal
    if not torch.isfinite(clean).all():
        raise TrialFailed(
            f"the denoiser '{denoiser.name}' returns values that are not finite; fix: another denoiser, or no "
            "defense.source"
        )
    return (clean.clamp(-1, 1) + 1) / 2


def denoise_images(
    denoiser: Denoiser,
    images: Tensor,
    ids: Tensor,
    step: int,
    seed: int,
    chunk: int,
    report: Report = lambda phase, done, total: None,
) -> Tensor:
    """uint8 [n, 3, h, w] denoised, rounded half up. An image's noise depends on `seed` and its id alone, so that the
    result does not depend on chunk or order."""
    state: dict[str, Any] = {"cleaned": torch.zeros_like(images), "done": 0}
    kept = resumable("denoising", state, denoiser.identity, images, ids, step, seed, chunk)
    cleaned, names = state["cleaned"], ids.tolist()
    for start in range(state["done"], len(images), chunk):
        some = images[start : start + chunk]
        noise = noise_by_name(seed, names[start : start + chunk], some)
        pixels = one_shot(denoiser, some.to(torch.float32) / 255, noise, step)
        cleaned[start : start + chunk] = (pixels * 255 + 0.5).floor().to(torch.uint8)
        state["done"] = start + chunk
        kept.step()
        report("denoising", min(start + chunk, len(images)), len(images))
    kept.end()
    return cleaned


def noise_by_name(seed: int, names: Sequence[int | str], like: Tensor) -> Tensor:
    """Standard normal noise [n, ...] of the shape and on the device of `like`, drawn separately for each name, on the
    CPU: the same on every device."""
    drawn = [torch.randn(like.shape[1:], generator=torch_stream("cpu", seed, name)) for name in names]
    return torch.stack(drawn).to(like.device)


def names_by_content(pixels: Tensor) -> list[str]:
    """A name for each image that depends only on its pixels in levels of 255."""
    levels = (pixels * 255 + 0.5).floor().to(torch.uint8).cpu().contiguous()
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in levels]
