"""Sleeper Agent: gradient matching for a backdoor whose trigger never appears in the training set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from bench.attacks.crafting.descent import craft
from bench.attacks.crafting.matching import MatchingSettings, through
from bench.plugin import (
    Attack,
    Classifier,
    Field,
    Matcher,
    ParameterGradients,
    Poisons,
    Scene,
    Transform,
    register,
    to_pixels,
)


class SleeperSettings(MatchingSettings):
    """Defaults: the released code on CIFAR-10."""

    retrain: int = Field(
        4, ge=0, le=100, description="how often the surrogates are retrained on the poisons so far (T)"
    )
    retrained: int = Field(
        0, ge=0, le=100, description="surrogates retrained each time, in turn (0: all K, as in the released code)"
    )
    sources: int = Field(0, ge=0, le=1_000_000, description="training images that get the trigger (0: the whole class)")
    selection: Literal["gradient-norm", "random"] = Field(
        "gradient-norm", description="bases: the images with the largest training gradients, or those of the trial"
    )


@register("attack", "sleeper", restarts=1)
class SleeperAgent(Attack):
    """Sleeper Agent (Souri et al., NeurIPS 2022); FRIENDS section 4.2.

    Threat model: clean-label backdoor, from scratch, gray box. At test time any image of the source class that
    carries the trigger (threat.patch, at a random place) is to be classified as the target class; no training image
    carries it. Minimises 1 - cos(mean grad CE(training images of the source class with the trigger, target class),
    mean grad CE(poisons, their labels)), as `gm` does; the places of the trigger are drawn once. Bases are the images
    of the target class with the largest training gradients. T times during crafting, evenly spaced, the surrogates
    are retrained from scratch on the training set as poisoned so far, and the target gradient is recomputed.
    Assumes: K clean surrogates and T x K more trainings, all training images of both classes.
    Cost: as `gm` without restarts, and T x K trainings (T x `retrained`, in turn, if that is set), which dominate.
    The selection's gradient norms are shared by trials with the same target class, the clean surrogates by all;
    retrainings are cached, so that a killed crafting resumes.
    """

    Settings = SleeperSettings
    settings: SleeperSettings
    selects_bases = True

    @property
    def shows_trigger(self) -> bool:
        return True

    def craft(self, scene: Scene) -> Poisons:
        settings, surrogates = self.settings, scene.surrogates()
        if settings.selection == "gradient-norm":
            with scene.workshop.timed("selection"):
                scene = scene.choosing(largest_gradients(scene, surrogates, len(scene.bases)))
        objective = _Objective(self, scene, surrogates)
        std = surrogates[0].normalise.std.flatten()
        delta, losses, scores = craft(scene, settings, std, objective.gradient, objective.score, memory=objective)
        return scene.poisons(delta, losses=losses, final_losses=scores, retrained_at=objective.rounds)

    def sources(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Training images of the source class with the trigger, float [m, 3, h, w], and the target class for each
        [m]."""
        rows = torch.nonzero(scene.train.labels == scene.trial.source_class).flatten()
        if self.settings.sources:
            order = torch.randperm(len(rows), generator=scene.stream("sources"), device=scene.device)
            rows = rows[order[: self.settings.sources]]
        size = scene.train.images.shape[-1]
        trigger = scene.threat.trigger(size)
        places = trigger.places(len(rows), size, scene.seed, "places")
        patched = to_pixels(trigger.paste(scene.train.images[rows], places))
        return patched, torch.full((len(rows),), scene.trial.target_class, device=scene.device)

    def retrain(self, scene: Scene, pixels: Tensor, restart: int, step: int, which: list[int]) -> Sequence[Classifier]:
        """The surrogates `which`, retrained from scratch on the training set with the poisons as they are now."""
        poisons = scene.poisons(pixels - scene.base_pixels())
        with scene.workshop.timed("retraining"):
            data = poisons.applied_to(scene.train)
            return scene.workshop.retrain(data, restart, step, which=which, **self.retrained_behind())

    # What the adaptive variants change.

    def adaptation(self, scene: Scene) -> Transform:
        """What the poisons pass through in crafting, before the augmentation."""
        return lambda pixels, stream: pixels

    def retrained_behind(self) -> dict[str, Any]:
        """The defense that the surrogates are retrained with, as arguments of `retrain`."""
        return {}


