"""Folders of images as people have them: every image counts, is read rightly or refused in one line, and what was
taken and converted is told."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.cli.main import main
from bench.datasets.folder import load
from bench.datasets.image_files import DEEP, FIRST_FRAME, GREY, LAID_ON_WHITE, UPRIGHT, read_image
from bench.foundation.errors import BadInput
from bench.science.dataset import Dataset, Place
from tests.folders import write_folder, write_tiny_imagenet

SIDE = 8
RGB = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "own")


def read(folder: Path, **limits: int) -> Dataset:
    return load(load.Settings(**limits), Place(argument=str(folder)))  # type: ignore[attr-defined]


# One image.


@pytest.mark.parametrize("ending", [".png", ".bmp", ".ppm", ".tif", ".webp"])
def test_rgb_of_8_bits_comes_out_as_it_is(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{ending}"
    Image.fromarray(RGB).save(path, lossless=True)
    pixels, converted = read_image(path)
    assert converted == [] and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize("ending", [".jpg", ".jfif", ".JPEG"])
def test_a_jpeg_is_read_as_pillow_decodes_it(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{ending}"
    Image.fromarray(RGB).save(path, format="JPEG")
    pixels, converted = read_image(path)
    assert converted == []
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("ending", [".png", ".tif", ".pgm"])
def test_16_bits_are_scaled_to_8(ending: str, tmp_path: Path) -> None:
    """Pillow's own conversion makes everything above 255 white."""
    levels = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    levels[0, :4] = [0, 65 * 257, 65535, 128]
    Image.fromarray(levels).save(tmp_path / f"image{ending}")
    pixels, converted = read_image(tmp_path / f"image{ending}")
    assert converted == [DEEP, GREY]
    np.testing.assert_array_equal(pixels, np.repeat(np.floor(levels / 257 + 0.5).astype(np.uint8)[..., None], 3, 2))


def test_colours_of_16_bits_are_said_to_be_cut(tmp_path: Path) -> None:
    header = f"P6 {SIDE} {SIDE} 65535\n".encode()
    (tmp_path / "image.ppm").write_bytes(header + (RGB.astype(">u2") * 257).tobytes())
    pixels, _ = read_image(tmp_path / "image.ppm")
    np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (RGB[..., 0].astype(np.float32), "holds floats"),
        (RGB[..., 0].astype(np.int32), "holds whole numbers of 32 bits"),
    ],
)
def test_numbers_without_a_white_are_refused(values: np.ndarray, cause: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "image.tif")
    with pytest.raises(BadInput, match=f"image.tif' cannot be read: it {cause}; allowed: .*; fix: scale to 0..255"):
        read_image(tmp_path / "image.tif")


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_exif_turns_an_image_upright(orientation: int, ending: str, tmp_path: Path) -> None:
    """A grey ramp, which survives JPEG; the corners tell the eight turns apart."""
    ramp = np.add.outer(np.arange(16) * 10, np.arange(16) * 2).astype(np.uint8)
    stored = Image.fromarray(ramp).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"image{ending}", exif=exif.tobytes() if ending != ".tif" else exif)
    upright = {
        2: ramp[:, ::-1], 3: ramp[::-1, ::-1], 4: ramp[::-1], 5: ramp.T, 6: np.rot90(ramp, -1),
        7: ramp[::-1, ::-1].T, 8: np.rot90(ramp),
    }  # fmt: skip
    pixels, converted = read_image(tmp_path / f"image{ending}")
    assert converted == ([UPRIGHT] if orientation in upright else [])
    assert np.abs(pixels[..., 0].astype(int) - upright.get(orientation, ramp)).max() <= 12


def test_broken_exif_leaves_the_image_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "image.png", exif=b"Exif\0\0 no tags")
    pixels, converted = read_image(tmp_path / "image.png")
    assert converted == []
    np.testing.assert_array_equal(pixels, RGB)


def with_alpha(alpha: int) -> Image.Image:
    return Image.fromarray(np.dstack([RGB, np.full((SIDE, SIDE), alpha, np.uint8)]))


