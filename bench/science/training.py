"""The one training loop, with every hook of a defense in place.

    run = Run(model, data, recipe)
    defense.setup(run)                            may replace model, optimizer, recipe
    for epoch in range(run.recipe.epochs):
        defense.epoch(run, epoch)                 may edit run.active, run.data, run.side, learning rate
        for batch in the epoch's batches:
            batch = defense.batch(batch, run, "pixel")    before augmentation, pixels in [0, 1]
            augment
            batch = defense.batch(batch, run, "view")     after augmentation
            loss = defense.loss(per-sample losses, batch, run)
            step

The data stay on the device as uint8; there are no loader workers. Every consumer of chance has its own stream keyed by
(seed, who, job, epoch), so that a defense which draws numbers does not shift the order or the augmentation.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench.foundation.errors import TrialFailed
from bench.science.augmentation import Augmentation
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.precision import resolved
from bench.science.recipe import Recipe
from bench.science.seeds import derive, torch_stream
from bench.science.services import Services


@dataclass
class Batch:
    """What a hook sees of one step.

    pixels: float [b, 3, h, w] in [0, 1]; labels: int64 [b], or soft labels float [b, classes];
    rows: int64 [b], rows of run.data; ids: int64 [b], stable ids of the samples.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    ids: Tensor


class Hooks(Protocol):
    """The part of a defense that the loop calls. `bench.science.defense.Defense` documents each."""

    name: str

    def setup(self, run: Run) -> None: ...
    def epoch(self, run: Run, epoch: int) -> None: ...
    def batch(self, batch: Batch, run: Run, stage: str) -> Batch: ...
    def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor: ...


Sampler = Callable[[Tensor, torch.Generator], Sequence[Tensor]]


@dataclass
class Run:
    """One training under way, as a defense sees it.

    data: the training set on the device; active: bool [n], which samples are trained on; suspected: bool [n], which
    the defense takes for poisons (judged by the evaluator; has no effect here); side: the defense's own state;
    lr_scale: factor on the learning rate; history: one dict an epoch; sampler: makes an epoch's batches, called as
    (rows that are active int64 [n], random stream) -> rows of each step, which may be empty and need not be disjoint;
    None shuffles the active rows and cuts them into batches of the recipe's size.
    """

    model: Classifier
    data: Images
    recipe: Recipe
    seed: int
    job: int
    optimizer: torch.optim.Optimizer
    augmentation: Augmentation
    active: Tensor
    suspected: Tensor
    services: Services | None = None
    owner: str = "defense"
    current_epoch: int = 0
    lr_scale: float = 1.0
    side: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    sampler: Sampler | None = None

    @property
    def device(self) -> torch.device:
        return self.data.images.device

    def stream(self, *names: str | int) -> torch.Generator:
        """The defense's own random stream on the device, keyed by (seed, defense, job, epoch, names)."""
        return torch_stream(self.device, self.seed, "plugin", self.owner, self.job, self.current_epoch, *names)

    def pixels(self, rows: Tensor) -> Tensor:
        """Clean, un-augmented pixels of `rows` in [0, 1]."""
        return to_pixels(self.data.images[rows])


@dataclass(frozen=True)
class Trained:
    """A finished training: the network in eval mode, what happened in each epoch, and the ids of the samples that the
    defense took for poisons on the way."""

    model: Classifier
    history: list[dict[str, float]]
    seconds: float
    suspected: Tensor


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images to float in [0, 1], channels last in memory."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD over the parameters that are to be trained (those of the head alone when the features are frozen)."""
    return torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=next(model.parameters()).is_cuda or None,
    )


