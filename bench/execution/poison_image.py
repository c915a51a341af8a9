"""An image of poisons: columns base | poison | amplified difference, one row a poison, as PNG bytes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from bench.foundation import files
from bench.science.dataset import Images
from bench.science.poisons import Poisons
from bench.storage.store import Artefact, key_of

GUTTER = 2  # white pixels around every image
SIDE = 64  # pixels that an image is blown up to, about
MARK = "poisoning-bench"  # name of the text in the PNG
MOST_BYTES = 2**27


def poison_grid(base: Tensor, poison: Tensor, rows: int = 8, key: str = "") -> bytes:
    """PNG of the first `rows` poisons. base, poison: uint8 [n, 3, h, w], same order, n >= 1; key: of the poisons, by
    which `read` knows them again.

    The difference is centred on grey 127 and scaled so that the largest change among all n reaches the ends of the
    grey range: its contrast shows where the poison is, not how strong it is.
    """
    if base.shape != poison.shape or base.ndim != 4 or base.shape[1] != 3 or len(base) == 0:
        raise ValueError(f"need equal, non-empty [n, 3, h, w], not {tuple(base.shape)} and {tuple(poison.shape)}")
    if base.dtype != torch.uint8 or poison.dtype != torch.uint8:
        raise ValueError(f"need uint8 images, not {base.dtype} and {poison.dtype}")
    change = poison.cpu().int() - base.cpu().int()
    largest = max(1, int(change.abs().max()))
    amplified = (127 + change[:rows] * 127 / largest).round().to(torch.uint8)
    columns = torch.stack([base[:rows].cpu(), poison[:rows].cpu(), amplified])  # [3, rows, channel, h, w]
    factor = max(1, round(SIDE / max(base.shape[2:])))
    tiles = columns.repeat_interleave(factor, 3).repeat_interleave(factor, 4)
    tiles = torch.nn.functional.pad(tiles, (0, GUTTER, 0, GUTTER), value=255)
    sheet = tiles.permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1)  # [rows * height, 3 * width, channel]
    sheet = torch.nn.functional.pad(sheet, (0, 0, GUTTER, 0, GUTTER, 0), value=255)
    image = Image.fromarray(sheet.contiguous().numpy())
    told = PngInfo()
    told.add_text(MARK, _mark(image, key))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True, pnginfo=told)
    return file.getvalue()


def save(out: Path, crafted: Artefact, poisons: Poisons, clean: Images, say: Callable[[str], None]) -> None:
    """Put the image of a trial's poisons below the output folder, once. clean: the training set before them."""
    key = key_of(crafted.meta["identity"])
    if len(poisons.ids) and read(out, key, say) is None:
        base = clean.images[clean.rows_of(poisons.ids)]
        files.write_bytes(image_path(out, key), poison_grid(base, poisons.images, key=key))


def read(out: Path, key: str, say: Callable[[str], None]) -> bytes | None:
    """The image of the poisons `key`, or None where there is none. One that is not what was written for them is
    reported, set aside and counts as missing."""
    path = image_path(out, key)
    try:
        data = files.read_regular(path, most=MOST_BYTES)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.info.get(MARK) == _mark(image, key):
                return data
        why = "it is not the one of these poisons"
    except FileNotFoundError:
        return None
    except files.NotRegular as error:
        why = str(error.strerror)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = f"unreadable: {type(error).__name__}"
    aside = path.with_suffix(".damaged")
    say(f"image {path} is damaged ({why}); moved to {aside.name}")
    with contextlib.suppress(OSError):  # another process has moved it, or it may only be read
        path.replace(aside)
    return None


def _mark(image: Image.Image, key: str) -> str:
    """Whose image it is, and what it shows."""
    return f"{key} {hashlib.sha256(str(image.size).encode() + image.tobytes()).hexdigest()}"


def image_path(out: Path, key: str) -> Path:
    """Where the image of the poisons `key` is kept. ValueError for what is no key: records are only files."""
    if not re.fullmatch(r"[0-9a-f]{64}|none", key):
        raise ValueError(f"not a key: {key[:80]!r}")
    return out / "images" / f"{key}.png"
