"""Checks what was read against the data set: only clean-label poisons within eps, of a known trial, are let in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.exchange.content import Content, known_rows
from bench.exchange.files import Refused, refusing
from bench.science.dataset import Dataset, Images
from bench.science.poisons import NOT_A_TEST_IMAGE, Poisons, Shown
from bench.science.threat import Trial


@dataclass(frozen=True)
class ImportSummary:
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
            parts.append(f"{self.duplicates} dropped that poison the same image again")
        if self.pixels_clipped:
            parts.append(f"{self.pixels_clipped} pixels clipped to 0..255")
        return "; ".join((*parts, *self.notes))


def interpret(
    content: Content, dataset: Dataset, index: int, eps: int, trial: Trial | None = None
) -> tuple[Poisons, Trial, ImportSummary]:
    """Poisons, their trial `index` and a summary; BadInput unless they are clean-label poisons within eps.

    trial: who is attacked, for formats that do not say; where both say, they must agree on the classes. The result's
    base_ids are the poisons' ids. Its target_ids are empty where the target is no test image; see `shown` then.
    """
    with refusing(f"'{content.path}'"):
        first_rows = _first_of_each(content.ids)
        rows = known_rows(content.ids, dataset.train, "the training id of poison")
        target_class = _target_class(content, dataset.train.labels[rows], trial)
        _check_change(content.images, dataset.train.images[rows], eps)
        target_ids, source_class, shown = _target(content, dataset, trial)
        if not 0 <= source_class < len(dataset.classes) or source_class == target_class:
            raise Refused(f"the target's source class is {source_class}, the target class {target_class}")
        if trial is not None and trial.source_class != source_class:
            raise Refused(f"the target is of class {source_class}, but of class {trial.source_class} in the trial")
    ids = content.ids[first_rows]
    made = {"imported": content.format} | ({"made": content.provenance} if content.provenance else {})
    poisons = Poisons(content.images[first_rows], ids, content.labels[first_rows], made, shown)
    dropped = len(content.ids) - len(ids)
    summary = ImportSummary(len(ids), poisons.distance(dataset.train), dropped, content.pixels_clipped, content.notes)
    return poisons, Trial(index, target_ids, source_class, target_class, ids), summary


def _first_of_each(ids: Tensor) -> Tensor:
    """The rows where an id stands for the first time."""
    first: dict[int, int] = {}
    for row, name in enumerate(ids.tolist()):
        first.setdefault(name, row)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def _target_class(content: Content, base_labels: Tensor, trial: Trial | None) -> int:
    if not len(content.ids):
        raise Refused("it holds no poisons: all images are clean")
    if not len(content.ids) == len(content.images) == len(content.labels):
        raise Refused(
            f"{len(content.images)} images, {len(content.ids)} ids and {len(content.labels)} labels of poisons"
        )
    for row in torch.nonzero(content.labels != base_labels).flatten().tolist()[:1]:
        raise Refused(
            f"poison {row} has label {int(content.labels[row])}, but its training image {int(content.ids[row])} has "
            f"{int(base_labels[row])}: not clean-label, or another data set"
        )
    classes = content.labels.unique().tolist()
    if len(classes) > 1:
        raise Refused(f"poisons of the classes {classes[0]} and {classes[1]}; allowed: the target class only")
    claims = {"the file": content.target_class, "the trial": trial.target_class if trial else None}
    for source, label in claims.items():
        if label is not None and label != classes[0]:
            raise Refused(f"the poisons are of class {classes[0]}, but the target class of {source} is {label}")
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


def _target(content: Content, dataset: Dataset, trial: Trial | None) -> tuple[Tensor, int, Shown | None]:
    """Test ids of the targets, their source class, and the images that are shown instead."""
    if content.target_ids is not None and content.target_labels is not None:
        ids, label = content.target_ids, int(content.target_labels[0])
        _check_test_ids(ids, label, dataset.test)
        if content.shown is None:
            if not len(ids):
                raise Refused("it holds no target")
            return ids, label, None
        shown_ids = content.shown_ids if content.shown_ids is not None else torch.empty(0, dtype=torch.int64)
        _check_test_ids(shown_ids[shown_ids != NOT_A_TEST_IMAGE], label, dataset.test)
        return ids, label, Shown(content.shown, shown_ids, content.patch, content.places)
    if content.target_images is not None and content.target_labels is not None:
        if len(content.target_labels.unique()) > 1:
            raise Refused("targets of several classes; allowed: one")
        label = int(content.target_labels[0])
        ids = torch.tensor([_test_id(image, label, dataset.test) for image in content.target_images])
        test_ids = ids[ids != NOT_A_TEST_IMAGE]
        if content.shown is not None:
            return test_ids, label, Shown(content.shown, ids, content.patch, content.places)
        return test_ids, label, None if len(test_ids) == len(ids) else Shown(content.target_images, ids)
    if content.shown is not None and content.shown_label is not None:
        unknown = torch.full((len(content.shown),), NOT_A_TEST_IMAGE)
        return torch.empty(0, dtype=torch.int64), content.shown_label, Shown(content.shown, unknown)
    if trial is None:
        raise Refused(f"the format '{content.format}' holds no target; fix: --setups FILE, the list of its trials")
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
