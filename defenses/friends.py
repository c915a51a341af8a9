"""FRIENDS: friendly noise, optimised once per image, and fresh random noise at every step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from bench.defenses.random_noise import draw_noise
from bench.defenses.shared.outputs import images_at_once, outputs_of
from bench.plugin import (
    Batch,
    Classifier,
    Defense,
    Field,
    Images,
    Report,
    Run,
    Services,
    Settings,
    Transform,
    TrialFailed,
    find,
    frozen,
    register,
    resumable,
    to_pixels,
)

REFERENCE_BATCH = 128  # the batch size that the paper's learning rates assume
RATES = (100.0, 50.0, 20.0, 10.0)  # the paper's grid, section 4.1
TRIED_ON = 512  # training images
UNCHANGED = 0.99  # share of them whose prediction a friendly noise leaves as it is


class FriendsSettings(Settings):
    """Published settings: FRIENDS section 4.1. The released code runs 30 steps with lr 100 and lambda 1."""

    noise: Literal["uniform", "bernoulli", "gaussian", "none"] = Field("bernoulli", description="random noise")
    mu: int = Field(16, ge=1, le=255, description="size of the random noise, levels of 255")
    zeta: int = Field(16, ge=1, le=127, description="bound of the friendly noise, levels of 255")
    start: int = Field(
        5, ge=0, le=10000, description="epoch at which the friendly noise is made (def_epoch); in transfer 0"
    )
    steps: int = Field(20, ge=1, le=1000, description="SGD steps on the friendly noise")
    lr: Annotated[float, Field(gt=0, le=1e5)] | Literal["search"] = Field(
        100.0,
        description="learning rate at a batch of 128, scaled to any other; search: the highest of 100, 50, 20 "
        "and 10 whose noise leaves 99 % of the network's predictions on 512 training images as they are",
    )
    lambda_: float = Field(1.0, ge=0, le=1e4, description="weight of the reward for large noise")
    objective: Literal["released", "paper"] = Field(
        "released",
        description="released: KL(f(x)||f(x+e)) - lambda mean(e^2); paper, eq. 3: KL(f(x+e)||f(x)) - lambda |e|_2",
    )
    batch: int = Field(
        0,
        ge=0,
        le=65536,
        description="images optimised at once (0: 128 on a CPU, 1024 on a GPU); affects results by rounding only",
    )
    source_model: str = Field("", description="architecture to optimise the noise on instead of the victim's (Table 6)")

    @model_validator(mode="after")
    def _known_source(self) -> FriendsSettings:
        if self.source_model:
            find("model", self.source_model)
        return self


def friendly_noise(
    model: Classifier,
    data: Images,
    settings: FriendsSettings,
    stream: torch.Generator,
    report: Report | None = None,
    note: Callable[[dict[str, float]], None] | None = None,
) -> Tensor:
    """FRIENDS, Algorithm 1: for each image the largest perturbation that leaves the model's output unchanged.

    data: uint8 images on the model's device, un-augmented. Returns int8 [n, 3, h, w], levels of 255 in [-zeta, zeta].
    The model is used in eval mode and left as it was; TrialFailed if its outputs are not finite. The loss is a sum over
    images divided by the reference batch of 128, so that every image takes the same steps whatever the batch size
    (eval mode makes images independent). note: hears of the `effect` of the noise, and of the learning rate.
    """
    if settings.lr == "search":
        settings = settings.model_copy(update={"lr": found_rate(model, data, settings, stream)})
    noise = _noise_of_all(model, data, settings, stream, report)
    if note is not None:
        note({"lr": float(settings.lr), **effect(model, data.images, noise, settings.zeta)})
    return noise


def effect(model: Classifier, images: Tensor, noise: Tensor, zeta: int) -> dict[str, float]:
    """What noise int8 [n, 3, h, w] does to images uint8 and to the network's outputs on them: what a defender can see.

    divergence: mean KL(f(x) || f(clip(x + e))); unchanged: share of predictions; size: mean |e|, levels of 255; at the
    bound: share of values with |e| = zeta.
    """
    chunk = images_at_once(images.device)
    moved = (images.to(torch.int16) + noise).clamp_(0, 255).to(torch.uint8)
    before, after = (F.log_softmax(outputs_of(model, some, chunk=chunk), dim=1) for some in (images, moved))
    return {
        "divergence": (before.exp() * (before - after)).sum(1).mean().item(),
        "unchanged": (before.argmax(1) == after.argmax(1)).float().mean().item(),
        "size": noise.abs().float().mean().item(),
        "at the bound": (noise.abs() == zeta).float().mean().item(),
    }


def found_rate(model: Classifier, data: Images, settings: FriendsSettings, stream: torch.Generator) -> float:
    """The first of RATES whose noise is friendly on at most TRIED_ON images, the highest rate first, since a higher one
    makes larger noise; if none is, the one that changes fewest predictions. All begin with the same noise, and `stream`
    ends where they began."""
    rows = torch.randperm(len(data), generator=stream, device=stream.device)[:TRIED_ON]
    some, state = data.subset(rows.to(data.images.device)), stream.get_state()
    unchanged: dict[float, float] = {}
    for rate in RATES:
        stream.set_state(state)
        noise = _noise_of_all(model, some, settings.model_copy(update={"lr": rate}), stream)
        unchanged[rate] = effect(model, some.images, noise, settings.zeta)["unchanged"]
        if unchanged[rate] >= UNCHANGED:
            break
    stream.set_state(state)
    return max(unchanged, key=lambda rate: unchanged[rate])


def _noise_of_all(
    model: Classifier,
    data: Images,
    settings: FriendsSettings,
    stream: torch.Generator,
    report: Report | None = None,
) -> Tensor:
    bound, device = settings.zeta / 255, data.images.device
    batch = settings.batch or images_at_once(device)
    state: dict[str, Any] = {"noise": torch.zeros_like(data.images, dtype=torch.int8), "done": 0, "stream": stream}
    kept = resumable("friendly noise", state, settings.as_dict(), data.images, dict(model.state_dict()))
    noise = state["noise"]
    with frozen(model):
        for start in range(state["done"], len(data), batch):
            images = data.images[start : start + batch]
            noise[start : start + len(images)] = _optimise(model, to_pixels(images), bound, settings, state["stream"])
            state["done"] = start + batch
            kept.step()
            if report is not None:
                report("friendly noise", min(start + batch, len(data)), len(data))
    return noise


def _optimise(
    model: Classifier, pixels: Tensor, bound: float, settings: FriendsSettings, stream: torch.Generator
) -> Tensor:
    with torch.no_grad():
        clean = F.log_softmax(model(pixels), dim=1)
    initial = min(8 / 255, bound)
    noise = torch.empty_like(pixels).uniform_(-initial, initial, generator=stream)
    velocity = torch.zeros_like(noise)
    for _ in range(settings.steps):
        leaf = noise.detach().requires_grad_(True)
        inside = leaf.clamp(-bound, bound)
        moved = F.log_softmax(model((pixels + inside).clamp(0, 1)), dim=1)
        if settings.objective == "released":
            divergence = (clean.exp() * (clean - moved)).sum()
            reward = inside.square().mean(dim=(1, 2, 3)).sum()
        else:
            divergence = (moved.exp() * (moved - clean)).sum()
            reward = inside.flatten(1).norm(dim=1).sum()
        loss = (divergence - settings.lambda_ * reward) / REFERENCE_BATCH
        slope = torch.autograd.grad(loss, leaf)[0]
        velocity.mul_(0.9).add_(slope)
        noise = leaf.detach() - float(settings.lr) * (slope + 0.9 * velocity)  # Nesterov
    if not torch.isfinite(noise).all():  # as int8 it would look like noise
        raise TrialFailed("friendly noise: the network's outputs are not finite; fix: a smaller train.lr")
    return torch.round(noise.clamp(-bound, bound) * 255).to(torch.int8)


@register("defense", "friends-u", noise="uniform")
@register("defense", "friends-b", noise="bernoulli")
@register("defense", "friends-g", noise="gaussian")
@register("defense", "friendly", noise="none", zeta=32)
class Friends(Defense):
    """FRIENDS (Liu, Yang, Mirzasoleiman, NeurIPS 2022), Algorithms 1 and 2; `friendly` is the friendly noise alone.

    At first x + random noise; from epoch `start` on clip(x + friendly noise) + random noise, the friendly noise being
    optimised once, on the network of that epoch: 5, and in transfer, whose features are trained already, 0 (section
    4.3). All of it before augmentation; the random noise is redrawn at every step and not clipped (released code).
    Assumes: the training set alone. Cost: 20 steps x 2 forward-equivalents over the training set (13 epochs' worth);
    about 1 with a small `source_model`. The noise is stored as int8.
    """

    Settings = FriendsSettings
    settings: FriendsSettings
    by_scenario = {"transfer": {"start": 0}}  # section 4.3

    def epoch(self, run: Run, epoch: int) -> None:
        run.side["noise"] = run.stream("noise")
        if epoch == self.settings.start:
            model, services = run.model, run.services
            assert services is not None
            if self.settings.source_model:
                epochs = max(self.settings.start, 1)
                model = services.fit(run.data, self.settings.source_model, epochs, "source")
            stream = run.stream("friendly")
            note = functools.partial(services.note, "friendly noise")
            run.side["friendly"] = friendly_noise(model, run.data, self.settings, stream, services.report, note)

    def attacker_view(self, data: Images, ids: Tensor, services: Services, stream: torch.Generator) -> Transform:
        """Friendly noise optimised once for `ids`, on a network that is trained for `start` epochs on `data`."""
        model = services.fit(data, self.settings.source_model or services.model, max(self.settings.start, 1), "source")
        images = data.subset(data.rows_of(ids))
        fixed = friendly_noise(model, images, self.settings, stream, services.report).float() / 255

        def transform(pixels: Tensor, stream: torch.Generator) -> Tensor:
            return self._noisy((pixels + fixed).clamp(0, 1), stream)

        return transform

    def _noisy(self, pixels: Tensor, stream: torch.Generator) -> Tensor:
        if self.settings.noise == "none":
            return pixels
        return pixels + draw_noise(pixels, self.settings.noise, self.settings.mu / 255, stream)

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        if stage != "pixel":
            return batch
        if "friendly" in run.side:
            fixed = run.side["friendly"][batch.rows].to(batch.pixels.dtype) / 255
            batch.pixels = (batch.pixels + fixed).clamp_(0, 1)
        batch.pixels = self._noisy(batch.pixels, run.side["noise"])
        return batch
