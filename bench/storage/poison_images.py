"""Where images of poisons are kept; they are drawn elsewhere. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path


def image_path(out: Path, key: str) -> Path:
    """Where the image of the poisons `key` is kept. ValueError for what is no key: records are only files."""
    if not re.fullmatch(r"[0-9a-f]{64}|none", key):
        raise ValueError(f"not a key: {key[:80]!r}")
    return out / "images" / f"{key}.png"
