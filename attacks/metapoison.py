"""MetaPoison: poisons that steer a few unrolled training steps towards the target's misclassification."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import model_validator
from torch import Tensor

from bench.attacks.crafting.descent import DescentSettings, craft
from bench.attacks.crafting.matching import augmented
from bench.plugin import Attack, Field, ParameterGradients, Poisons, Scene, Weights, register, to_pixels

CW_FLOOR = -100.0  # of the CW loss, as in the released code


class MetaPoisonSettings(DescentSettings):
    augment: bool = Field(True, description="craft through the victim's random shift and flip, redrawn every step")
    unroll: int = Field(2, ge=1, le=20, description="training steps that are unrolled")
    inner_lr: float = Field(0.01, gt=0, le=10, description="learning rate of the unrolled steps (SGD without momentum)")
    clean: int = Field(64, ge=0, le=65536, description="clean training images in each unrolled batch")
    ages: tuple[int, ...] = Field(
        (2, 4, 8, 12, 16, 20, 24, 28), description="epochs of the surrogates' training at which they are used, rising"
    )
    chunk: int = Field(256, ge=1, le=65536, description="images that are differentiated at once; bounds the memory")

    @model_validator(mode="after")
    def _rising(self) -> MetaPoisonSettings:
        if not self.ages or list(self.ages) != sorted(set(self.ages)) or self.ages[0] < 1:
            raise ValueError(f"ages must be rising epochs from 1 on, not {list(self.ages)}")
        return self


@register("attack", "metapoison", steps=60, restarts=1)
class MetaPoison(Attack):
    """MetaPoison (Huang et al., NeurIPS 2020), without its colour perturbation; FRIENDS section 4.2 runs it at eps 8.

    Threat model: clean-label, targeted, from scratch, gray box. Every crafting step takes each of K surrogates at its
    own age (staggered by one age between surrogates, advancing by one per step), trains it for `unroll` steps of SGD,
    the first on all poisons with clean images, the others on clean images alone, and descends the mean over these
    steps of the CW loss of the target, max(max_{c != target class} z_c - z_target class, -100), differentiated through
    the steps: gradients flow to the poisons through the first step only, as in the released code.
    Assumes: K surrogates' training histories, the target image, the bases, clean training images.
    Cost: K x (9 forward-equivalents x n + 12 x clean images) x steps.
    Departures from the released code: the ages are snapshots of one clean training, shared by all trials, instead of
    networks that keep training (on clean data there too); BatchNorm uses running statistics; all poisons share one
    unrolled batch; the unrolled learning rate is a tenth of the released 0.1, which diverges from young networks when
    BatchNorm does not renormalise; the class mask of the CW loss is exact (the released code sets its logit to 0);
    signed Adam unless `rule` says otherwise. Colours are not perturbed: the threat model here is the L-infinity ball
    alone.
    """

    Settings = MetaPoisonSettings
    settings: MetaPoisonSettings

    @property
    def snapshots(self) -> tuple[int, ...]:
        return self.settings.ages

    def craft(self, scene: Scene) -> Poisons:
        objective = _Objective(scene, self.settings)
        started_at = objective.score(scene.base_pixels())
        delta, losses, scores = craft(
            scene, self.settings, objective.std, objective.gradient, objective.score, memory={}
        )
        return scene.poisons(delta, losses=losses, final_losses=scores, loss_of_bases=started_at)


class _Objective:
    """The CW loss of the targets after unrolled training steps, as a function of the poisons' pixels."""

    def __init__(self, scene: Scene, settings: MetaPoisonSettings) -> None:
        self.scene, self.settings = scene, settings
        histories = scene.workshop.snapshots()
        self.std = histories[0][0].normalise.std.flatten()
        self.sources = [[ParameterGradients(model) for model in history] for history in histories]
        self.targets = to_pixels(scene.targets)
        self.target_labels = torch.full((len(self.targets),), scene.trial.target_class, device=scene.device)
        self.clean_rows = torch.nonzero(~torch.isin(scene.train.ids, scene.bases.ids)).flatten()

    def gradient(self, pixels: Tensor, step: int) -> tuple[float, Tensor]:
        return augmented(self.scene, self.settings.augment, partial(self._slope, step), pixels, step)

    def score(self, pixels: Tensor) -> float:
        """The mean over surrogates and ages, un-augmented."""
        losses = [
            self._unrolled(source, pixels, "score", k, age).loss(self.targets, self.target_labels)
            for k, history in enumerate(self.sources)
            for age, source in enumerate(history)
        ]
        return sum(losses) / len(losses)

    def _slope(self, step: int, pixels: Tensor) -> tuple[float, Tensor]:
        """The mean over surrogates at a step, each at an age of its own, and its gradient in the pixels."""
        settings, labels = self.settings, self.scene.bases.labels
        total, losses = torch.zeros_like(pixels), []
        for k, history in enumerate(self.sources):
            source = history[(step + k) % len(history)]
            unrolled = self._unrolled(source, pixels, step, k)
            losses.append(unrolled.loss(self.targets, self.target_labels))
            direction = unrolled.direction(self.targets, self.target_labels)
            # The mean over the first batch counts poisons and clean images alike.
            share = len(pixels) / (len(pixels) + settings.clean)
            total -= settings.inner_lr * share * source.pixel_gradient(pixels, labels, direction, settings.chunk)
        return sum(losses) / len(losses), total / len(self.sources)

    def _unrolled(self, source: ParameterGradients, poisons: Tensor, *names: str | int) -> Unrolled:
        """Training steps from `source`, the first on all poisons with clean images, the others on clean images."""
        batches = self._clean_batches(*names)
        labels = torch.cat([self.scene.bases.labels, batches[0][1]])
        first = torch.cat([poisons, batches[0][0]]), labels
        return Unrolled(source, [first, *batches[1:]], self.settings.inner_lr, self.settings.chunk)

    def _clean_batches(self, *names: str | int) -> list[tuple[Tensor, Tensor]]:
        """A batch of clean images with labels for every unrolled step."""
        train, stream, batches = self.scene.train, self.scene.stream("clean", *names), []
        for _ in range(self.settings.unroll):
            size = (self.settings.clean,)
            picked = torch.randint(len(self.clean_rows), size, generator=stream, device=self.scene.device)
            rows = self.clean_rows[picked]
            batches.append((to_pixels(train.images[rows]), train.labels[rows]))
        return batches


