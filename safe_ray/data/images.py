"""Encoded bytes to RGB pixels, or a reason why not."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageOps

# Formats that Pillow decodes itself: others (EPS) would start a program on the bytes.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# fmt: off
SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
    ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
    ".tiff", ".webp",
})
# fmt: on
SIXTEEN_TO_EIGHT_BITS = 257


class BadImageError(ValueError):
    """Bytes that do not decode to an image; its message is the reason, without the file's name."""


def has_image_suffix(path: str) -> bool:
    """Return whether a file is named as one that `decode_image` may read."""
    return path[path.rfind(".") :].lower() in SUFFIXES


def decode_image(data: bytes) -> Image.Image:
    """Return the image in mode RGB, upright (EXIF orientation), transparency on white.

    Palettes, greys, CMYK and 16-bit greys are converted; of an animation the first frame is taken.

    Raises:
        BadImageError: no bytes, an unknown or damaged format, more pixels than Pillow's limit
            against decompression bombs, or samples that have no agreed range (floating point).
    """
    if not data:
        raise BadImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            image.load()
            return _rgb(_upright(image))
    except BadImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadImageError(
            f"not an image in one of the formats {', '.join(_formats())}"
        ) from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f"too many pixels: {error}") from error
    # Pillow's decoders raise almost anything on damaged bytes.
    except Exception as error:
        raise BadImageError(f"damaged: {error or type(error).__name__}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # A damaged EXIF block says nothing about the orientation; the pixels are good.
    except Exception:
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImageError("floating-point samples, which have no agreed range")
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.int64)
        image = Image.fromarray(
            (np.clip(samples, 0, 65535) // SIXTEEN_TO_EIGHT_BITS).astype(np.uint8)
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
