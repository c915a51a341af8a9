"""Lists of trials as poisoning-benchmark publishes them: pickled dictionaries, one per trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.exchange import unpickle
from bench.exchange.content import known_rows, whole, whole_numbers
from bench.exchange.files import Refused, read_bytes, refusing
from bench.foundation.errors import BadInput
from bench.science.dataset import Dataset
from bench.science.threat import Trial

KEYS = ("target class", "target index", "base class", "base indices")
MOST = 10_000


def read_setups(path: Path, dataset: Dataset, say: Callable[[str], None] = print) -> list[Trial]:
    """The trials of a poison_setups pickle, checked against the data set. say: reports dropped duplicates.

    Test images are counted as in the data set or, where that does not fit and they are files, by file name over all
    classes, which is how the benchmark counts TinyImageNet's.
    """
    content = unpickle.load(read_bytes(path.resolve()), f"'{path}'")
    if not isinstance(content, list | tuple) or not 0 < len(content) <= MOST:
        raise BadInput(f"'{path}' is not a list of 1 to {MOST} setups")
    names, ids = dataset.test_files, dataset.test.ids
    try:
        trials, remarks = _trials(path, content, dataset, ids)
    except BadInput as misfit:
        if not names:
            raise
        try:
            trials, remarks = _trials(path, content, dataset, ids[sorted(range(len(names)), key=names.__getitem__)])
        except BadInput:
            raise BadInput(
                f"{misfit}; counted by file name over all classes, test images do not fit either; fix: the whole data "
                "set that the setups were made for, with train_per_class=0 and test_per_class=0"
            ) from None
        remarks.append(f"'{path}': test images are counted by file name over all classes")
    for remark in remarks:
        say(remark)
    return trials


def _trials(path: Path, content: Sequence[Any], dataset: Dataset, counted: Tensor) -> tuple[list[Trial], list[str]]:
    """The trials, and remarks for a person. counted: int64 [n], test ids in the order in which setups count them."""
    trials, remarks = [], []
    for index, entry in enumerate(content):
        with refusing(f"'{path}', setup {index}"):
            trial, dropped = _trial(index, entry, dataset, counted)
        if dropped:
            remarks.append(f"'{path}', setup {index}: {dropped} duplicate base indices ignored")
        trials.append(trial)
    return trials, remarks


def _trial(index: int, entry: Any, dataset: Dataset, counted: Tensor) -> tuple[Trial, int]:
    """The trial, and how many duplicated bases were dropped."""
    missing = [key for key in KEYS if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise Refused(f"'{missing[0]}' is missing")
    source_class, target, target_class = (whole(entry[key], f"'{key}'") for key in KEYS[:3])
    given = whole_numbers(entry["base indices"], "base indices", len(dataset.train))
    bases = torch.tensor(list(dict.fromkeys(given.tolist())), dtype=torch.int64)
    train, test = dataset.train, dataset.test
    if not 0 <= target < len(counted):
        raise Refused(f"target index {target}; allowed: the test ids 0 to {len(counted) - 1}")
    target_id = counted[target : target + 1]
    label = int(test.labels[test.rows_of(target_id)])
    if label != source_class:
        raise Refused(f"test image {target} is of class {label}, not of target class {source_class}")
    if target_class == source_class or not len(bases):
        raise Refused("base class and target class are the same, or there are no base indices")
    labels = train.labels[known_rows(bases, train, "base index")]
    for place in torch.nonzero(labels != target_class).flatten().tolist()[:1]:
        raise Refused(
            f"training image {int(bases[place])} is of class {int(labels[place])}, not of base class {target_class}"
        )
    return Trial(index, target_id, source_class, target_class, bases), len(given) - len(bases)
