"""Image files as people have them, read as RGB of 8 bits; what had to be converted for that is named, to be told."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from bench.plugin import BadInput, read_regular

ENDINGS = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), "PPM"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".gif": "GIF",
}
FORMATS = tuple(dict.fromkeys(ENDINGS.values()))
"""Whatever a file is called: Pillow's other readers start programs (EPS) or have seen less scrutiny."""
MOST_PIXELS = 512 * 512
MOST_BYTES = 64 * 2**20

GREY, DEEP, LAID_ON_WHITE, UPRIGHT, FIRST_FRAME = (
    *("grey to RGB", "16 bits a channel to 8", "transparent laid on white", "turned upright as EXIF says"),
    "first frame of several",
)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def open_image(path: Path) -> Image.Image:
    """The image in a regular file of one of `FORMATS`, not yet decoded. OSError for anything else."""
    return Image.open(io.BytesIO(read_regular(path, MOST_BYTES)), formats=FORMATS)


def read_image(path: Path) -> tuple[np.ndarray, list[str]]:
    """One image as uint8 [h, w, 3], and what was converted. BadInput when it cannot be read or is too large."""
    try:
        with open_image(path) as image:
            if image.width * image.height > MOST_PIXELS:
                side = math.isqrt(MOST_PIXELS)
                raise ValueError(f"it has {image.width}x{image.height} pixels; allowed: up to {side}x{side}")
            rgb, converted = as_rgb(image)
            return np.asarray(rgb), converted
    except Image.UnidentifiedImageError:
        cause = f"it is none of {', '.join(FORMATS)}"
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
    except Exception as error:  # Pillow raises many kinds for broken files
        cause = f"{type(error).__name__}: {error}"
    raise BadInput(
        f"image '{path}' cannot be read: {cause}" + ("" if "fix:" in cause else "; fix: replace or remove it")
    )


def as_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The image as RGB, upright, and what was converted; images of mode RGB and nothing else come out as they are.

    ValueError for numbers whose black and white are not known.
    """
    converted = []
    if getattr(image, "is_animated", False):
        image.seek(0)
        converted.append(FIRST_FRAME)
    turn = _orientation(image)
    deep = _is_deep(image)
    image.load()
    if turn is not None:
        converted.append(UPRIGHT)
        if image.format != "TIFF":  # Pillow turns those itself
            image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if deep:
        converted.append(DEEP)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema()[0] != 255:  # else nothing shines through
            converted.append(LAID_ON_WHITE)
            image = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
    if image.mode in ("1", "L", "LA", "La"):
        converted.append(GREY)
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        converted.append(f"{image.mode} to RGB")
    return image.convert("RGB"), converted


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """How EXIF says that the image is to be turned; None also where it cannot be read: the pixels still can."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many kinds for broken notes
        return None


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel, which Pillow may cut to 8 as it decodes."""
    decoders = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    return image.mode.startswith("I") or ";16" in decoders


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey levels from 0 to 65535 as 0 to 255. ValueError for floats and for 32 bits: nothing says what white is."""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))):
        kind = "floats" if image.mode == "F" else "whole numbers of 32 bits"
        raise ValueError(f"it holds {kind}; allowed: 8 or 16 bits a channel; fix: scale to 0..255 and save as 8 bits")
    if "transparency" in image.info:
        raise ValueError("it has 16 bits and a transparent level; fix: save it without transparency")
    levels = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
