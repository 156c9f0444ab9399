"""Encoded bytes to RGB pixels, or a reason why not."""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from safe_ray.errors import one_line

# Of damaged bytes it says in lines of its own what the reason says in one.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Formats that Pillow decodes itself: others (EPS) would start a program on the bytes.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# fmt: off
SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc",
    ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
    ".tiff", ".webp",
})
# fmt: on
JPEG_MAGIC = b"\xff\xd8\xff"
SIXTEEN_TO_EIGHT_BITS = 257
LARGEST_PIXELS = 178_956_970
"""At which Pillow, left alone, speaks of a bomb; decoded they are most of a gigabyte."""
MOST_SCANS = 100
MOST_SCANNED_PIXELS = 2_000_000_000
_SCAN = b"\xff\xda"


class BadImageError(ValueError):
    """Bytes that do not decode to an image; its message is the reason, without the file's name."""


def has_image_suffix(path: str) -> bool:
    """Return whether a file is named as one that `decode_image` may read."""
    return path[path.rfind(".") :].lower() in SUFFIXES


def decode_image(
    data: bytes, side: int | None = None, most_pixels: int = LARGEST_PIXELS
) -> Image.Image:
    """Return the image in mode RGB, upright (EXIF orientation), transparency on white.

    Palettes, greys, CMYK and 16-bit greys are converted; of an animation the first frame is taken.

    Args:
        data: the encoded image.
        side: a size that is enough: a JPEG may then come at an eighth, a quarter or a half of its
            own size, as long as no side is shorter than this. All of its bytes are decoded.
        most_pixels: what is larger is refused before it is decoded; `LARGEST_PIXELS` at most.

    Raises:
        BadImageError: no bytes, an unknown or damaged format, more pixels than are allowed,
            or samples that have no agreed range (floating point).
    """
    if not data:
        raise BadImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _refuse_bombs(image, data, min(most_pixels, LARGEST_PIXELS))
            if side is not None:
                image.draft("RGB", (side, side))
            image.load()
            return as_rgb(image)
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
        raise BadImageError(f"damaged: {one_line(str(error)) or type(error).__name__}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image in mode RGB, upright, transparency on white; see `decode_image`.

    Raises:
        BadImageError: samples that have no agreed range.
    """
    return _rgb(_upright(image))


def _refuse_bombs(image: Image.Image, data: bytes, most: int) -> None:
    """Refuse what takes far more memory or time than images do, before it is decoded.

    Each scan of a progressive JPEG goes over all of its pixels, and an empty one has a few bytes.
    """
    pixels = image.width * image.height
    if pixels > most:
        raise BadImageError(f"too many pixels: {pixels}, and {most} at most are read")
    if data.startswith(JPEG_MAGIC):
        scans = data.count(_SCAN)
        if scans > MOST_SCANS or scans * pixels > MOST_SCANNED_PIXELS:
            raise BadImageError(f"too many scans: {scans} over {pixels} pixels")


def decoder_warning(data: bytes) -> str:
    """Return what libjpeg warns of in a JPEG that decodes, or nothing.

    Bytes that were overwritten in the middle of a JPEG decode to something, and libjpeg says no
    more than that the data looks corrupt; Pillow does not pass that on. A quarter of the time of
    decoding is enough to hear it, for the pixels are not wanted. Other formats have checksums,
    or nothing to warn of.
    """
    if not data.startswith(JPEG_MAGIC):
        return ""
    try:
        colours = simplejpeg.decode_jpeg_header(data)[2]
        simplejpeg.decode_jpeg(
            data,
            "CMYK" if colours in ("CMYK", "YCCK") else "GRAY",
            fastdct=True,
            min_height=1,
            min_width=1,
            strict=True,
        )
    except ValueError as error:
        return str(error)
    return ""


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
        samples = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        image = Image.fromarray((samples // SIXTEEN_TO_EIGHT_BITS).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