@pytest.mark.parametrize("ending", [".png", ".tif", ".webp"])
def test_what_is_transparent_is_laid_on_white(ending: str, tmp_path: Path) -> None:
    more = {"lossless": True, "exact": True} if ending == ".webp" else {}
    for alpha, wanted, said in (
        (255, RGB, []),
        (0, np.full_like(RGB, 255), [LAID_ON_WHITE]),
        (128, 255 - (255 - RGB.astype(float)) * 128 / 255, [LAID_ON_WHITE]),
    ):
        with_alpha(alpha).save(tmp_path / f"image{ending}", **more)  # type: ignore[arg-type]
        pixels, converted = read_image(tmp_path / f"image{ending}")
        assert converted == said
        np.testing.assert_allclose(pixels, wanted, atol=1)


def test_a_transparent_colour_of_a_palette_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((2, 3), 0)
    image.save(tmp_path / "image.gif", transparency=0)
    pixels, converted = read_image(tmp_path / "image.gif")
    assert converted == [LAID_ON_WHITE]
    assert pixels[3, 2].tolist() == [255] * 3 and pixels[0, 0].tolist() == [40, 50, 60]


@pytest.mark.parametrize("ending", [".gif", ".png", ".tif", ".webp"])
def test_of_several_frames_the_first_is_taken(ending: str, tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue"))
    first.save(tmp_path / f"image{ending}", save_all=True, append_images=[second])
    pixels, converted = read_image(tmp_path / f"image{ending}")
    assert converted == [FIRST_FRAME] and np.abs(pixels - [255.0, 0, 0]).max() <= 2


def test_grey_and_ink_are_said(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("L").save(tmp_path / "grey.png")
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "ink.jpg")
    assert read_image(tmp_path / "grey.png")[1] == [GREY]
    assert read_image(tmp_path / "ink.jpg")[1] == ["CMYK to RGB"]


def test_no_other_format_is_opened_whatever_a_file_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives an EPS to the first `gs` in PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    Image.fromarray(RGB).save(tmp_path / "image.png", format="EPS")
    with pytest.raises(BadInput, match="image.png' cannot be read: it is none of PNG, JPEG, .*; fix: replace"):
        read_image(tmp_path / "image.png")
    assert not (tmp_path / "started").exists()


def cut_off(path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, format="PNG")
    path.write_bytes(file.getvalue()[:-40])


@pytest.mark.parametrize(
    ("make", "cause"),
    [(os.mkfifo, "a pipe, not a file"), (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
     (lambda path: path.symlink_to("nowhere"), "No such file"), (lambda path: path.write_bytes(b""), "none of PNG"),
     (cut_off, "image file is truncated"), (lambda path: Image.new("RGB", (600, 600)).save(path), "600x600 pixels")],
)  # fmt: skip
def test_what_is_no_image_is_one_line(make: Any, cause: str, folder: Path) -> None:
    make(folder / "train" / "cat" / "z.png")
    with pytest.raises(BadInput, match=f"z.png' cannot be read: .*{cause}.*; (allowed|fix)"):
        read(folder)


# The whole folder.


def test_a_flat_folder_is_read_in_the_order_of_its_names(folder: Path) -> None:
    dataset = read(folder)
    assert dataset.classes == ("cat", "dog") and dataset.train.labels.tolist() == [0] * 4 + [1] * 4
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        paths = [path for name in dataset.classes for path in sorted((folder / split / name).iterdir())]
        for path, image in zip(paths, images.images, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))
    assert dataset.summary == ("data set 'own', 2 classes: train 8 images of 8 files; test 4 images of 4 files")


def test_images_in_sub_folders_and_of_all_endings_count(folder: Path) -> None:
    before = len(read(folder).train)
    for number, ending in enumerate((".tif", ".pgm", ".jfif", ".PNG")):
        place = folder / "train" / "cat" / ("deeper/still" if number % 2 else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE)).save(place / f"new{ending}", format="JPEG" if ending == ".jfif" else None)
    assert len(read(folder).train) == before + 4


