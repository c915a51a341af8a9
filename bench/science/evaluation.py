"""The numbers of a trial: success and clean accuracy, computed here only. Intervals: `bench.foundation.statistics`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.science.dataset import Dataset
from bench.science.poisons import NOT_A_TEST_IMAGE, Shown
from bench.science.threat import Trial
from bench.science.training import to_pixels

REJECTED = -1
"""The class that a rejected image is predicted as: never the right one, never the adversarial one."""


class Predictor(Protocol):
    """What a defense hands back: a classifier of images. May also have

    rejects(pixels [n, 3, h, w] in [0, 1]) -> bool [n]: images that it refuses to classify;
    variants: dict[str, Predictor]: other ways to use what was trained, judged beside it.
    """

    def scores(self, pixels: Tensor) -> Tensor:
        """Scores [n, classes] of pixels [n, 3, h, w] in [0, 1]; the largest wins, ties to the lower class."""
        ...


class ModelPredictor:
    """A trained network as it is."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.eval()

    def scores(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).float()


@torch.no_grad()
def predict(predictor: Predictor, images: Tensor, device: torch.device | str, chunk: int = 1000) -> Tensor:
    """Scores [n, classes] on the CPU for uint8 images, un-augmented."""
    parts = [predictor.scores(to_pixels(part.to(device))).float().cpu() for part in images.split(chunk)]
    scores = torch.cat(parts)
    if not torch.isfinite(scores).all():
        raise ValueError("the predictor gives scores that are not finite")
    return scores


def decide(predictor: Predictor, images: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Scores [n, classes] and predicted classes [n] (REJECTED where it refuses), on the CPU, for uint8 images."""
    scores = predict(predictor, images, device)
    predictions = scores.argmax(1)
    rejects = getattr(predictor, "rejects", None)
    if rejects is not None:
        parts = [rejects(to_pixels(part.to(device))).cpu() for part in images.split(1000)]
        predictions[torch.cat(parts)] = REJECTED
    return scores, predictions


@dataclass(frozen=True)
class BackdoorRates:
    """Three success rates of a trigger, because papers count differently.

    asr_all: share of all triggered images that are predicted adversarial (Sleeper Agent);
    asr_excluding: an image whose un-triggered twin is already misclassified never counts as a success, but stays in
    the denominator (diffusion-denoising paper); asr_conditional: only images whose un-triggered twin is classified
    right are counted at all. base_rate: share of un-triggered images that are predicted adversarial anyway.
    """

    asr_all: float
    asr_excluding: float
    asr_conditional: float
    base_rate: float
    n: int
    n_conditional: int


def backdoor_rates(clean: Tensor, triggered: Tensor, source_class: int, target_class: int) -> BackdoorRates:
    """The three rates from predicted classes [n] without (`clean`) and with the trigger, for images of `source_class`.

    asr_conditional is 0 with n_conditional 0 when no un-triggered image is classified right.
    """
    if clean.shape != triggered.shape or clean.ndim != 1 or len(clean) == 0:
        raise ValueError("need two equal, non-empty lists of predictions")
    right = clean == source_class
    hit = triggered == target_class
    n, kept = len(clean), int(right.sum())
    both = int((hit & right).sum())
    return BackdoorRates(
        asr_all=int(hit.sum()) / n,
        asr_excluding=both / n,
        asr_conditional=both / kept if kept else 0.0,
        base_rate=int((clean == target_class).sum()) / n,
        n=n,
        n_conditional=kept,
    )


@dataclass(frozen=True)
class Outcome:
    """What one victim did. success: share of the target images predicted as the target class at the final epoch
    (0 or 1 with one target; another wrong class is a failure); clean_accuracy: over all test images; a rejected
    image counts as neither. target_margin: mean of score(adversarial) - best other score, rejected or not. rejected,
    rejected_shown: share of all test images, and of the target (or shown) images, that were rejected."""

    success: float
    clean_accuracy: float
    target_predictions: list[int]
    target_margin: float
    backdoor: BackdoorRates | None = None
    rejected: float = 0.0
    rejected_shown: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    predictor: Predictor, dataset: Dataset, trial: Trial, device: torch.device | str, shown: Shown | None = None
) -> Outcome:
    """Judge a predictor on a trial.

    shown: images that the attacker shows instead of the trial's targets; `success` is then the share of them that is
    predicted adversarial. When they are test images with a trigger, the three backdoor rates are reported too, and
    `success` is asr_all.
    """
    scores, predictions = decide(predictor, dataset.test.images, device)
    clean_accuracy = int((predictions == dataset.test.labels).sum()) / len(predictions)
    if shown is None:
        rows = dataset.test.rows_of(trial.target_ids)
        at_target, hit = scores[rows], predictions[rows]
    else:
        at_target, hit = decide(predictor, shown.images, device)
    rates = None
    if shown is not None and shown.patch is not None and bool((shown.ids != NOT_A_TEST_IMAGE).all()):
        twins = predictions[dataset.test.rows_of(shown.ids)]
        rates = backdoor_rates(twins, hit, trial.source_class, trial.target_class)
    others = at_target.clone()
    others[:, trial.target_class] = -torch.inf
    margin = (at_target[:, trial.target_class] - others.max(1).values).mean().item()
    success = int((hit == trial.target_class).sum()) / len(hit)
    rejected, rejected_shown = (float((made == REJECTED).float().mean()) for made in (predictions, hit))
    return Outcome(success, clean_accuracy, hit.tolist(), margin, rates, rejected, rejected_shown)


@dataclass(frozen=True)
class FilterQuality:
    """What a defense left out of every training, held against the true poisons.

    dropped: samples left out; poisons_dropped: poisons among them; precision: their share of the dropped; recall: their
    share of all poisons. A rate is None where it has no denominator.
    """

    dropped: int
    poisons_dropped: int
    precision: float | None
    recall: float | None


def filter_quality(all_ids: Tensor, used_ids: Tensor, poison_ids: Tensor) -> FilterQuality:
    """all_ids: of the training set; used_ids: of the samples that some training saw; poison_ids: of the true
    poisons."""
    dropped = all_ids[~torch.isin(all_ids, used_ids)]
    caught = int(torch.isin(dropped, poison_ids).sum())
    return FilterQuality(
        dropped=len(dropped),
        poisons_dropped=caught,
        precision=caught / len(dropped) if len(dropped) else None,
        recall=caught / len(poison_ids) if len(poison_ids) else None,
    )