def train(
    model: Classifier,
    data: Images,
    recipe: Recipe,
    *,
    seed: int,
    hooks: Hooks | None = None,
    job: int = 0,
    services: Services | None = None,
    report: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Trained:
    """Train `model` in place on `data` (on the model's device) and return it in eval mode.

    seed: of order, augmentation, dropout and the defense's streams. report: called as (epochs done, epochs, figures).
    TrialFailed when no sample is left to train on, or the loss is not finite.
    """
    started = time.perf_counter()
    device = data.images.device
    augmentation = recipe.augmentation(tuple(model.normalise.mean.flatten().tolist()))
    active = torch.ones(len(data), dtype=torch.bool, device=device)
    optimizer, suspected = make_optimizer(model, recipe), torch.zeros_like(active)
    run = Run(model, data, recipe, seed, job, optimizer, augmentation, active, suspected, services)
    if hooks is not None:
        run.owner = hooks.name
        _set_up(run, hooks)
    run.model.precision = resolved(run.recipe.precision, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for epoch in range(run.recipe.epochs):
            run.current_epoch = epoch
            if hooks is not None:
                hooks.epoch(run, epoch)
            figures = _epoch(run, epoch, hooks)
            run.history.append(figures)
            if report is not None:
                report(epoch + 1, run.recipe.epochs, figures)
    run.model.eval()
    run.model.zero_grad(set_to_none=True)
    return Trained(run.model, run.history, time.perf_counter() - started, run.data.ids[run.suspected])


def _set_up(run: Run, hooks: Hooks) -> None:
    """Let the defense replace parts of the run; what follows from a part is made again, unless it was replaced too."""
    model, recipe, optimizer, augmentation = run.model, run.recipe, run.optimizer, run.augmentation
    hooks.setup(run)
    if run.model is not model or run.recipe is not recipe:
        if run.optimizer is optimizer:
            run.optimizer = make_optimizer(run.model, run.recipe)
        if run.augmentation is augmentation:
            run.augmentation = run.recipe.augmentation(augmentation.fill)


def _shuffled(rows: Tensor, size: int, chance: torch.Generator) -> list[Tensor]:
    """Batches of `size` in random order; the last may be smaller."""
    order = rows[torch.randperm(len(rows), generator=chance, device=rows.device)]
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:  # BatchNorm cannot normalise a single sample
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@contextlib.contextmanager
def _normalising(model: nn.Module, count: int) -> Iterator[None]:
    """Inside, BatchNorm normalises a batch of `count`; a single image, which has no spread, by its running statistics:
    a defense may leave one to train on, and a sampler may draw one."""
    layers = model.modules() if count == 1 else ()
    alone = [layer for layer in layers if isinstance(layer, _BatchNorm) and layer.training]
    for layer in alone:
        layer.eval()
    yield
    for layer in alone:
        layer.train()


def _epoch(run: Run, epoch: int, hooks: Hooks | None) -> dict[str, float]:
    device, recipe = run.device, run.recipe
    rows = torch.nonzero(run.active).flatten()
    if len(rows) == 0:
        raise TrialFailed(f"epoch {epoch}: the defense left no training sample")
    chance = torch_stream(device, run.seed, "order", run.job, epoch)
    shifts = torch_stream(device, run.seed, "augment", run.job, epoch)
    batches = run.sampler(rows, chance) if run.sampler is not None else _shuffled(rows, recipe.batch, chance)
    has_dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in run.model.modules())
    total = torch.zeros(3, device=device)  # loss, hits, samples
    minimised = torch.zeros((), device=device)
    run.model.train()
    for step, chosen in enumerate(batches):
        batch = Batch(run.pixels(chosen), run.data.labels[chosen], chosen, run.data.ids[chosen])
        if hooks is not None:
            batch = hooks.batch(batch, run, "pixel")
        batch.pixels = run.augmentation(batch.pixels, run.augmentation.draw(len(batch.pixels), shifts))
        if hooks is not None:
            batch = hooks.batch(batch, run, "view")
        for group in run.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(epoch, step, len(batches)) * run.lr_scale
        if has_dropout:
            torch.manual_seed(derive(run.seed, "dropout", run.job, epoch, step))
        with _normalising(run.model, len(batch.pixels)):
            logits = run.model(batch.pixels)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        loss = hooks.loss(losses, batch, run) if hooks is not None else losses.mean()
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.optimizer.step()
        hard = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
        minimised += loss.detach()
        with torch.no_grad():
            total += torch.stack(
                (losses.sum(), (logits.argmax(1) == hard).sum(), losses.new_tensor(float(len(losses))))
            )
    loss_sum, hits, samples = total.tolist()
    if not torch.isfinite(total).all() or not torch.isfinite(minimised):
        raise TrialFailed(f"epoch {epoch}: the training loss is not finite; fix: a smaller train.lr")
    samples = max(samples, 1)  # a sampler may have drawn none
    return {"loss": loss_sum / samples, "accuracy": hits / samples, "samples": float(len(rows))}
