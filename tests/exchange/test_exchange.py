"""Exchange formats: what is written comes back, whatever containers and protocols other tools use."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.datasets.cifar10 import SubsetSettings as FolderSettings
from bench.datasets.folder import load as folder_of
from bench.exchange import formats
from bench.exchange.formats import named, read_any, write
from bench.exchange.importing import interpret
from bench.exchange.setups import read_setups
from bench.foundation.errors import BadInput
from bench.foundation.registry import names
from bench.science.dataset import Dataset, Place
from bench.science.poisons import Poisons, Shown
from bench.science.threat import Trial
from bench.science.trigger import Trigger, colour_patch
from tests.folders import VAL, write_tiny_imagenet
from tests.setups import write_setups

EPS = 8


@pytest.fixture
def dataset(numbered_dataset: Dataset) -> Dataset:
    return numbered_dataset


@pytest.fixture
def trial(dataset: Dataset) -> Trial:
    bases = torch.nonzero(dataset.train.labels == 1).flatten()[[5, 2, 7, 0]]
    return Trial(0, torch.nonzero(dataset.test.labels == 2).flatten()[3:4], 2, 1, bases)


@pytest.fixture
def poisons(dataset: Dataset, trial: Trial) -> Poisons:
    bases = dataset.train.subset(trial.base_ids)
    delta = torch.rand(bases.images.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return Poisons.from_perturbation(bases, delta * EPS / 255, EPS, {"attack": "test"})


@pytest.fixture
def triggered(dataset: Dataset, poisons: Poisons) -> Poisons:
    """The same poisons as of a backdoor, with three patched images of class 2."""
    trigger = Trigger(colour_patch(3, 0), "random")
    ids = torch.nonzero(dataset.test.labels == 2).flatten()[[4, 1, 6]]
    places = trigger.places(3, 8, 0, "here")
    shown = Shown(trigger.paste(dataset.test.images[ids], places), ids, trigger.patch, places)
    return replace(poisons, shown=shown)


def assert_same(found: Poisons, wanted: Poisons) -> None:
    """The same poisons, in any order."""
    a, b = torch.argsort(found.ids), torch.argsort(wanted.ids)
    for name in ("ids", "labels", "images"):
        assert torch.equal(getattr(found, name)[a], getattr(wanted, name)[b]), name


@pytest.mark.parametrize("name", names("format"))
def test_what_is_written_comes_back(
    name: str, dataset: Dataset, poisons: Poisons, trial: Trial, tmp_path: Path
) -> None:
    for number in (0, 1, 10):
        notes = write(tmp_path / "out" / str(number), name, poisons, trial, dataset)
        assert bool(notes) != named(name).holds_target
    (tmp_path / "out" / "notes").mkdir()
    found = read_any(tmp_path / "out", "auto", dataset)
    assert list(found) == [0, 1, 10]
    given = None if named(name).holds_target else trial
    back, its_trial, report = interpret(found[10], dataset, 10, EPS, given)
    assert_same(back, poisons)
    assert (its_trial.index, its_trial.source_class, its_trial.target_class) == (10, 2, 1)
    assert torch.equal(its_trial.target_ids, trial.target_ids) and torch.equal(its_trial.base_ids, back.ids)
    assert back.shown is None and report.duplicates == report.pixels_clipped == 0
    assert report.max_change == poisons.distance(dataset.train) and f"{len(poisons.ids)} poisons" in report.line()
    back.check(dataset.train, EPS, its_trial.base_ids)
    # The same folder under the name of its format, and its one file, read the same.
    [(number, again)] = read_any(
        tmp_path / "out" / "1", "benchmark" if name == "friendly-noise" else name, dataset
    ).items()
    assert number == 0 and torch.equal(again.images, found[1].images)
    files = list((tmp_path / "out" / "1").iterdir())
    if len(files) == 1:
        assert torch.equal(read_any(files[0], "auto", dataset)[0].ids, again.ids)


@pytest.mark.parametrize("name", names("format"))
def test_triggers_come_back(name: str, dataset: Dataset, triggered: Poisons, trial: Trial, tmp_path: Path) -> None:
    shown = triggered.shown
    assert shown is not None and shown.patch is not None and shown.places is not None
    notes = write(tmp_path / "out", name, triggered, replace(trial, target_ids=shown.ids), dataset)
    given = None if named(name).holds_target else trial
    back, its_trial, _ = interpret(read_any(tmp_path / "out", "auto", dataset)[0], dataset, 0, EPS, given)
    assert_same(back, triggered)
    assert (its_trial.source_class, its_trial.target_class) == (2, 1)
    if given is not None:
        assert back.shown is None
        return
    assert back.shown is not None
    kept = {"benchmark": 1}.get(name, 3)
    assert torch.equal(back.shown.images, shown.images[:kept]) and len(back.shown.ids) == kept
    if name == "native":
        assert torch.equal(back.shown.ids, shown.ids) and torch.equal(its_trial.target_ids, shown.ids)
    elif name == "benchmark":
        assert "first of 3" in notes[0]
        assert torch.equal(back.shown.ids, shown.ids[:1]) and torch.equal(its_trial.target_ids, shown.ids[:1])
    else:
        assert back.shown.ids.tolist() == [-1] * 3 and len(its_trial.target_ids) == 0
    if name in ("native", "benchmark"):
        assert back.shown.patch is not None and torch.equal(back.shown.patch, shown.patch)
        assert back.shown.places is not None and torch.equal(back.shown.places, shown.places[:kept])
    # What came in can go out again.
    write(tmp_path / "again", name, back, its_trial, dataset)
    again = interpret(read_any(tmp_path / "again", "auto", dataset)[0], dataset, 0, EPS)[0]
    assert again.shown is not None and torch.equal(again.shown.images, back.shown.images)


@pytest.mark.parametrize("name", ["benchmark", "friendly-noise", "metapoison"])
def test_a_target_that_is_no_test_image_is_shown(
    name: str, dataset: Dataset, poisons: Poisons, trial: Trial, tmp_path: Path
) -> None:
    strange = torch.full((1, 3, 8, 8), 9, dtype=torch.uint8)
    given = replace(poisons, shown=Shown(strange, torch.tensor([-1])))
    write(tmp_path / "out", name, given, replace(trial, target_ids=trial.target_ids[:0]), dataset)
    back, its_trial, _ = interpret(read_any(tmp_path / "out", "auto", dataset)[0], dataset, 0, EPS)
    assert back.shown is not None and torch.equal(back.shown.images, strange) and back.shown.ids.tolist() == [-1]
    assert len(its_trial.target_ids) == 0 and its_trial.source_class == 2


CONTAINERS: dict[str, Callable[[list[int]], Any]] = {
    "list": list, "tuple": tuple, "ndarray": np.array, "int32": np.int32, "tensor": torch.tensor,  # type: ignore[dict-item]
    "numpy scalars": lambda ids: list(map(np.int64, ids)),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("container", CONTAINERS)
def test_folders_of_other_tools_are_read(
    container: str, protocol: int, dataset: Dataset, triggered: Poisons, trial: Trial, tmp_path: Path
) -> None:
    """Labels as numpy numbers, ids in any container, a patch as tensor or array, a file of norms beside them."""
    shown = triggered.shown
    assert shown is not None and shown.patch is not None

    def dump(name: str, value: Any) -> None:
        (tmp_path / name).write_bytes(pickle.dumps(value, protocol))

    as_pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in triggered.images]
    clean = Image.fromarray(dataset.test.images[shown.ids[0]].permute(1, 2, 0).numpy())
    patch = shown.patch / 255 if protocol < 4 else (shown.patch / 255).numpy().astype(np.float64)
    dump("poisons.pickle", [(one, np.int64(1) if protocol == 3 else 1) for one in as_pil])
    dump("base_indices.pickle", CONTAINERS[container](triggered.ids.tolist()))
    dump("target.pickle", (clean, 2, patch, [np.int64(2), 3]))
    dump("perturbation_norms.pickle", [0.1] * 4)
    found = read_any(tmp_path, "auto", dataset)[0]
    back, its_trial, _ = interpret(found, dataset, 0, EPS)
    assert torch.equal(back.images, triggered.images) and torch.equal(back.ids, triggered.ids)
    assert back.shown is not None and back.shown.places is not None and back.shown.places.tolist() == [[2, 3]]
    assert back.shown.patch is not None and torch.equal(back.shown.patch, shown.patch)
    assert torch.equal(back.shown.images[0, :, 3:6, 2:5], shown.patch)
    assert its_trial.target_ids.tolist() == shown.ids[:1].tolist()


def test_a_single_source_is_read(dataset: Dataset, triggered: Poisons, trial: Trial, tmp_path: Path) -> None:
    write(tmp_path / "out", "friendly-noise", triggered, trial, dataset)
    sources = pickle.loads((tmp_path / "out" / "source.pickle").read_bytes())
    assert [label for _, label in sources] == [2, 2, 2] and sources[0][0].mode == "RGB"
    (tmp_path / "out" / "source.pickle").write_bytes(pickle.dumps(sources[0]))
    back, _, report = interpret(read_any(tmp_path / "out", "auto", dataset)[0], dataset, 0, EPS)
    assert back.shown is not None and len(back.shown.images) == 1 and "one image only" in report.line()


def test_files_are_what_other_tools_expect(
    dataset: Dataset, poisons: Poisons, triggered: Poisons, trial: Trial, tmp_path: Path
) -> None:
    for name in names("format"):
        write(tmp_path / name, name, triggered if name == "benchmark" else poisons, trial, dataset)
    pairs = pickle.loads((tmp_path / "benchmark/poisons.pickle").read_bytes())
    assert [(type(one), one.mode, type(label), label) for one, label in pairs] == [(Image.Image, "RGB", int, 1)] * 4
    assert pickle.loads((tmp_path / "benchmark/base_indices.pickle").read_bytes()) == poisons.ids.tolist()
    _, label, patch, place = pickle.loads((tmp_path / "benchmark/target.pickle").read_bytes())
    assert label == 2 and patch.dtype == torch.float32 and 0 <= float(patch.min()) <= float(patch.max()) <= 1
    assert [type(number) for number in place] == [int, int]
    delta, ids = torch.load(tmp_path / "packed/poisons_packed.pth", weights_only=True)
    assert delta.dtype == torch.float32 and torch.equal(ids, poisons.ids)
    data = np.load(tmp_path / "numpy/poisoned_training_data.npy")
    assert data.dtype == np.float64 and data.shape == (30, 8, 8, 3)
    content = pickle.loads((tmp_path / "metapoison/poisondataset.pkl").read_bytes())
    assert content["xtrain"].dtype == np.float32 and sorted(content["ytrain"]) == content["ytrain"].tolist()
    first = int(np.argmax(content["ytrain"] == 1))
    # The loader of FRIENDS takes the first rows of the target class for the poisons.
    rows = torch.from_numpy(content["xtrain"][first : first + 4]).permute(0, 3, 1, 2)
    assert torch.equal(rows.to(torch.uint8), poisons.images)


def test_duplicates_are_dropped_and_images_stay_aligned(
    dataset: Dataset, poisons: Poisons, trial: Trial, tmp_path: Path
) -> None:
    order = torch.tensor([0, 1, 0, 2, 1, 3])
    twice = Poisons(poisons.images[order], poisons.ids[order], poisons.labels[order])
    write(tmp_path / "out", "benchmark", twice, trial, dataset)
    back, its_trial, report = interpret(read_any(tmp_path / "out", "auto", dataset)[0], dataset, 0, EPS)
    assert torch.equal(back.images, poisons.images) and torch.equal(back.ids, poisons.ids)
    assert report.duplicates == 2 and "2 dropped" in report.line() and its_trial.base_ids.tolist() == back.ids.tolist()


def test_pixels_outside_are_clipped_and_counted(
    dataset: Dataset, poisons: Poisons, trial: Trial, tmp_path: Path
) -> None:
    write(tmp_path / "out", "metapoison", poisons, trial, dataset)
    path = tmp_path / "out" / "poisondataset.pkl"
    content = pickle.loads(path.read_bytes())
    content["xtrain"] = content["xtrain"] + np.float32(0.2)  # rounded away
    content["xtarget"][0, 0, 0] = [-40, 300, content["xtarget"][0, 0, 0, 2]]
    path.write_bytes(pickle.dumps(content))
    back, _, report = interpret(read_any(path, "auto", dataset)[0], dataset, 0, EPS)
    assert_same(back, poisons)
    assert report.pixels_clipped == 2 and "2 pixels clipped" in report.line()


def test_too_large_a_change_names_the_poison_and_the_fix(
    dataset: Dataset, poisons: Poisons, trial: Trial, tmp_path: Path
) -> None:
    base = dataset.train.images[poisons.ids[3]]
    images = poisons.images.clone()
    images[3] = torch.where(base > 128, base - 17, base + 17)
    write(tmp_path / "out", "benchmark", replace(poisons, images=images), trial, dataset)
    found = read_any(tmp_path / "out", "auto", dataset)[0]
    with pytest.raises(BadInput, match="poison 3 moves a pixel by 17/255, more than eps = 16/255.*threat.eps=17"):
        interpret(found, dataset, 0, 16)
    assert interpret(found, dataset, 0, 17)[2].max_change == 17


def test_writing_is_whole_or_nothing(
    dataset: Dataset, poisons: Poisons, trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "native", poisons, trial, dataset)
    with pytest.raises(BadInput, match="exists; fix"):
        write(tmp_path / "empty", "native", poisons, trial, dataset)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput, match="nothing to write"):
        write(tmp_path / "out", "benchmark", poisons, replace(trial, target_ids=trial.target_ids[:0]), dataset)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "out", "benchmark", poisons, trial, dataset)
    assert sorted(tmp_path.iterdir()) == before


def test_a_given_trial_must_agree(dataset: Dataset, poisons: Poisons, trial: Trial, tmp_path: Path) -> None:
    write(tmp_path / "out", "packed", poisons, trial, dataset)
    found = read_any(tmp_path / "out", "auto", dataset)[0]
    with pytest.raises(BadInput, match="holds no target; fix"):
        interpret(found, dataset, 0, EPS)
    with pytest.raises(BadInput, match="class 1, but the target class of the trial is 0"):
        interpret(found, dataset, 0, EPS, replace(trial, target_class=0))


def test_unknown_formats_are_named(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"looked for .*target.pickle \(benchmark\)"):
        read_any(tmp_path, "auto", dataset)
    with pytest.raises(BadInput, match="did you mean 'benchmark'"):
        read_any(tmp_path, "benchmrk", dataset)
    with pytest.raises(BadInput, match="does not exist"):
        read_any(tmp_path / "none", "auto", dataset)
    assert formats.detect(tmp_path) is None


@pytest.mark.parametrize("container", CONTAINERS)
def test_packed_poisons_are_read_with_ids_in_any_container(
    container: str, dataset: Dataset, poisons: Poisons, trial: Trial, tmp_path: Path
) -> None:
    """The Witches' Brew code writes an array of numpy where it runs the setups of a benchmark."""
    write(tmp_path / "out", "packed", poisons, trial, dataset)
    path = tmp_path / "out" / "poisons_packed.pth"
    delta, ids = torch.load(path, weights_only=True)
    torch.save([delta, CONTAINERS[container](ids.tolist())], path)
    back, _, _ = interpret(read_any(path, "auto", dataset)[0], dataset, 0, EPS, trial)
    assert_same(back, poisons)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_setups_come_back(protocol: int, dataset: Dataset, trial: Trial, tmp_path: Path) -> None:
    path = tmp_path / "setups.pickle"
    write_setups(path, [trial, replace(trial, index=1, base_ids=trial.base_ids[:2])])
    found = read_setups(path, dataset)
    assert [each.as_dict()["base_ids"] for each in found] == [trial.base_ids.tolist(), trial.base_ids[:2].tolist()]
    assert found[0].as_dict() == trial.as_dict() and found[1].index == 1
    # As poisoning-benchmark's own files have them, one base twice.
    theirs = [
        {
            "target class": 2, "target index": np.int64(trial.target_ids[0]), "base class": np.int64(1),
            "base indices": trial.base_ids[[0, 1, 2, 1]].numpy(),
        }
    ]  # fmt: skip
    path.write_bytes(pickle.dumps(theirs, protocol))
    said: list[str] = []
    [read] = read_setups(path, dataset, said.append)
    assert torch.equal(read.base_ids, trial.base_ids[:3]) and len(said) == 1 and "setup 0: 1 duplicate base" in said[0]


