from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from safe_ray.data.images import (
    FORMATS,
    SUFFIXES,
    BadImageError,
    decode_image,
    decoder_warning,
    has_image_suffix,
)

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(40, 30)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_rgb_comes_back_as_it_was(format):
    image = noise()
    decoded = decode_image(encode(image, format))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(image))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_decode(format):
    assert decode_image(encode(noise(), format)).size == (40, 30)


def test_a_palette_is_looked_up():
    palette = Image.new("RGB", (4, 4), RED).quantize(8)
    assert palette.mode == "P"
    assert decode_image(encode(palette)).getpixel((1, 1)) == RED


def test_grey_and_black_and_white_become_rgb():
    assert decode_image(encode(Image.new("L", (2, 2), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(encode(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == WHITE


def test_cmyk_is_converted():
    decoded = decode_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert decoded.getpixel((3, 3)) == RED


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_range(format):
    samples = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(samples), format))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    decoded = decode_image(encode(image))
    assert [decoded.getpixel((x, 0)) for x in range(3)] == [WHITE, RED, (127, 127, 127)]


def test_a_transparent_colour_of_a_palette_is_laid_on_white():
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 255, *RED])
    palette.putpixel((1, 0), 1)
    decoded = decode_image(encode(palette, transparency=0))
    assert [decoded.getpixel((x, 0)) for x in range(2)] == [WHITE, RED]


def test_grey_with_alpha_is_laid_on_white():
    decoded = decode_image(encode(Image.new("LA", (1, 1), (0, 0))))
    assert decoded.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (-1, 0)), (3, (-1, -1)), (4, (0, -1)), (6, (-1, 0)), (8, (0, -1))],
)
def test_the_exif_orientation_is_applied(orientation, corner):
    image = Image.new("RGB", (32, 16), "white")
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(image, exif=exif))
    assert decoded.size == ((16, 32) if orientation in (6, 8) else (32, 16))
    assert decoded.getpixel((corner[0] % decoded.width, corner[1] % decoded.height)) == RED


def test_a_damaged_exif_block_does_not_cost_the_image():
    data = encode(noise(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert decode_image(data).size == (40, 30)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((0, 0)) == RED


def test_an_animated_webp_and_an_animated_png_give_their_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format in ("WEBP", "PNG"):
        options = {"save_all": True, "append_images": frames[1:]}
        options |= {"lossless": True} if format == "WEBP" else {}
        assert decode_image(encode(frames[0], format, **options)).getpixel((0, 0)) == RED


def test_a_cmyk_jpeg_is_converted():
    decoded = decode_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.subtract(decoded.getpixel((8, 8)), RED)).max() < 8


def test_16_bit_grey_with_an_orientation_is_turned():
    samples = np.zeros((8, 16), np.uint16)
    samples[:, :4] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encode(Image.fromarray(samples), "PNG", exif=exif))
    assert decoded.size == (8, 16)
    assert decoded.getpixel((4, 0)) == WHITE
    assert decoded.getpixel((4, 15)) == (0, 0, 0)


def test_the_known_suffixes_are_those_of_the_formats_that_are_decoded():
    registered = Image.registered_extensions()
    decoded = {suffix for suffix, format in registered.items() if format in FORMATS}
    assert decoded - SUFFIXES <= {".avifs", ".pfm"}
    assert {registered[suffix] for suffix in SUFFIXES & set(registered)} <= set(FORMATS)
    assert has_image_suffix("a.b/c.JPG")
    for name in ("a.jpg/readme", "jpg", "a.txt", ""):
        assert not has_image_suffix(name)


def test_zero_bytes_are_not_an_image():
    with pytest.raises(BadImageError, match="empty"):
        decode_image(b"")


@pytest.mark.parametrize(
    "data", [b"hello", b"\x00" * 1000, b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_other_bytes_are_not_an_image(data):
    with pytest.raises(BadImageError, match="not an image in one of"):
        decode_image(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_images_are_damaged(format):
    data = encode(noise(size=(200, 200)), format)
    with pytest.raises(BadImageError):
        decode_image(data[: len(data) // 2])


def test_a_decompression_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImageError, match=r"too many pixels.*decompression bomb"):
        decode_image(encode(Image.new("1", (100, 100))))


def test_a_caller_may_take_fewer_pixels_than_others():
    data = encode(Image.new("L", (101, 100)))
    assert decode_image(data, most_pixels=10_100).size == (101, 100)
    with pytest.raises(BadImageError, match="too many pixels: 10100, and 10000 at most are read"):
        decode_image(data, most_pixels=10_000)


def test_floating_point_samples_have_no_range():
    with pytest.raises(BadImageError, match="floating-point"):
        decode_image(encode(Image.new("F", (4, 4)), "TIFF"))


def photograph(size=200):
    """Noise at every scale, which fills a JPEG's data as a photograph does."""
    rng = np.random.default_rng(0)
    total = np.zeros((size, size, 3))
    for side in (4, 8, 16, 32, 64, size):
        layer = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += np.asarray(layer.resize((size, size), Image.Resampling.BICUBIC)) / side**0.5
    return Image.fromarray((total / total.max() * 255).astype(np.uint8))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_scrambled_bytes_in_its_middle_decodes_with_a_warning(progressive):
    sound = encode(photograph(), "JPEG", quality=85, progressive=progressive)
    middle = len(sound) // 2
    scrambled = sound[:middle] + bytes(400) + sound[middle + 400 :]
    assert decode_image(scrambled).size == (200, 200)
    assert decoder_warning(scrambled).startswith("Corrupt JPEG data")
    assert decoder_warning(sound) == ""


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_sound_images_have_no_warning(mode):
    image = photograph(40).convert(mode)
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        assert decoder_warning(encode(image, "JPEG", **options)) == ""
    assert decoder_warning(encode(image, "JPEG") + b"trailing") == ""
    assert decoder_warning(encode(photograph(40))) == ""


def test_a_jpeg_may_come_smaller_but_no_side_below_what_is_asked_for():
    encoded = encode(photograph(400).resize((640, 400)), "JPEG")
    assert decode_image(encoded, 64).size == (160, 100)
    assert decode_image(encoded, 401).size == (640, 400)
    assert decode_image(encode(photograph(100)), 10).size == (100, 100)
