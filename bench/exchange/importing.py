"""What was read, held against the data set: only clean-label poisons within eps, of a known trial, come in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.exchange.files import Refused, refusing
from bench.exchange.found import Found, known_rows
from bench.science.dataset import Dataset, Images
from bench.science.poisons import NOT_A_TEST_IMAGE, Poisons, Shown
from bench.science.threat import Trial


@dataclass(frozen=True)
class Report:
    """n: poisons; max_change: largest change of a pixel in levels of 255; duplicates: poisons dropped because their
    training image had one already; pixels_clipped: values that were outside 0..255."""

    n: int
    max_change: int
    duplicates: int = 0
    pixels_clipped: int = 0
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        parts = [f"{self.n} poisons, largest change {self.max_change}/255"]
        if self.duplicates:
            parts.append(f"{self.duplicates} dropped that poison a image again")
        if self.pixels_clipped:
            parts.append(f"{self.pixels_clipped} pixels clipped to 0..255")
        return "; ".join((*parts, *self.notes))


def interpret(
    found: Found, dataset: Dataset, index: int, eps: int, trial: Trial | None = None
) -> tuple[Poisons, Trial, Report]:
    """Poisons, their trial `index` and a report; BadInput unless they are clean-label poisons within eps.

    trial: who is attacked, for formats that do not say; where both say, they must agree on the classes. The result's
    base_ids are the poisons' ids. Its target_ids are empty where the target is no test image; see `shown` then.
    """
    with refusing(f"'{found.path}'"):
        kept = _first_of_each(found.ids)
        rows = known_rows(found.ids, dataset.train, "the training id of poison")
        adversarial = _target_class(found, dataset.train.labels[rows], trial)
        _check_change(found.images, dataset.train.images[rows], eps)
        target_ids, source_class, shown = _target(found, dataset, trial)
        if not 0 <= source_class < len(dataset.classes) or source_class == adversarial:
            raise Refused(f"the target's source class is {source_class}, the target class {adversarial}")
        if trial is not None and trial.source_class != source_class:
            raise Refused(f"the target is of class {source_class}, but of class {trial.source_class} in the trial")
    ids = found.ids[kept]
    made = {"imported": found.format} | ({"made": found.provenance} if found.provenance else {})
    poisons = Poisons(found.images[kept], ids, found.labels[kept], made, shown)
    dropped = len(found.ids) - len(ids)
    report = Report(len(ids), poisons.distance(dataset.train), dropped, found.pixels_clipped, found.notes)
    return poisons, Trial(index, target_ids, source_class, adversarial, ids), report


def _first_of_each(ids: Tensor) -> Tensor:
    """The rows where an id stands for the first time."""
    first: dict[int, int] = {}
    for row, name in enumerate(ids.tolist()):
        first.setdefault(name, row)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def _target_class(found: Found, base_labels: Tensor, trial: Trial | None) -> int:
    if not len(found.ids):
        raise Refused("it holds no poison: all images are clean")
    if not len(found.ids) == len(found.images) == len(found.labels):
        raise Refused(f"{len(found.images)} images, {len(found.ids)} ids and {len(found.labels)} labels of poisons")
    for row in torch.nonzero(found.labels != base_labels).flatten().tolist()[:1]:
        raise Refused(
            f"poison {row} has label {int(found.labels[row])}, but its training image {int(found.ids[row])} has "
            f"{int(base_labels[row])}: not clean-label, or another data set"
        )
    classes = found.labels.unique().tolist()
    if len(classes) > 1:
        raise Refused(f"poisons of the classes {classes[0]} and {classes[1]}; allowed: the target class only")
    said = {"the file": found.target_class, "the trial": trial.target_class if trial else None}
    for who, wanted in said.items():
        if wanted is not None and wanted != classes[0]:
            raise Refused(f"the poisons are of class {classes[0]}, but the target class of {who} is {wanted}")
    return classes[0]


def _check_change(images: Tensor, bases: Tensor, eps: int) -> None:
    if images.shape != bases.shape or images.dtype != torch.uint8:
        raise Refused(f"poisons are {images.dtype} {tuple(images.shape[1:])}, the data set is {tuple(bases.shape[1:])}")
    change = (images.short() - bases.short()).abs().flatten(1).amax(1)
    for row in torch.nonzero(change > eps).flatten().tolist()[:1]:
        raise Refused(
            f"poison {row} moves a pixel by {int(change[row])}/255, more than eps = {eps}/255; fix: "
            f"--set threat.eps={int(change.max())}"
        )


def _target(found: Found, dataset: Dataset, trial: Trial | None) -> tuple[Tensor, int, Shown | None]:
    """Test ids of the targets, their source class, and the images that are shown instead."""
    if found.target_ids is not None and found.target_labels is not None:
        ids, label = found.target_ids, int(found.target_labels[0])
        _check_test_ids(ids[ids != NOT_A_TEST_IMAGE], label, dataset.test)
        if found.shown is None:
            if not len(ids):
                raise Refused("it holds no target")
            return ids, label, None
        shown_ids = found.shown_ids if found.shown_ids is not None else torch.empty(0, dtype=torch.int64)
        _check_test_ids(shown_ids[shown_ids != NOT_A_TEST_IMAGE], label, dataset.test)
        return ids, label, Shown(found.shown, shown_ids, found.patch, found.places)
    if found.target_images is not None and found.target_labels is not None:
        if len(found.target_labels.unique()) > 1:
            raise Refused("targets of several classes; allowed: one")
        label = int(found.target_labels[0])
        ids = torch.tensor([_test_id(image, label, dataset.test) for image in found.target_images])
        known = ids[ids != NOT_A_TEST_IMAGE]
        if found.shown is not None:
            return known, label, Shown(found.shown, ids, found.patch, found.places)
        return known, label, None if len(known) == len(ids) else Shown(found.target_images, ids)
    if found.shown is not None and found.shown_label is not None:
        unknown = torch.full((len(found.shown),), NOT_A_TEST_IMAGE)
        return torch.empty(0, dtype=torch.int64), found.shown_label, Shown(found.shown, unknown)
    if trial is None:
        raise Refused(f"the format '{found.format}' holds no target; fix: give the list of trials (setups) with it")
    return trial.target_ids, trial.source_class, None


def _check_test_ids(ids: Tensor, label: int, test: Images) -> None:
    if not torch.isin(ids, test.ids).all() or bool((test.labels[test.rows_of(ids)] != label).any()):
        raise Refused(f"a target is no test image of class {label}")


def _test_id(image: Tensor, label: int, test: Images) -> int:
    """The first test image that is this one, of that class; -1 if there is none with these pixels."""
    same = torch.nonzero((test.images == image).flatten(1).all(1)).flatten()
    fitting = same[test.labels[same] == label]
    if len(same) and not len(fitting):
        row = int(same[0])
        raise Refused(f"the target is test image {int(test.ids[row])} of class {int(test.labels[row])}, not {label}")
    return int(test.ids[fitting[0]]) if len(fitting) else NOT_A_TEST_IMAGE
