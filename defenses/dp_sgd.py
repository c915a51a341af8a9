"""DP-SGD: per-sample gradients are clipped, Gaussian noise is added to their sum, and the privacy loss is accounted."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from importlib import metadata
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.defenses.shared.group_norm import group_norm_twin, trained_batchnorms
from bench.plugin import BadInput, Batch, Defense, Field, Run, Settings, TrialFailed, make_optimizer, register

ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512, 768, 1024),
)
"""Renyi orders over which epsilon is minimised: opacus' own, and larger ones for a small privacy loss."""


class DpSgdSettings(Settings):
    noise_multiplier: float = Field(
        1.0, ge=0, le=1e3, description="std of the noise on the sum of the gradients, as a multiple of C (sigma)"
    )
    clip: float = Field(1.0, gt=0, le=1e6, description="largest norm of a sample's gradient (C)")
    delta: float = Field(1e-5, gt=0, lt=1, description="delta for which epsilon is reported")
    norm: Literal["group", "keep"] = Field(
        "group", description="BatchNorm in the trained part: replace it with GroupNorm, or refuse"
    )
    sampling: Literal["poisson"] = Field(
        "poisson", description="every sample is drawn for every batch independently, as the accountant assumes"
    )


@register("defense", "dp-sgd")
@register("defense", "dp-sgd-0.05", noise_multiplier=0.05)
class DpSgd(Defense):
    """Differentially private SGD (Abadi et al., CCS 2016), on the per-sample gradients of opacus.

    A step draws every sample with probability B / N (train.batch of the N active samples), clips each sample's gradient
    over all weights to norm C, adds N(0, (sigma C)^2) to the sum and divides by B; then momentum and weight decay. An
    epoch has round(N / B) steps. BatchNorm, which mixes samples, becomes GroupNorm: the undefended victim of the same
    seed has a different network. Frozen features stay as they are; a pretrained BatchNorm network that is trained as a
    whole is refused.

    The record holds epsilon under `notes`: RDP accountant, neighbours that differ by one sample, null where it is
    infinite. It covers this training alone, given the size of the training set, normalisation, pretrained weights and
    settings; in a composition it is null, because another defense's use of the data is not accounted for. A seeded
    random stream measures the defense; it does not make a release private. For r poisons epsilon grows with r: it says
    something about 1 % of a data set only when it is far below 1.

    `dp-sgd` has sigma 1 (CIFAR-10, B 128, 40 epochs: epsilon about 2). `dp-sgd-0.05` has the sigma of 0.05 that is
    common where papers compare poisoning defenses: clipping with some noise, and an epsilon in the millions.
    Threat model: any poison that needs single samples to have a large influence. Assumes: the training set alone; needs
    opacus (`pip install 'poisoning-bench[dp]'`). Cost: about twice the training time (CPU), and the memory of a
    gradient for every sample of a batch.
    """

    Settings = DpSgdSettings
    settings: DpSgdSettings

    def external(self) -> dict[str, Any]:
        handlers = list(logging.getLogger().handlers)
        try:
            from opacus.grad_sample.grad_sample_module import GradSampleHooks  # noqa: F401  (new in 1.6)
        except ImportError as error:
            raise BadInput(
                f"defense '{self.name}' needs opacus 1.6 or newer ({error}); fix: pip install 'poisoning-bench[dp]'"
            ) from None
        finally:
            logging.getLogger().handlers[:] = handlers  # opacus sets up the logging of the whole process
        return {"opacus": metadata.version("opacus")}

    def setup(self, run: Run) -> None:
        places = trained_batchnorms(run.model)
        if places and self.settings.norm == "keep":
            raise TrialFailed(
                f"defense '{self.name}': the network has {len(places)} BatchNorm layers, which mix the samples of a "
                "batch; fix: --set defense.norm=group"
            )
        run.model = group_norm_twin(run.model)
        # The clip is to bound what a sample adds; a gradient that was rounded may be longer.
        run.recipe = run.recipe.model_copy(update={"precision": "float32"})
        if run.services is not None:
            run.services.note("precision", run.recipe.precision)
        training = PrivateTraining(run, self.settings, self.beside)
        run.optimizer, run.sampler = training.optimizer, training.draw
        run.side["private"] = training

    def epoch(self, run: Run, epoch: int) -> None:
        run.side["private"].optimizer.generator = run.stream("noise")

    def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
        # The sum, so that each sample's gradient is its own: a mean divides by the number that happened to be drawn,
        # and is undefined when that is zero. The optimizer divides by the expected number.
        return losses.sum()


