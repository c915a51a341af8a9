"""Where images of poisons are kept, and how one is known again; they are drawn elsewhere. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from bench.foundation import files

MARK = "poisoning-bench"  # name of the text in the PNG
MOST_BYTES = 2**27


def read(out: Path, key: str, say: Callable[[str], None]) -> bytes | None:
    """The image of the poisons `key`, or None where there is none. One that is not what was written for them is
    reported, set aside and counts as missing."""
    path = image_path(out, key)
    try:
        data = files.read_regular(path, most=MOST_BYTES)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.info.get(MARK) == mark(image, key):
                return data
        why = "it is not the one of these poisons"
    except FileNotFoundError:
        return None
    except files.NotRegular as error:
        why = str(error.strerror)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = f"unreadable: {type(error).__name__}"
    with contextlib.suppress(OSError):  # it may only be read
        files.set_aside(path, f"image {path}", why, say)
    return None


def mark(image: Image.Image, key: str) -> str:
    """Whose image it is, and what it shows."""
    return f"{key} {hashlib.sha256(str(image.size).encode() + image.tobytes()).hexdigest()}"


def image_path(out: Path, key: str) -> Path:
    """Where the image of the poisons `key` is kept. ValueError for what is no key: records are only files."""
    if not re.fullmatch(r"[0-9a-f]{64}|none", key):
        raise ValueError(f"not a key: {key[:80]!r}")
    return out / "images" / f"{key}.png"
