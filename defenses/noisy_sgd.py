"""Noisy SGD: the batch's gradient is clipped and Gaussian noise is added to it. Not differential privacy."""

from __future__ import annotations

import torch

from bench.plugin import Defense, Field, Run, Settings, register


class NoisySgdSettings(Settings):
    clip: float = Field(1.0, gt=0, le=1e6, description="largest norm of the batch's mean gradient (C)")
    noise: float = Field(0.01, ge=0, le=1e3, description="std of the noise in every weight, as a multiple of C (n)")


@register("defense", "noisy-sgd")
class NoisySgd(Defense):
    """Clipped and noisy SGD (Hong et al. 2020), which the tables of FRIENDS and Sleeper Agent call DP-SGD.

    The mean gradient of a batch, over all weights together, is clipped to norm C; then N(0, (C n)^2) is added to every
    weight's; momentum and weight decay follow. This is not differential privacy: no sample's own gradient is clipped.
    With batches of B, n = sigma / B of DP-SGD. Threat model: any poison that works through large gradients. Assumes:
    the training set alone. Cost: close to none. `dp-sgd` is the private one.
    """

    Settings = NoisySgdSettings
    settings: NoisySgdSettings

    def setup(self, run: Run) -> None:
        streams = run.side.setdefault("noise", {})  # of this training; replaced at every epoch
        run.optimizer.register_step_pre_hook(lambda optimizer, *_: self._disturb(optimizer, streams["now"]))

    def epoch(self, run: Run, epoch: int) -> None:
        run.side["noise"]["now"] = run.stream("noise")

    def _disturb(self, optimizer: torch.optim.Optimizer, stream: torch.Generator) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        scale = (self.settings.clip / (norm + 1e-6)).clamp(max=1)
        for gradient in gradients:
            noise = torch.empty_like(gradient).normal_(generator=stream)
            gradient.mul_(scale).add_(noise, alpha=self.settings.clip * self.settings.noise)