def _tiny_setups(path: Path, targets: list[int]) -> None:
    """As poisoning-benchmark's own for TinyImageNet: numpy numbers, test images counted by file name."""
    classes = [0, 1, 1, 2, 0, 2]  # of val_0, val_1, val_10, val_2, val_3, val_4
    setups = [
        {
            "target class": np.int64(classes[target]), "target index": np.int64(target),
            "base class": np.int64((classes[target] + 1) % 3),
            "base indices": 12 * ((classes[target] + 1) % 3) + np.array([3, 11]),
        }
        for target in targets
    ]  # fmt: skip
    path.write_bytes(pickle.dumps(setups, 4))


@pytest.mark.parametrize("sorted_into_classes", [False, True])
def test_setups_of_tinyimagenet_fit_its_folder(sorted_into_classes: bool, tmp_path: Path) -> None:
    """As the archive has it, or with the test images sorted into folders by class, where ids run by class."""
    folder = write_tiny_imagenet(tmp_path / "tiny")
    if sorted_into_classes:
        for number, name in VAL.items():
            (folder / "test" / name / "images").mkdir(parents=True, exist_ok=True)
            image = folder / "val" / "images" / f"val_{number}.JPEG"
            image.rename(folder / "test" / name / "images" / image.name)
        (folder / "test" / "images" / "test_0.JPEG").unlink()
        (folder / "test" / "images").rmdir()
    dataset = folder_of(FolderSettings(), Place(argument=str(folder)))
    _tiny_setups(tmp_path / "setups.pickle", list(range(6)))
    said: list[str] = []
    trials = read_setups(tmp_path / "setups.pickle", dataset, said.append)
    names = [dataset.test_files[int(trial.target_ids[0])] for trial in trials]
    assert names == [f"val_{number}.JPEG" for number in (0, 1, 10, 2, 3, 4)]
    assert [trial.source_class for trial in trials] == [0, 1, 1, 2, 0, 2]
    assert [line for line in said if "by file name over all classes" in line] == said
    assert len(said) == sorted_into_classes


def test_setups_that_fit_no_way_of_counting_say_so(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path / "tiny")
    dataset = folder_of(FolderSettings(test_per_class=1), Place(argument=str(folder)))
    _tiny_setups(tmp_path / "setups.pickle", [0, 2])
    with pytest.raises(BadInput, match="setup 1: .*by file name .* do not fit either; fix: the whole .*test_per_class"):
        read_setups(tmp_path / "setups.pickle", dataset)