class _Objective:
    """1 - cos of training gradients as a function of the poisons' pixels; surrogates are replaced as crafting goes on.

    rounds: the steps of a restart before which surrogates are retrained.
    """

    def __init__(self, attack: SleeperAgent, scene: Scene, surrogates: Sequence[Classifier]) -> None:
        self.attack, self.scene, self.surrogates = attack, scene, len(surrogates)
        self.targets = attack.sources(scene)
        self.adapt = attack.adaptation(scene)
        self.rounds = retraining_steps(attack.settings.steps, attack.settings.retrain)
        with scene.workshop.timed("gradients"):
            self.first = Matcher(surrogates, *self.targets, scene.bases.labels, attack.settings.chunk)
        self.matcher = self.first
        self.retrained: list[tuple[int, int, Tensor]] = []  # of this restart: restart, step, the poisons then

    def state_dict(self) -> dict[str, Any]:
        return {"retrained": list(self.retrained)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for restart, step, pixels in state["retrained"]:
            self._retrain(pixels, restart, step)  # the networks are in the store

    def gradient(self, pixels: Tensor, step: int) -> tuple[float, Tensor]:
        restart, step_of_restart = divmod(step, self.attack.settings.steps)
        if step_of_restart == 0:
            self.matcher, self.retrained = self.first, []
        if step_of_restart in self.rounds:
            self._retrain(pixels, restart, step_of_restart)
        with self.scene.workshop.timed("gradients"):
            return through(pixels, partial(self._view, step), self.matcher.slope)

    def score(self, pixels: Tensor) -> float:
        return self.matcher.loss(pixels)

    def _retrain(self, pixels: Tensor, restart: int, step: int) -> None:
        self.retrained.append((restart, step, pixels))
        which = in_turn(self.rounds.index(step), self.attack.settings.retrained, self.surrogates)
        models = self.attack.retrain(self.scene, pixels, restart, step, which)
        with self.scene.workshop.timed("gradients"):
            self.matcher = self.matcher.with_models(dict(zip(which, models, strict=True)), *self.targets)

    def _view(self, step: int, pixels: Tensor) -> Tensor:
        """The poisons as the victim's training sees them at a step."""
        scene = self.scene
        pixels = self.adapt(pixels, scene.stream("noise", step))
        if not self.attack.settings.augment:
            return pixels
        return scene.augmentation(pixels, scene.augmentation.draw(len(pixels), scene.stream("augment", step)))


def retraining_steps(steps: int, times: int) -> list[int]:
    """`times` steps, evenly spaced and strictly inside: 50, 100, 150, 200 for 250 and 4."""
    return sorted({round(steps * i / (times + 1)) for i in range(1, times + 1)} - {0, steps})


def in_turn(turn: int, count: int, total: int) -> list[int]:
    """Which of `total` surrogates are retrained in a turn: the next `count` of them, cyclically; all for 0."""
    return list(range(total)) if not 0 < count < total else sorted((turn * count + i) % total for i in range(count))


def largest_gradients(scene: Scene, models: Sequence[Classifier], count: int) -> Tensor:
    """Rows of scene.train of the `count` images of the target class with the largest training gradient, as a
    mean over surrogates; ties to the lower row. Shared by all trials with that class."""
    rows = scene.adversarial_rows
    pool = scene.train.subset(rows)

    def norms() -> Tensor:
        pixels = to_pixels(pool.images)
        return torch.stack([ParameterGradients(model).norms(pixels, pool.labels) for model in models]).mean(0).cpu()

    scores = scene.workshop.keep("base_selection", {"pool": pool.digest}, norms)
    return rows[torch.argsort(scores.to(rows.device), descending=True, stable=True)[:count]]
