"""Whatever lies in a folder of images, there are two ends: the right data set, or BadInput in one line.

BENCH_CASES=10000 tries so many folders instead of 200.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

from bench.datasets.folder import load
from bench.foundation.errors import BadInput
from bench.science.dataset import Dataset, Place

CASES = int(os.environ.get("BENCH_CASES", "200"))
SIDE = 8
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), dtype=np.uint8)
Pixels = np.ndarray | None  # None: whatever comes out, if anything does


def saved(image: Image.Image, format: str, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **more)
    return file.getvalue()


def repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2)


def deep(rgb: np.ndarray) -> tuple[bytes, Pixels]:
    levels = rgb[..., 0].astype(np.uint16) * 257 + rgb[..., 1] % 100
    return saved(Image.fromarray(levels), "PNG"), repeated(rgb[..., 0])


def see_through(rgb: np.ndarray) -> tuple[bytes, Pixels]:
    alpha = np.where(rgb[..., 0] < 128, 0, 255).astype(np.uint8)
    return saved(Image.fromarray(np.dstack([rgb, alpha])), "PNG"), np.where(alpha[..., None] == 0, 255, rgb)


def turned(rgb: np.ndarray) -> tuple[bytes, Pixels]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(rgb), "PNG", exif=exif.tobytes()), np.rot90(rgb, -1)


def frames(rgb: np.ndarray) -> tuple[bytes, Pixels]:
    image = Image.fromarray(rgb)
    return saved(image, "TIFF", save_all=True, append_images=[Image.new("RGB", image.size)]), rgb


GOOD: dict[str, Callable[[np.ndarray], tuple[bytes, Pixels]]] = {
    **{
        f"rgb.{ending}": lambda rgb, format=format: (saved(Image.fromarray(rgb), format, lossless=True), rgb)  # type: ignore[misc]
        for ending, format in (("png", "PNG"), ("TIFF", "TIFF"), ("bmp", "BMP"), ("webp", "WEBP"), ("jpg", "PPM"))
    },
    "grey.pgm": lambda rgb: (saved(Image.fromarray(rgb[..., 0]), "PPM"), repeated(rgb[..., 0])),
    "lossy.jfif": lambda rgb: (saved(Image.fromarray(rgb), "JPEG"), None),
    "ink.jpeg": lambda rgb: (saved(Image.fromarray(rgb).convert("CMYK"), "JPEG"), None),
    "few.gif": lambda rgb: (saved(Image.fromarray(rgb).quantize(7), "GIF", transparency=3), None),
    "deep.png": deep, "see-through.png": see_through, "turned.png": turned, "frames.tif": frames,
}  # fmt: skip
BAD: dict[str, Callable[[np.ndarray], bytes]] = {
    "empty.png": lambda rgb: b"",
    "junk.jpg": lambda rgb: rgb.tobytes(),
    "cut.png": lambda rgb: saved(Image.fromarray(rgb), "PNG")[:60],
    "float.tif": lambda rgb: saved(Image.fromarray(rgb[..., 0].astype(np.float32)), "TIFF"),
    "int.tif": lambda rgb: saved(Image.fromarray(rgb[..., 0].astype(np.int32)), "TIFF"),
    "script.png": lambda rgb: saved(Image.fromarray(rgb), "EPS"),
}
SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe.png": lambda path: os.mkfifo(path),
    "endless.gif": lambda path: path.symlink_to("/dev/zero"),
    "nowhere.bmp": lambda path: path.symlink_to("nowhere"),
    "round.webp": lambda path: path.symlink_to(path.name),
}
IGNORED: dict[str, Callable[[Path], None]] = {
    "notes.txt": lambda path: path.touch(),
    "pipe": lambda path: os.mkfifo(path),
    "back": lambda path: path.symlink_to("..", target_is_directory=True),
    ".hidden.png": lambda path: path.touch(),
    ".ipynb_checkpoints": lambda path: path.mkdir(),
    "folder.png": lambda path: path.mkdir(),
}
STEMS = ["", "a b", "é", "\udcff", "new\nline", "%s", "-r", "$(x)", "A", "\u202e"]
CLASSES = ["cat", "dog", "ünï", "a b", ".git", "x\ny", "caf\udce9"]


@dataclass(frozen=True)
class Entry:
    """A file: in which class and sub-folder, of what kind, which image, of what size, damaged where."""

    of_class: int
    kind: str
    stem: str
    below: str
    image: int
    size: tuple[int, int]
    damage: tuple[int, int] | None


pools: list[list[str]] = [*[list(GOOD)] * 8, *[list(IGNORED)] * 3, [*BAD, *SPECIAL]]
kinds = some.sampled_from(pools).flatmap(some.sampled_from)
sizes = some.sampled_from([*[(SIDE, SIDE)] * 60, (9, 9), (SIDE, 9)])
damages = some.one_of(*[some.none()] * 12, some.tuples(some.integers(0, 400), some.integers(1, 255)))
entries = some.builds(
    Entry, some.integers(0, 1), kinds, some.sampled_from(STEMS), some.sampled_from(["", "", "sub", "sub/er"]),
    some.integers(0, 3), sizes, damages,
)  # fmt: skip
classes = some.one_of(
    *[some.just(("cat", "dog"))] * 3,
    some.lists(some.sampled_from(CLASSES), min_size=1, max_size=3, unique=True).map(tuple),
)
splits = some.lists(entries, max_size=5)


def write(root: Path, of_split: list[Entry]) -> dict[Path, tuple[bool, Pixels] | None]:
    """What each file whose name is an image's should come out as: fatal or not, and its pixels; None: either."""
    found: dict[Path, tuple[bool, Pixels] | None] = {}
    names = sorted(path for path in root.iterdir() if path.is_dir())
    for number, entry in enumerate(of_split):
        if not names:
            break
        folder = names[entry.of_class % len(names)] / entry.below
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (entry.kind if entry.kind.startswith(".") else f"{entry.stem}{number}{entry.kind}")
        if entry.kind in SPECIAL:
            SPECIAL[entry.kind](path)
            found[path] = (True, None)
        elif entry.kind in IGNORED:
            if not path.exists():
                IGNORED[entry.kind](path)
        else:
            rgb = IMAGES[entry.image, : entry.size[0], : entry.size[1]]
            fatal = entry.kind in BAD
            data, pixels = (BAD[entry.kind](rgb), None) if fatal else GOOD[entry.kind](rgb)
            if entry.damage and data:
                at = entry.damage[0] % len(data)
                data = data[:at] + bytes([data[at] ^ entry.damage[1]]) + data[at + 1 :]
            path.write_bytes(data)
            plain = entry.size == (SIDE, SIDE)
            found[path] = None if entry.damage or not plain else (fatal, pixels)
    return found


