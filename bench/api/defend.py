"""A defense on a person's own images, without a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bench.api.own_images import as_images, as_uint8, of_dataset
from bench.api.own_model import as_classifier
from bench.foundation.devices import choose_devices
from bench.foundation.errors import BadInput
from bench.foundation.guests import guest
from bench.foundation.settings import build
from bench.science.classifier import Classifier, build_model
from bench.science.dataset import Dataset, Images, check
from bench.science.evaluation import Predictor, decide
from bench.science.seeds import derive
from bench.science.selection import SelectedDefense, select_defenses
from bench.science.services import Services, WithoutCache
from bench.science.training import Recipe, Trained, train
from bench.science.victim import train_behind

EPOCHS = 40
OWN = "your own"
"""The name of a network that is no registered model."""

NEEDS = {
    "poison_rate": ("the poison rate", "0.01"),
    "clean_holdout": ("images known to be clean", "(images, labels)"),
    "public": ("images from elsewhere", "(images, labels)"),
}


def defend(
    images: Any,
    labels: Any = None,
    defense: str = "none",
    *,
    model: str | nn.Module = "convnet",
    epochs: int | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    classes: int | Sequence[str] | None = None,
    clean_holdout: tuple[Any, Any] | None = None,
    poison_rate: float | None = None,
    public: tuple[Any, Any] | None = None,
) -> Defended:
    """Train a classifier behind a defense on images of your own, poisoned or not.

    images: array or tensor [n, 3, h, w] or [n, h, w, 3], square; uint8, or float in [0, 1]. labels: whole numbers [n].
    Or images: a data set as torchvision has them, of pairs (image, label), and no labels.
    defense: a name, `friends-b[mu=8]`, `epic-0.1+friends-b`, or a plug-in file. model: a registered name, or a network
    of your own from normalised pixels to logits that ends in an `nn.Linear`; it is copied, and trained from the weights
    it has.
    epochs, recipe: how it is trained; recipe has the settings of `train` in a protocol, such as {"lr": 0.05}. Default:
    40 epochs, one-cycle SGD, shifts of up to an eighth of the side, mirroring. settings: of the defense, as {"mu": 8}.
    seed: the same seed gives the same classifier on one kind of device. classes: their number or names (default: as
    many as there are labels).

    What some defenses must know: clean_holdout: (images, labels) known to be clean; poison_rate: share of the images
    that may be poisoned; public: (images, labels) from elsewhere, to train an external model on. A defense is handed
    only what it declares that it needs.

    Returns a classifier with `predict(images)` and `scores(pixels)`. BadInput, before any training, for what cannot be
    done; TrialFailed when the training fails (the loss is not finite, the defense drops a whole class).

        >>> classifier = bench.defend(images, labels, "friends-b", epochs=20)
        >>> accuracy = (classifier.predict(test_images) == test_labels).float().mean()
    """
    if not isinstance(model, str | nn.Module):
        raise BadInput(f"model: {type(model).__name__}; allowed: a registered name, or a torch.nn.Module")
    dataset = _dataset(images, labels, classes)
    chosen, knowledge = _selected(defense, settings or {}), Knowledge.of(dataset, poison_rate, clean_holdout, public)
    size = dataset.train.images.shape[2]
    _check_knowledge(chosen, knowledge, size)
    with guest():
        made = _Training(dataset, model, _recipe(recipe, epochs, size), seed, choose_devices(device)[0])
        return made.behind(chosen, knowledge)


class Defended:
    """A classifier trained behind a defense.

    networks: the trained networks in eval mode, in the order of the defense's trainings; notes: what the defense told
    on the way; kept_ids: int64, rows of the images that it trained on and did not come to suspect.
    """

    def __init__(
        self, predictor: Predictor, trained: Sequence[Trained], device: str, notes: dict[str, Any], kept_ids: Tensor
    ) -> None:
        self.predictor, self.device, self.notes, self.kept_ids = predictor, device, notes, kept_ids
        self.networks = [each.model for each in trained]

    def predict(self, images: Any) -> Tensor:
        """Classes, int64 [n] on the CPU, of images as `defend` takes them; -1 where the defense refuses an image."""
        return decide(self.predictor, as_uint8(images), self.device)[1]

    def scores(self, pixels: Tensor) -> Tensor:
        """Scores [n, classes] of pixels [n, 3, h, w] in [0, 1]; the largest wins."""
        return self.predictor.scores(pixels.to(self.device))


@dataclass(frozen=True)
class Knowledge:
    """What a defender knows beyond the training set."""

    poison_rate: float | None
    clean_holdout: Images | None
    public: Images | None

    @classmethod
    def of(cls, dataset: Dataset, poison_rate: float | None, clean_holdout: Any, public: Any) -> Knowledge:
        first, classes = len(dataset.train), len(dataset.classes)
        return cls(
            poison_rate,
            as_images(clean_holdout, "clean_holdout", first, classes) if clean_holdout is not None else None,
            as_images(public, "public", 0) if public is not None else None,
        )

    def public_images(self) -> Images:
        if self.public is None:
            raise BadInput("the defense asks for public images; fix: public=(images, labels)")
        return self.public


@dataclass(frozen=True)
class _Training:
    """Trains on one data set with one seed; it is the `fit` of Services."""

    dataset: Dataset
    model: str | nn.Module
    recipe: Recipe
    seed: int
    device: str
    notes: dict[str, Any] = field(default_factory=dict)

    def start(self, seed: int, model: str = OWN) -> Classifier:
        size, classes = self.dataset.train.images.shape[2], len(self.dataset.classes)
        normalisation = self.dataset.normalisation
        if model == OWN and isinstance(self.model, nn.Module):
            return as_classifier(self.model, classes, size, normalisation).to(self.device)
        name = str(self.model) if model == OWN else model
        return build_model(name, classes=classes, size=size, normalisation=normalisation, seed=seed, device=self.device)

    def __call__(self, data: Images, model: str, epochs: int, *names: str | int) -> Classifier:
        recipe, seed = self.recipe.model_copy(update={"epochs": epochs}), derive(self.seed, "fit", model, *names)
        return train(self.start(seed, model), data.to(self.device), recipe, seed=seed).model

    def behind(self, chosen: SelectedDefense, knowledge: Knowledge) -> Defended:
        services = Services(
            self.recipe, len(self.dataset.classes), self, lambda *_: None,
            self.model if isinstance(self.model, str) else OWN,
            derive(self.seed, "defense", chosen.label), WithoutCache(), self.notes.__setitem__,
            poison_rate=knowledge.poison_rate,
            clean_holdout=knowledge.clean_holdout and knowledge.clean_holdout.to(self.device),
            public=lambda: knowledge.public_images().to(self.device),
        ).only(chosen.needs)  # fmt: skip
        instance, data = chosen.new(), self.dataset.train.to(self.device)
        self.start(0)  # BadInput for an unknown model, or one that cannot take images of this size
        trained, kept_ids = train_behind(instance, data, self.recipe, self.start, seed=self.seed, services=services)
        return Defended(instance.finish(trained, services), trained, self.device, self.notes, kept_ids)


def _dataset(images: Any, labels: Any, classes: int | Sequence[str] | None) -> Dataset:
    training = as_images((images, labels) if labels is not None else of_dataset(images), "defend", 0)
    fewest = int(training.labels.max()) + 1
    count = fewest if classes is None else classes
    names = tuple(map(str, range(count))) if isinstance(count, int) else tuple(count)
    if len(names) < fewest:
        raise BadInput(f"classes: {len(names)}, but labels go up to {fewest - 1}; allowed: at least {fewest}")
    return check(Dataset("your own", names, training, training))


def _recipe(recipe: Recipe | Mapping[str, Any] | None, epochs: int | None, size: int) -> Recipe:
    values = dict(recipe or {})
    if not isinstance(recipe, Recipe):
        values = {"epochs": EPOCHS, "schedule": "one-cycle", "shift": size // 8, **values}
    if epochs is not None:
        values["epochs"] = epochs
    made = build(Recipe, values, "recipe")
    if made.shift >= size:
        raise BadInput(f"recipe.shift: {made.shift} pixels on images of {size}; allowed: less than {size}")
    return made


def _selected(defense: str, settings: Mapping[str, Any]) -> SelectedDefense:
    (chosen,) = select_defenses([defense], None, [(f"defense.{name}", value) for name, value in settings.items()])
    chosen.external  # noqa: B018  (BadInput where a package is missing)
    return chosen


def _check_knowledge(chosen: SelectedDefense, knowledge: Knowledge, size: int) -> None:
    """BadInput where the defense needs to know more, or cannot take images of this size."""
    chosen.asked.must_take(size)
    parts = chosen.parts or (chosen,)
    needed = {
        "poison_rate": any("poison_rate" in p.make.needs and not getattr(p.settings, "rate", None) for p in parts),
        "clean_holdout": "clean_holdout" in chosen.needs,
        "public": chosen.asked.wants_public,
    }
    for name, is_needed in needed.items():
        value = getattr(knowledge, name)
        if is_needed and value is None:
            what, example = NEEDS[name]
            raise BadInput(f"defense '{chosen.label}' needs {what}; fix: {name}={example}")
        if isinstance(value, Images) and (side := value.images.shape[2]) != size:
            raise BadInput(f"{name}: images of {side} pixels; allowed: {size}, as the training images")
    if (rate := knowledge.poison_rate) is not None and not 0 < rate < 1:
        raise BadInput(f"poison_rate {rate}; allowed: more than 0, less than 1")