def test_hidden_folders_are_no_classes_and_hidden_files_no_images(folder: Path) -> None:
    before = read(folder)
    for split in ("train", "test"):
        (folder / split / ".ipynb_checkpoints").mkdir()
        (folder / split / "cat" / ".thumbnails").mkdir()
        (folder / split / "cat" / ".thumbnails" / "a.png").write_bytes(b"junk")
        (folder / split / "cat" / "._0.png").write_bytes(b"junk")
    assert read(folder).fingerprint == before.fingerprint and read(folder).summary == before.summary


def test_the_line_says_what_was_left_out_and_converted(folder: Path) -> None:
    cats = folder / "train" / "cat"
    (cats / "notes.txt").write_text("cats")
    (cats / "z.heic").write_bytes(b"?")
    (cats / "README").write_text("cats")
    (cats / "round").symlink_to(cats, target_is_directory=True)
    Image.new("L", (SIDE, SIDE)).save(folder / "test" / "dog" / "grey.png")
    assert read(folder, train_per_class=3, test_per_class=0).summary == (
        "data set 'own', 2 classes: train 6 images of 12 files (the first 3 of each class; all: "
        "train_per_class=0); test 5 images of 5 files; left out: .heic (1), .txt (1), links to folders (1), without an "
        "ending (1); converted: grey to RGB (1)"
    )


def test_skipped_images_and_the_first_ones_are_disjoint_and_together_all(folder: Path) -> None:
    first, rest, every = read(folder, train_per_class=2), read(folder, train_skip=2), read(folder)
    for label in every.train.labels.unique():
        parts = [part.train.images[part.train.labels == label] for part in (first, rest)]
        assert torch.equal(torch.cat(parts), every.train.images[every.train.labels == label])
    assert len(read(folder, train_skip=2, train_per_class=1).train) == 2 and len(rest.test) == len(every.test)
    assert "(without the first 2 of each class, the next 1; all: train_per_class=0, train_skip=0)" in (
        read(folder, train_skip=2, train_per_class=1).summary
    )


def test_skipping_a_whole_class_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="train_skip 4: the smallest class has 4 images; allowed: at most 3"):
        read(folder, train_skip=4)


def test_a_run_tells_the_line_once_before_it_works(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ("train.epochs=1", "threat.budget=0.05", "train_per_class=2")
    command = [word for item in sets for word in ("--set", item.replace("train_per", "dataset.train_per"))]
    assert main(["run", "--attack", "none", "--dataset", f"folder:{folder}", "--plan", "--trials", "1", *command]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data set")]
    assert len(lines) == 1 and "train 4 images of 8 files (the first 2 of each class; all:" in lines[0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_is_not_utf8_is_one_line(split: str, folder: Path) -> None:
    os.mkdir(os.fsencode(folder / split) + b"/caf\xe9")
    with pytest.raises(BadInput, match=r"caf\\udce9': its name .* is not UTF-8; fix: rename it"):
        read(folder)


def test_a_folder_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    place = write_folder(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    with pytest.raises(BadInput, match=r"caf\\udce9': its name is not UTF-8; fix: rename it"):
        read(place)


def test_file_names_that_are_not_utf8_are_read(folder: Path) -> None:
    Image.fromarray(RGB).save(tmp := folder / "a.png")
    os.rename(tmp, os.fsencode(folder / "train" / "cat") + b"/caf\xe9.png")
    assert len(read(folder).train) == 9


# TinyImageNet.


def test_the_archive_of_tinyimagenet_is_read_as_it_is(tmp_path: Path) -> None:
    dataset = read(write_tiny_imagenet(tmp_path / "tiny"))
    assert dataset.classes == ("n01", "n02", "n03")
    assert dataset.test.labels.tolist() == [0, 1, 1, 2, 0, 2]  # val_0, val_1, val_10, val_2, val_3, val_4
    assert dataset.test_files[:4] == ("val_0.JPEG", "val_1.JPEG", "val_10.JPEG", "val_2.JPEG")
    assert torch.bincount(dataset.train.labels).tolist() == [12, 12, 12]


def test_an_annotation_that_names_no_class_is_one_line(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path / "tiny")
    (folder / "val" / "val_annotations.txt").write_bytes(b"\xff\0 nonsense\tx")
    with pytest.raises(BadInput, match="val_annotations.txt' names no image of these classes"):
        read(folder)
