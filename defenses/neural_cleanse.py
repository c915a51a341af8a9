"""Neural Cleanse: the smallest mask and pattern that turn any image into a class; one far too small is a backdoor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from bench.defenses.shared.outputs import images_at_once
from bench.plugin import (
    Batch,
    Classifier,
    Defense,
    Field,
    ModelPredictor,
    Recipe,
    Run,
    Services,
    Settings,
    Trained,
    derive,
    frozen,
    known_clean,
    register,
    resumable,
    to_pixels,
    torch_stream,
    train,
)


class NeuralCleanseSettings(Settings):
    epochs: int = Field(80, ge=1, le=10000, description="maximum epochs of the search")
    steps: int = Field(
        20, ge=1, le=10000, description="minimum steps per epoch: a small hold-out is cut into smaller batches"
    )
    batch: int = Field(32, ge=1, le=65536, description="clean images per step at most, each stamped for every class")
    lr: float = Field(0.1, gt=0, le=100, description="learning rate of Adam, for mask and pattern before tanh")
    cost: float = Field(1e-3, gt=0, le=100, description="initial weight c of the mask's norm")
    threshold: float = Field(0.99, gt=0, le=1, description="share of the hold-out that a trigger must flip")
    patience: int = Field(
        5, ge=1, le=1000, description="good epochs in a row after which c doubles; bad ones after which it falls"
    )
    stop: int = Field(25, ge=1, le=10000, description="epochs without a smaller mask after which a class stops")
    index: float = Field(2.0, gt=0, le=100, description="anomaly index above which a small mask is flagged")
    repair_epochs: int = Field(100, ge=1, le=10000, description="epochs on the hold-out that repair a flagged network")
    repair_lr: float = Field(0.01, gt=0, le=100, description="learning rate of the repair")
    stamped: float = Field(0.2, gt=0, le=1, description="share of the images that the repair stamps")


@register("defense", "neural-cleanse")
class NeuralCleanse(Defense):
    """Neural Cleanse (Wang et al., IEEE S&P 2019): searches the trained network for a trigger and unlearns it.

    For each class it searches for the smallest trigger (mask, pattern) that flips the whole clean hold-out to it. A
    class whose mask is an outlier on the small side (median absolute deviations) is flagged, and the network is
    fine-tuned on the hold-out, a fifth of it with the recovered trigger and the true labels. If nothing is flagged, the
    network stays as it is. With normally distributed norms the outlier test flags a class of a clean network of ten
    classes in 33 % of 4000 draws (6 classes 27 %, 100 classes 87 %); norms, indices and flagged classes are in the
    record's notes. Threat model: one static trigger for one class; targeted poisons have none.
    All classes' triggers are sought at once. The first release takes 31 batches of 32 images an epoch, BackdoorBench 20
    of 128, both from more images than a hold-out of 5 % of a small set has; of such a one the steps are kept and the
    batches made smaller, so that an epoch is one pass over it.
    Assumes: a clean hold-out. Cost: up to 80 epochs on the hold-out per class, forward and back to the pixels, half of
    that again to measure success, and 100 epochs of training on the hold-out if a class was flagged.
    """

    Settings = NeuralCleanseSettings
    settings: NeuralCleanseSettings
    needs = ("clean_holdout",)

    def finish(self, trained: Sequence[Trained], services: Services) -> ModelPredictor:
        model, clean = trained[0].model, known_clean(services)
        chance = torch_stream(clean.images.device, services.seed, "neural cleanse")

        def report(epochs: int) -> None:
            services.report("searching triggers", epochs, self.settings.epochs)

        pixels = to_pixels(clean.images)
        triggers = search(model, pixels, services.classes, self.settings, chance, report)
        indices = anomalies(triggers.norms)
        flagged = flag(triggers, indices, self.settings.index)
        notes = {
            "norms": triggers.norms.tolist(),
            "indices": indices.tolist(),
            "meets the threshold": triggers.met.tolist(),
            "epochs": triggers.epochs,
            "flagged": flagged.tolist(),
        }
        if len(flagged):
            masks, patterns = triggers.masks, triggers.patterns
            notes["success before repair"] = successes(model, pixels, masks, patterns)[flagged].tolist()
            repair = Stamping(masks[flagged], patterns[flagged], self.settings.stamped)
            train(model, clean, self.recipe(services.recipe), seed=derive(services.seed, "repair"), hooks=repair)
            notes["success after repair"] = successes(model, pixels, masks, patterns)[flagged].tolist()
        services.note("neural_cleanse", notes)
        return ModelPredictor(model)

    def recipe(self, victim: Recipe) -> Recipe:
        """The recipe of the repair: the victim's, but short and at a small constant learning rate."""
        short = {"epochs": self.settings.repair_epochs, "lr": self.settings.repair_lr, "schedule": "step", "drops": ()}
        return victim.model_copy(update=short)


