"""A small U-Net that learns to denoise images, in minutes on a CPU: the denoiser that needs no download."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.defenses.diffusion.schedule import cosine_schedule, step_for
from bench.plugin import Report, TrialFailed, resumable, torch_stream

MULTIPLE = 4
"""The side of the images must be a multiple of it: two halvings."""

QUIETEST, LOUDEST = 0.025, 2.0
"""Range of s that the network learns: all that the defense's settings allow."""


class SmallUNet(nn.Module):
    """(x_t [n, 3, h, w], step) -> v. Works on blocks of 2x2 pixels, so that it is cheap; one more halving inside.

    v = sqrt(abar) z - sqrt(1 - abar) x (Salimans and Ho, 2022): its scale is the same at every step.
    """

    def __init__(self, width: int, alphas: Tensor) -> None:
        super().__init__()
        self.alphas = alphas
        self.time = nn.Sequential(nn.Linear(32, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU())
        self.enter = nn.Conv2d(12, width, 3, padding=1)
        self.fine = Block(width, 2 * width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.coarse = nn.ModuleList([Block(2 * width, 2 * width) for _ in range(2)])
        self.up = nn.Conv2d(2 * width, 4 * width, 1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.last = Block(width, 2 * width)
        self.leave = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 12, 3, padding=1))
        for parameter in self.leave[2].parameters():  # starts as v = 0: x = sqrt(abar) x_t
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        """steps: int64 [n]."""
        time = self.time(waves(steps / len(self.alphas), 32))
        fine = self.fine(self.enter(F.pixel_unshuffle(x, 2)), time)
        coarse = self.down(fine)
        for block in self.coarse:
            coarse = block(coarse, time)
        raised = F.pixel_shuffle(self.up(coarse), 2)
        out: Tensor = self.leave(self.last(self.join(torch.cat((fine, raised), 1)), time))
        return F.pixel_shuffle(out, 2)

    def noise(self, x: Tensor, step: int) -> Tensor:
        """The noise in x_t, from v."""
        abar = float(self.alphas[step])
        v = self(x, torch.full((len(x),), step, device=x.device))
        return math.sqrt(1 - abar) * x + math.sqrt(abar) * v


class Block(nn.Module):
    """Two convolutions around a scale and shift by the time, added to the input."""

    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.steer = nn.Linear(time, 2 * width)
        self.norm = nn.GroupNorm(8, width)
        self.after = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.steer(time)[:, :, None, None].chunk(2, 1)
        return x + self.after(F.silu(self.norm(self.before(x)) * (1 + scale) + shift))


def waves(time: Tensor, width: int) -> Tensor:
    """Cosines and sines of `time` (in [0, 1]) at frequencies from 1 to 1000, [n, width]."""
    powers = torch.linspace(0, 1, width // 2, device=time.device)
    angles = time[:, None].float() * 1000.0**powers
    return torch.cat((angles.cos(), angles.sin()), 1)


def new_unet(width: int, seed: int) -> SmallUNet:
    """Untrained, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallUNet(width, cosine_schedule()).to(memory_format=torch.channels_last)


def fit_unet(
    images: Tensor,
    width: int,
    steps: int,
    batch: int,
    seed: int,
    report: Report = lambda phase, done, total: None,
) -> SmallUNet:
    """Train on uint8 images [n, 3, h, w], on their device; returns the running mean of the weights, in eval mode.

    Loss: mean squared error of v, with steps uniform between s = 0.025 and s = 2. Adam, at most 100 steps of
    warm-up, then linearly down to 0. TrialFailed when the loss is not finite.
    """
    model = new_unet(width, seed).to(images.device)
    mean = copy.deepcopy(model).requires_grad_(False)
    alphas = model.alphas.to(images.device, torch.float32)
    first, last = step_for(model.alphas, QUIETEST), step_for(model.alphas, LOUDEST)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    chance = torch_stream(images.device, seed, "fit")
    warm_up = min(100, steps / 10)
    state: dict[str, Any] = {"model": model, "mean": mean, "optimizer": optimizer, "chance": chance, "step": 0}
    state["total"] = torch.zeros((), device=images.device)
    kept = resumable("denoiser", state, images, width, steps, batch, seed)
    chance = state["chance"]
    for step in range(state["step"], steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min((step + 1) / warm_up, 1) * (1 - step / steps)
        rows = torch.randint(len(images), (batch,), generator=chance, device=images.device)
        moments = torch.randint(first, last + 1, (batch,), generator=chance, device=images.device)
        x = images[rows].to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1
        z = torch.empty_like(x).normal_(generator=chance)
        abar = alphas[moments][:, None, None, None]
        signal, sigma = abar.sqrt(), (1 - abar).sqrt()
        loss = (model(signal * x + sigma * z, moments) - (signal * z - sigma * x)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        state["total"] += loss.detach()
        share = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, weight in zip(mean.parameters(), model.parameters(), strict=True):
                average.lerp_(weight, 1 - share)
        state["step"] = step + 1
        if step + 1 == steps or (step + 1) % 50 == 0:
            if not torch.isfinite(state["total"]):
                raise TrialFailed(f"the denoiser's loss is not finite after {step + 1} steps")
            report("denoiser", step + 1, steps)
        kept.step()
    kept.end()
    return mean.eval()
