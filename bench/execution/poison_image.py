"""An image of poisons: columns base | poison | amplified difference, one row a poison, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from bench.foundation import files
from bench.science.dataset import Images
from bench.science.poisons import Poisons
from bench.storage.poison_images import MARK, image_path, mark, read
from bench.storage.store import Artefact, key_of

GUTTER = 2  # white pixels around every image
SIDE = 64  # pixels that an image is blown up to, about


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
    told.add_text(MARK, mark(image, key))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True, pnginfo=told)
    return file.getvalue()


def save(out: Path, crafted: Artefact, poisons: Poisons, clean: Images, say: Callable[[str], None]) -> None:
    """Put the image of a trial's poisons below the output folder, once. clean: the training set before them."""
    key = key_of(crafted.meta["identity"])
    if len(poisons.ids) and read(out, key, say) is None:
        base = clean.images[clean.rows_of(poisons.ids)]
        files.write_bytes(image_path(out, key), poison_grid(base, poisons.images, key=key))