@dataclass(frozen=True)
class Triggers:
    """One trigger per class: masks [c, 1, h, w] and patterns [c, 3, h, w] in [0, 1], norms float [c] = |mask|_1, met
    bool [c]: whether it flips enough images; epochs that the search took."""

    masks: Tensor
    patterns: Tensor
    norms: Tensor
    met: Tensor
    epochs: int


def stamp(pixels: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """(1 - m) x + m p, in [0, 1] as its operands are."""
    return torch.lerp(pixels, patterns, masks)


class Costs:
    """The weight c of the norm, for each class: doubled after `patience` good epochs in a row, divided by 2^1.5 after
    as many bad ones; then the count restarts. turned: bool [classes], whether c has gone both up and down."""

    def __init__(self, classes: int, start: float, patience: int, device: torch.device | str = "cpu") -> None:
        self.values = torch.full((classes,), start, device=device)
        self.patience = patience
        self.good = torch.zeros(classes, dtype=torch.long, device=device)
        self.bad = torch.zeros_like(self.good)
        self.risen = torch.zeros(classes, dtype=torch.bool, device=device)
        self.fallen = torch.zeros_like(self.risen)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def turned(self) -> Tensor:
        return self.risen & self.fallen

    def epoch(self, met: Tensor) -> None:
        """An epoch ended; met: bool [classes], whether the trigger flipped enough images."""
        self.good = torch.where(met, self.good + 1, 0)
        self.bad = torch.where(met, 0, self.bad + 1)
        up, down = self.good >= self.patience, self.bad >= self.patience
        self.values = torch.where(up, self.values * 2, torch.where(down, self.values / 2**1.5, self.values))
        self.good[up], self.bad[down] = 0, 0
        self.risen, self.fallen = self.risen | up, self.fallen | down


def search(
    model: Classifier,
    pixels: Tensor,
    classes: int,
    settings: NeuralCleanseSettings,
    chance: Generator,
    report: Callable[[int], None] = lambda epochs: None,
) -> Triggers:
    """The smallest trigger for each class on clean pixels [n, 3, h, w], all classes at once (Wang et al., equation 3).

    m and p are (tanh + 1) / 2 of what Adam changes. After each epoch success and norm are measured on all images; the
    result is the smallest mask that meets the threshold, the last one if none did. A class stops when its mask has not
    shrunk by 1 % for `stop` epochs while its cost has gone both up and down. An epoch passes over the images once, in
    batches small enough for `settings.steps` steps; more often only if there are fewer images than that.
    """
    found = _Search(classes, pixels, settings, chance)
    kept = resumable("search for triggers", vars(found), dict(model.state_dict()), pixels)
    with frozen(model):
        while found.epochs < settings.epochs and len(found.active):
            found.epoch(model, pixels)
            kept.step()
            report(found.epochs)
    kept.end()
    return found.triggers()


class _Search:
    """Where a search is: the variables, the best masks and patterns, and which classes go on."""

    def __init__(self, classes: int, pixels: Tensor, settings: NeuralCleanseSettings, chance: Generator) -> None:
        device, (_, _, h, w) = pixels.device, pixels.shape
        start = torch.rand((classes, 4, h, w), generator=chance, device=device)
        self.settings, self.chance, self.epochs = settings, chance, 0
        self.free = nn.ParameterList([torch.atanh((start - 0.5) * 1.999)])
        self.optimizer = torch.optim.Adam(self.free.parameters(), lr=settings.lr, betas=(0.5, 0.9))
        self.costs = Costs(classes, settings.cost, settings.patience, device)
        self.best = self.now()
        self.norms = torch.full((classes,), torch.inf, device=device)
        self.landmark, self.idle = self.norms.clone(), torch.zeros(classes, dtype=torch.long, device=device)
        self.active = torch.arange(classes, device=device)

    def now(self) -> Tensor:
        """Masks and patterns, [classes, 4, h, w]."""
        return torch.tanh(self.free[0].detach()) / 2 + 0.5

    def epoch(self, model: Classifier, pixels: Tensor) -> None:
        batch = min(self.settings.batch, max(len(pixels) // self.settings.steps, 1))
        for _ in range(math.ceil(self.settings.steps / math.ceil(len(pixels) / batch))):
            for rows in torch.randperm(len(pixels), generator=self.chance, device=pixels.device).split(batch):
                _step(model, pixels[rows], self.free[0], self.active, self.costs.values, self.optimizer)
        self._measure(model, pixels)
        self.epochs += 1

    def _measure(self, model: Classifier, pixels: Tensor) -> None:
        current, active, settings = self.now(), self.active, self.settings
        size = current[:, 0].flatten(1).sum(1)
        met = torch.zeros_like(self.costs.risen)
        met[active] = successes(model, pixels, current[active, :1], current[active, 1:], active) >= settings.threshold
        smaller = met & (size < self.norms)
        self.best[smaller], self.norms[smaller] = current[smaller], size[smaller]
        shrunk = self.norms < 0.99 * self.landmark
        self.idle = torch.where(shrunk, 0, self.idle + 1)
        self.landmark = torch.where(shrunk, self.norms, self.landmark)
        self.costs.epoch(met)
        settled = self.norms.isfinite() & self.costs.turned & (self.idle >= settings.stop)
        self.active = active[~settled[active]]

    def triggers(self) -> Triggers:
        met = self.norms.isfinite()
        best = torch.where(met.view(-1, 1, 1, 1), self.best, self.now())
        return Triggers(best[:, :1], best[:, 1:], best[:, :1].flatten(1).sum(1), met, self.epochs)


def _step(
    model: Classifier, pixels: Tensor, free: Tensor, active: Tensor, costs: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    """One step of Adam on the active classes; the classes share no variable, so that their losses may be summed."""
    optimizer.zero_grad(set_to_none=True)
    for classes in active.split(max(images_at_once(pixels.device) // len(pixels), 1)):
        trigger = torch.tanh(free[classes]) / 2 + 0.5
        losses = F.cross_entropy(
            stamped_logits(model, pixels, trigger[:, :1], trigger[:, 1:]),
            classes.repeat_interleave(len(pixels)),
            reduction="none",
        )
        norms = trigger[:, 0].flatten(1).sum(1)
        (losses.view(len(classes), -1).mean(1) + costs[classes] * norms).sum().backward()
    optimizer.step()


def stamped_logits(model: Classifier, pixels: Tensor, masks: Tensor, patterns: Tensor) -> Tensor:
    """Logits [k n, classes] of n images with each of k triggers, trigger by trigger."""
    stamped = stamp(pixels[None], masks[:, None], patterns[:, None]).flatten(0, 1)
    return model(stamped.contiguous(memory_format=torch.channels_last))


@torch.no_grad()
def successes(
    model: Classifier, pixels: Tensor, masks: Tensor, patterns: Tensor, classes: Tensor | None = None
) -> Tensor:
    """Share of the images that each trigger flips to its class, [k]. classes: int64 [k], 0 to k - 1 if None."""
    classes = torch.arange(len(masks), device=pixels.device) if classes is None else classes
    hits = torch.zeros(len(masks), device=pixels.device)
    with frozen(model):
        for some in pixels.split(max(images_at_once(pixels.device) // max(len(masks), 1), 1)):
            predicted = stamped_logits(model, some, masks, patterns).argmax(1).view(len(masks), -1)
            hits += (predicted == classes[:, None]).sum(1)
    return hits / len(pixels)


def anomalies(norms: Tensor) -> Tensor:
    """|norm - median| / (1.4826 MAD) [c]: in standard deviations, if the norms are normally distributed."""
    values = norms.double()
    deviations = (values - values.quantile(0.5)).abs()
    # If half of the norms are equal the MAD is 0; the floor, in pixels, keeps the index finite.
    return deviations / (1.4826 * deviations.quantile(0.5)).clamp(min=1e-6)


def flag(triggers: Triggers, indices: Tensor, limit: float) -> Tensor:
    """The classes, int64, whose trigger works and is an outlier on the small side."""
    small = triggers.norms < triggers.norms.double().quantile(0.5)
    return torch.nonzero(triggers.met & small & (indices > limit)).flatten()


class Stamping(Defense):
    """Puts one of the triggers on a share of every training batch; labels stay as they are."""

    def __init__(self, masks: Tensor, patterns: Tensor, share: float) -> None:
        super().__init__(Settings(), "stamping")
        self.masks, self.patterns, self.share = masks, patterns, share

    def epoch(self, run: Run, epoch: int) -> None:
        run.side["stamping"] = run.stream("stamping")

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        if stage != "view":  # after augmentation: the trigger was found on un-augmented images
            return batch
        stream, n = run.side["stamping"], len(batch.pixels)
        stamped = torch.rand(n, generator=stream, device=run.device) < self.share
        trigger = torch.randint(len(self.masks), (n,), generator=stream, device=run.device)
        masks = self.masks[trigger] * stamped.view(-1, 1, 1, 1)
        batch.pixels = stamp(batch.pixels, masks, self.patterns[trigger])
        return batch