def taken(split: Path, name: str, files: dict[Path, tuple[bool, Pixels] | None], limit: int) -> list[Path]:
    paths = sorted(path for path in files if path.is_relative_to(split / name))
    return paths[:limit] if limit else paths


def check(root: Path, names: list[str], files: dict[Path, tuple[bool, Pixels] | None], limit: int) -> None:
    """Load the folder and compare with what should come out of it."""
    try:
        dataset = load(load.Settings(train_per_class=limit), Place(argument=str(root)))  # type: ignore[attr-defined]
    except BadInput as error:
        assert "\n" not in str(error)
        dataset = None
    visible = sorted(name for name in names if not name.startswith("."))
    right: list[list[Path]] = []
    sound = len(visible) >= 2 and all(name.isprintable() for name in visible)
    for split, most in (("train", limit), ("test", 0)):
        of_class = [taken(root / split, name, files, most) for name in visible]
        sound &= all(of_class)
        right.append([path for paths in of_class for path in paths])
    verdicts = [files[path] for paths in right for path in paths]
    if not sound or any(verdict is not None and verdict[0] for verdict in verdicts):
        assert dataset is None
    elif None not in verdicts:
        assert dataset is not None
    if dataset is not None:
        compare(dataset, right, files)


def compare(dataset: Dataset, right: list[list[Path]], files: dict[Path, tuple[bool, Pixels] | None]) -> None:
    for images, paths in zip((dataset.train, dataset.test), right, strict=True):
        assert len(images) == len(paths)
        for image, label, path in zip(images.images, images.labels.tolist(), paths, strict=True):
            assert dataset.classes[label] in path.parts
            verdict = files[path]
            if verdict is not None and verdict[1] is not None:
                np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), verdict[1])


@settings(max_examples=CASES, derandomize=True, deadline=None, database=None)
@given(
    names=classes,
    train=splits,
    test=splits,
    limit=some.sampled_from([0, 0, 0, 1, 2]),
    full=some.sampled_from([True] * 5 + [False]),
)
def any_folder(names: tuple[str, ...], train: list[Entry], test: list[Entry], limit: int, full: bool) -> None:
    """full: every class has an image of its own."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        files: dict[Path, tuple[bool, Pixels] | None] = {}
        for split, of_split in (("train", train), ("test", test)):
            for name in names:
                (root / split / name).mkdir(parents=True)
            (root / split).mkdir(exist_ok=True)
            of_each = [Entry(row, "rgb.png", "", "", 0, (SIDE, SIDE), None) for row in range(len(names) * full)]
            files |= write(root / split, of_each + of_split)
        hidden = {path for path in files if any(part.startswith(".") for part in path.relative_to(root).parts)}
        check(root, list(names), {path: verdict for path, verdict in files.items() if path not in hidden}, limit)


def test_any_folder_is_the_right_data_set_or_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    any_folder()
    assert capfd.readouterr() == ("", "")