class Unrolled:
    """Plain SGD from the weights of `source` over `batches` of (pixels, labels), retained for differentiation."""

    def __init__(
        self, source: ParameterGradients, batches: list[tuple[Tensor, Tensor]], lr: float, chunk: int = 256
    ) -> None:
        self.batches, self.lr = batches, lr
        self.after: list[ParameterGradients] = []
        for pixels, labels in batches:
            gradient = source.mean(pixels, labels, chunk)
            source = source.at({name: value - lr * gradient[name] for name, value in source.weights.items()})
            self.after.append(source)

    def loss(self, targets: Tensor, target_labels: Tensor) -> float:
        """Mean over the steps of the CW loss of the target images."""
        losses = [carlini_wagner(source.logits(targets), target_labels) / len(targets) for source in self.after]
        return torch.stack(losses).mean().item()

    def direction(self, targets: Tensor, target_labels: Tensor) -> Weights:
        """d loss / d (weights after the first step), the batches held fixed: the adjoint of the later steps."""
        count = len(self.after)
        adjoint: Weights | None = None
        for i in reversed(range(count)):
            source = self.after[i]
            gradient = source.mean(targets, target_labels, criterion=carlini_wagner)
            if adjoint is None:
                adjoint = {name: value / count for name, value in gradient.items()}
                continue
            pixels, labels = self.batches[i + 1]
            curved = source.curvature(pixels, labels, adjoint)
            adjoint = {name: gradient[name] / count + value - self.lr * curved[name] for name, value in adjoint.items()}
        assert adjoint is not None
        return adjoint


def carlini_wagner(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over images of max(max_{c != label} z_c - z_label, -100) (Carlini and Wagner 2017)."""
    of_label = logits.gather(1, labels[:, None])[:, 0]
    largest_rival = logits.scatter(1, labels[:, None], -torch.inf).max(1).values
    return (largest_rival - of_label).clamp(min=CW_FLOOR).sum()