class PrivateTraining:
    """One training with per-sample gradients, from its first batch until opacus' hooks are removed again."""

    def __init__(self, run: Run, settings: DpSgdSettings, beside: tuple[str, ...]) -> None:
        from opacus.accountants import RDPAccountant

        warnings.filterwarnings("ignore", message="Full backward hook is firing")  # pixels need no gradient
        self.run, self.settings, self.beside = run, settings, beside
        self.hooks = attach(run.model)
        self.accountant = RDPAccountant()
        self.rate = 0.0
        self.steps_left = 0
        sgd = make_optimizer(run.model, run.recipe)
        for group in sgd.param_groups:
            group["fused"] = None  # it may require the weights' memory format, which opacus' gradients do not have
        sgd.register_step_post_hook(lambda *_: self._stepped())
        self.optimizer = make_private(sgd, settings.noise_multiplier, settings.clip, run.recipe.batch)

    def draw(self, rows: Tensor, chance: torch.Generator) -> list[Tensor]:
        """An epoch's batches: each of the `rows` is in each batch with the same chance, independently."""
        expected = min(self.run.recipe.batch, len(rows))
        self.rate, self.steps_left = expected / len(rows), max(round(len(rows) / expected), 1)
        self.optimizer.expected_batch_size = expected
        draws = (torch.rand(len(rows), generator=chance, device=rows.device) for _ in range(self.steps_left))
        return [rows[drawn < self.rate] for drawn in draws]

    def _stepped(self) -> None:
        self.accountant.step(noise_multiplier=self.settings.noise_multiplier, sample_rate=self.rate)
        for parameter in self.optimizer.params:  # now, not at the next backward pass: they are many times the weights
            parameter.grad_sample = parameter.summed_grad = None
        self.steps_left -= 1
        if self.steps_left == 0 and self.run.current_epoch == self.run.recipe.epochs - 1:
            detach(self.run.model, self.hooks)
            if self.run.services is not None:
                name = f"privacy of training {self.run.job}" if self.run.job else "privacy"
                self.run.services.note(name, self.spent())

    def spent(self) -> dict[str, Any]:
        """The privacy loss of the steps so far, as JSON."""
        history = self.accountant.history
        return {
            "epsilon": None if self.beside else epsilon(self.accountant, self.settings.delta),
            "delta": self.settings.delta,
            "sigma": self.settings.noise_multiplier,
            "clip": self.settings.clip,
            "sample_rate": max(rate for _, rate, _ in history),
            "steps": sum(steps for _, _, steps in history),
            "accountant": self.accountant.mechanism(),
            "beside": list(self.beside),
        }


def attach(model: nn.Module) -> Any:
    """Have every backward pass of summed losses leave each sample's gradient in `grad_sample` of the weights."""
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    class Hooks(GradSampleHooks):
        def rearrange_grad_samples(self, **arguments: Any) -> tuple[list[Tensor], Tensor]:
            # opacus 1.6 reads a convolution's input as if it were contiguous: with channels last the gradients are
            # wrong, without an error. A clone, because `contiguous()` leaves the strides of 1x1 maps as they are.
            activations, slopes = super().rearrange_grad_samples(**arguments)
            return [inputs.clone(memory_format=torch.contiguous_format) for inputs in activations], slopes

    return Hooks(model, loss_reduction="sum")


def make_private(sgd: torch.optim.Optimizer, sigma: float, clip: float, batch: int) -> Any:
    """opacus' optimizer around `sgd`, for the gradients of summed losses and `batch` expected samples."""
    from opacus.optimizers import DPOptimizer

    class Optimizer(DPOptimizer):
        def clip_and_accumulate(self) -> None:
            # A plug-in's layer may give bfloat16, whose rounded norm could let a clipped gradient be longer than C.
            for parameter in self.params:
                parameter.grad_sample = parameter.grad_sample.to(parameter.dtype)
            super().clip_and_accumulate()

    return Optimizer(sgd, noise_multiplier=sigma, max_grad_norm=clip, expected_batch_size=batch, loss_reduction="mean")


def epsilon(accountant: Any, delta: float) -> float | None:
    """Epsilon of the accounted steps; None where it is infinite."""
    with warnings.catch_warnings(), contextlib.suppress(OverflowError):
        warnings.simplefilter("ignore")  # that the best order is the last one: then epsilon is an upper bound
        value = accountant.get_epsilon(delta=delta, alphas=list(ORDERS))
        return value if math.isfinite(value) else None
    return None


def detach(model: nn.Module, hooks: Any) -> None:
    """Remove everything that opacus attached to a network."""
    hooks.cleanup()
    for parameter in model.parameters():
        vars(parameter).pop("summed_grad", None)
    for module in model.modules():
        for trace in ("activations", "max_batch_len"):
            vars(module).pop(trace, None)
