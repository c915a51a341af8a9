"""Data sets: rows stay together, fingerprints, the photographs and where their patches are cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.datasets import photographs
from bench.datasets.photographs import BLOCKS, PHOTOGRAPHS, PhotographsSettings, load
from bench.foundation.errors import BadInput
from bench.science.dataset import Dataset, Images, Place, check

TINY: dict[str, Any] = {"size": 8, "side": 64, "train_per_class": 5, "test_per_class": 3}


def tiny(**changes: Any) -> Dataset:
    return load(PhotographsSettings(**{**TINY, **changes}), Place())


@pytest.fixture(scope="module")
def photos() -> Dataset:
    return tiny()


def test_rows_of_finds_each_id_in_the_order_asked(make_images: Callable[..., Images]) -> None:
    images = make_images(20)
    position = {int(name): row for row, name in enumerate(images.ids)}
    asked = images.ids[torch.tensor([7, 0, 19, 7])]
    assert images.rows_of(asked).tolist() == [position[int(name)] for name in asked]
    assert images.rows_of(asked[:0]).tolist() == []


@pytest.mark.parametrize("absent", [-1, 4, 10**9])
def test_rows_of_an_absent_id_is_a_key_error(make_images: Callable[..., Images], absent: int) -> None:
    images = make_images(20)
    with pytest.raises(KeyError):
        images.rows_of(torch.tensor([int(images.ids[0]), absent]))


def test_subset_keeps_image_label_and_id_together(make_images: Callable[..., Images]) -> None:
    images = make_images(9)
    for rows in (torch.tensor([4, 1]), images.labels == 2):
        part = images.subset(rows)
        back = images.rows_of(part.ids)
        assert torch.equal(part.images, images.images[back])
        assert torch.equal(part.labels, images.labels[back])


@pytest.mark.parametrize(
    "change",
    [{"images": torch.zeros(4, 3, 8, 8)}, {"images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)},
     {"labels": torch.zeros(3, dtype=torch.long)}, {"ids": torch.arange(5)}],
)  # fmt: skip
def test_images_of_a_wrong_shape_or_type_are_refused(
    make_images: Callable[..., Images], change: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match="images must be|labels and ids"):
        dataclasses.replace(make_images(4), **change)


def test_normalisation_is_mean_and_deviation_of_the_training_pixels(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(17)
    pixels = dataset.train.images.numpy().astype(np.float64) / 255
    mean, deviation = dataset.normalisation
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(deviation, pixels.std((0, 2, 3)), rtol=0, atol=1e-12)


def test_normalisation_of_a_constant_channel_can_be_divided_by(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(6)
    dataset.train.images[:, 1] = 9
    assert dataset.normalisation[1][1] > 0


def change_pixel(dataset: Dataset) -> dict[str, Images]:
    return {"train": flipped(dataset.train)}


def change_test_pixel(dataset: Dataset) -> dict[str, Images]:
    return {"test": flipped(dataset.test)}


def flipped(images: Images) -> Images:
    changed = images.images.clone()
    changed[3, 1, 2, 5] ^= 1
    return images.with_images(changed)


def change_label(dataset: Any) -> Any:
    labels = dataset.train.labels.clone()
    labels[2] = (labels[2] + 1) % 3
    return {"train": dataclasses.replace(dataset.train, labels=labels)}


def change_id(dataset: Any) -> Any:
    return {"train": dataclasses.replace(dataset.train, ids=dataset.train.ids + 1)}


def swap_splits(dataset: Any) -> Any:
    return {"train": dataset.test, "test": dataset.train}


def rename_class(dataset: Any) -> Any:
    return {"classes": ("class 0", "class 1", "class x")}


CHANGES = [change_pixel, change_test_pixel, change_label, change_id, swap_splits, rename_class]


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with_any_content(
    make_dataset: Callable[..., Dataset], change: Callable[..., dict[str, Images]]
) -> None:
    dataset = make_dataset()
    assert dataclasses.replace(dataset, **change(dataset)).fingerprint != dataset.fingerprint  # type: ignore[arg-type]


def test_equal_content_has_an_equal_fingerprint_whatever_its_memory_layout(
    make_dataset: Callable[..., Dataset],
) -> None:
    dataset, again = make_dataset(), make_dataset()
    train = again.train.with_images(again.train.images.contiguous(memory_format=torch.channels_last))
    assert dataclasses.replace(again, train=train).fingerprint == dataset.fingerprint


def test_check_passes_a_sound_data_set_through(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset()
    assert check(dataset) is dataset


def test_check_refuses_a_single_class(make_dataset: Callable[..., Dataset]) -> None:
    with pytest.raises(BadInput, match="has 1 class"):
        check(make_dataset(classes=1))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("empty", [0, 2])
def test_check_names_the_class_without_images(make_dataset: Callable[..., Dataset], split: str, empty: int) -> None:
    dataset = make_dataset()
    images = getattr(dataset, split)
    lacking = dataclasses.replace(dataset, **{split: images.subset(images.labels != empty)})
    with pytest.raises(BadInput, match=f"'class {empty}' has no {split} image"):
        check(lacking)


def test_photographs_come_out_the_same_twice(photos: Dataset) -> None:
    again = tiny()
    assert again.fingerprint == photos.fingerprint
    assert torch.equal(again.train.images, photos.train.images)


def test_photographs_are_balanced_and_numbered(photos: Dataset) -> None:
    for split, each in ((photos.train, 5), (photos.test, 3)):
        assert torch.bincount(split.labels).tolist() == [each] * 10
        assert split.ids.tolist() == list(range(10 * each))
        assert split.images.shape[1:] == (3, 8, 8)
    assert photos.classes == tuple(PHOTOGRAPHS)
    check(photos)


@pytest.mark.parametrize(
    "change", [{"colour": "plain"}, {"colour": "grey"}, {"gain": 0.1}, {"side": 96}, {"size": 9, "side": 80}]
)
def test_each_setting_of_the_photographs_changes_them(photos: Dataset, change: dict[str, str]) -> None:
    assert tiny(**change).fingerprint != photos.fingerprint


def test_grey_photographs_have_three_equal_channels() -> None:
    images = tiny(colour="grey").train.images
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    assert images[:, 0].float().flatten(1).std(1).min() > 1


def coordinates(*_: str) -> Any:
    """An image whose pixel at row y, column x has the colour (y, x, 0)."""
    y, x = np.mgrid[0:160, 0:224]
    return Image.fromarray(np.stack((y, x, 0 * y), axis=2).astype(np.uint8))


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[list[set[Any]]]:
    """Where the pixels of each split were cut: sets of (y, x) for every patch."""
    monkeypatch.setattr(photographs, "photograph", coordinates)
    settings = PhotographsSettings(size=9, side=160, train_per_class=300, test_per_class=100, colour="plain")
    cut = photographs._cut("cat", settings)
    return [[{(int(y), int(x)) for y, x, _ in patch.reshape(-1, 3)} for patch in split] for split in cut]


def test_no_pixel_serves_both_training_and_testing(places: list[list[set[Any]]]) -> None:
    train, test = (set().union(*split) for split in places)
    assert not train & test


def test_no_patch_crosses_a_block_and_no_block_serves_both_splits(places: list[list[set[Any]]]) -> None:
    height, width = 160 // BLOCKS, 224 // BLOCKS
    blocks = [[{(y // height, x // width) for y, x in patch} for patch in split] for split in places]
    assert all(len(patch) == 1 for split in blocks for patch in split)
    train, test = (set().union(*split) for split in blocks)
    assert not train & test
    assert len(train | test) == BLOCKS * BLOCKS
    assert sorted(y for y, _ in test) == sorted(x for _, x in test) == sorted(2 * list(range(BLOCKS)))


def test_patches_are_whole_squares_of_the_image(places: list[list[set[Any]]]) -> None:
    for patch in places[0][:20]:
        rows, columns = sorted({y for y, _ in patch}), sorted({x for _, x in patch})
        assert rows == list(range(rows[0], rows[0] + 9))
        assert columns == list(range(columns[0], columns[0] + 9))


def test_jitter_stays_near_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "photograph", lambda _: Image.new("RGB", (160, 160), (100, 100, 100)))
    still = PhotographsSettings(**{**TINY, "gain": 0.0, "contrast": 0.0, "brightness": 0.0})
    assert (photographs._cut("cat", still)[0] == 100).all()
    lively = photographs._cut("cat", PhotographsSettings(**{**TINY, "gain": 0.0, "brightness": 0.1}))[0].astype(int)
    assert 5 < np.abs(lively - 100).max() <= 26


def test_patches_too_large_for_a_block_name_a_side_that_works() -> None:
    with pytest.raises(BadInput, match="dataset.side at least 80"):
        tiny(size=10)
    assert tiny(size=10, side=80).train.images.shape[-1] == 10


def test_the_fix_for_the_largest_patches_works() -> None:
    largest = max(rule.le for rule in PhotographsSettings.model_fields["size"].metadata if hasattr(rule, "le"))
    with pytest.raises(BadInput, match=f"dataset.side at least {8 * largest}"):
        tiny(size=largest, side=8 * largest - 1)
    assert tiny(size=largest, side=8 * largest).train.images.shape[2] == largest


def test_a_missing_photograph_names_the_wheel_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PHOTOGRAPHS, "cat", ("skimage", "data/none.png"))
    with pytest.raises(BadInput, match="pip install --force-reinstall scikit-image"):
        photographs.photograph("cat")
