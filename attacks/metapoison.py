"""MetaPoison: poisons that steer a few unrolled training steps towards the target's misclassification."""

from __future__ import annotations

import torch
from pydantic import model_validator
from torch import Tensor

from bench.attacks.crafting.descent import DescentSettings, craft
from bench.attacks.crafting.matching import augmented
from bench.plugin import Attack, Field, ParameterGradients, Poisons, Scene, Weights, register, to_pixels

LEAST = -100.0  # of the CW loss, as in the released code


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

    Threat model: clean-label, targeted, from scratch, gray box. Every crafting step takes each of K surrogates at an
    age of its own (staggered by one age from surrogate to surrogate, moving on by one at each step), trains it for
    `unroll` steps of SGD, the first on all poisons with clean images, the others on clean images alone, and
    descends the mean over these steps of the CW loss of the target, max(max_{c != adv} z_c - z_adv, -100),
    differentiated through the steps: gradients flow to the poisons through the first step only, as in the released
    code. Needs: K surrogates' training histories, the target image, the bases, clean training images.
    Cost: K x (9 forward-equivalents x n + 12 x clean images) x steps.
    Departs from the released code: the ages are snapshots of one clean training, shared by all trials, instead of
    networks that train along (their trajectories are clean there too); BatchNorm uses running statistics; all poisons
    share one unrolled batch; the unrolled steps are a tenth of the released 0.1, which diverges from young networks
    when BatchNorm does not renormalise; the class mask of the CW loss is exact (the released code sets its logit to
    0); signed Adam unless `rule` says otherwise. Colours are not perturbed: the threat model here is the L-infinity
    ball alone.
    """

    Settings = MetaPoisonSettings
    settings: MetaPoisonSettings

    @property
    def snapshots(self) -> tuple[int, ...]:
        return self.settings.ages

    def craft(self, scene: Scene) -> Poisons:
        settings, labels = self.settings, scene.bases.labels
        histories = scene.workshop.snapshots()
        sources = [[ParameterGradients(model) for model in history] for history in histories]
        target = to_pixels(scene.targets)
        wanted = torch.full((len(target),), scene.trial.target_class, device=scene.device)
        others = torch.nonzero(~torch.isin(scene.train.ids, scene.bases.ids)).flatten()

        def clean_batches(*who: str | int) -> list[tuple[Tensor, Tensor]]:
            """A batch of clean images with labels for every unrolled step."""
            stream, batches = scene.stream("clean", *who), []
            for _ in range(settings.unroll):
                pick = torch.randint(len(others), (settings.clean,), generator=stream, device=scene.device)
                rows = others[pick]
                batches.append((to_pixels(scene.train.images[rows]), scene.train.labels[rows]))
            return batches

        def unrolled(source: ParameterGradients, poisons: Tensor, *who: str | int) -> Unrolled:
            batches = clean_batches(*who)
            first = torch.cat([poisons, batches[0][0]]), torch.cat([labels, batches[0][1]])
            return Unrolled(source, [first, *batches[1:]], settings.inner_lr, settings.chunk)

        def gradient(pixels: Tensor, step: int) -> tuple[float, Tensor]:
            def slope(view: Tensor) -> tuple[float, Tensor]:
                total, losses = torch.zeros_like(view), []
                for k, history in enumerate(sources):
                    source = history[(step + k) % len(history)]
                    steps = unrolled(source, view, step, k)
                    losses.append(steps.loss(target, wanted))
                    direction = steps.direction(target, wanted)
                    # The mean over the first batch counts poisons and clean images alike.
                    share = len(view) / (len(view) + settings.clean)
                    total -= settings.inner_lr * share * source.pixel_gradient(view, labels, direction, settings.chunk)
                return sum(losses) / len(losses), total / len(sources)

            return augmented(scene, settings.augment, pixels, step, slope)

        def score(pixels: Tensor) -> float:
            losses = [
                unrolled(source, pixels, "score", k, age).loss(target, wanted)
                for k, history in enumerate(sources)
                for age, source in enumerate(history)
            ]
            return sum(losses) / len(losses)

        std = histories[0][0].normalise.std.flatten()
        started_at = score(scene.base_pixels())
        delta, losses, scores = craft(scene, settings, std, gradient, score)
        return scene.poisons(delta, losses=losses, final_losses=scores, loss_of_bases=started_at)


class Unrolled:
    """Plain SGD from the weights of `source` over `batches` of (pixels, labels), kept for differentiation."""

    def __init__(
        self, source: ParameterGradients, batches: list[tuple[Tensor, Tensor]], lr: float, chunk: int = 256
    ) -> None:
        self.batches, self.lr = batches, lr
        self.after: list[ParameterGradients] = []
        for pixels, labels in batches:
            gradient = source.mean(pixels, labels, chunk)
            source = source.at({name: value - lr * gradient[name] for name, value in source.weights.items()})
            self.after.append(source)

    def loss(self, target: Tensor, wanted: Tensor) -> float:
        """Mean over the steps of the CW loss of the target images."""
        each = [carlini_wagner(source.logits(target), wanted) / len(target) for source in self.after]
        return torch.stack(each).mean().item()

    def direction(self, target: Tensor, wanted: Tensor) -> Weights:
        """d loss / d (weights after the first step), the batches held fixed: the adjoint of the later steps."""
        count = len(self.after)
        adjoint: Weights | None = None
        for i in reversed(range(count)):
            source = self.after[i]
            own = source.mean(target, wanted, criterion=carlini_wagner)
            if adjoint is None:
                adjoint = {name: value / count for name, value in own.items()}
                continue
            pixels, labels = self.batches[i + 1]
            bend = source.curvature(pixels, labels, adjoint)
            adjoint = {name: own[name] / count + value - self.lr * bend[name] for name, value in adjoint.items()}
        assert adjoint is not None
        return adjoint


def carlini_wagner(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum over images of max(max_{c != wanted} z_c - z_wanted, -100) (Carlini and Wagner 2017)."""
    mine = logits.gather(1, wanted[:, None])[:, 0]
    others = logits.scatter(1, wanted[:, None], -torch.inf).max(1).values
    return (others - mine).clamp(min=LEAST).sum()
