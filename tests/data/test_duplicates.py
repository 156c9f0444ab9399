"""A picture is known again in other bytes, and two that are merely alike are not taken for one."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from safe_ray import embedded
from safe_ray.data.duplicates import Fingerprint, Twin, find_twins, fingerprint, thumbnail_of
from safe_ray.data.images import decode_image

DRAWINGS = Path(embedded.__file__).parent / "pictogram_objects.parquet"


def encoded_again(image: Image.Image, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return decode_image(buffer.getvalue())


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    """Drawings on white ground, which a hash alone takes for each other."""
    column = pq.read_table(DRAWINGS, columns=["image"])["image"]
    return [decode_image(image) for image in column.to_pylist()[:200]]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: encoded_again(image, format="JPEG", quality=50),
        lambda image: encoded_again(image, format="WEBP", quality=60),
        lambda image: image.resize((image.width // 2, image.height // 2)),
        lambda image: image.resize((image.width * 2, image.height * 3)),
    ],
)
def test_a_picture_in_another_format_or_size_is_known_again(drawings, change):
    prints = [fingerprint(str(number), image) for number, image in enumerate(drawings)]
    changed = [fingerprint(f"changed {n}", change(image)) for n, image in enumerate(drawings)]
    groups = [0] * len(prints) + [1] * len(changed)
    twins = find_twins([*prints, *changed], groups)
    assert all(twin.second - len(prints) == twin.first for twin in twins)
    assert not any(twin.exact for twin in twins)
    assert len(twins) >= 0.97 * len(drawings)


def test_different_pictures_are_not_taken_for_one(drawings):
    prints = [fingerprint(str(number), image) for number, image in enumerate(drawings)]
    apart = [(one.bits ^ two.bits).bit_count() for one in prints for two in prints if one != two]
    assert min(apart) <= 6
    assert find_twins(prints, range(len(prints))) == []


def flat(digest: str, level: int, bits: int = 0) -> Fingerprint:
    return Fingerprint(digest, bits, np.full((16, 16, 3), level, np.uint8))


def test_the_same_bytes_go_before_the_same_looks_and_only_other_groups_count():
    images = [flat("a", 100), flat("b", 100), flat("a", 100), flat("a", 100), flat("c", 200)]
    groups = [0, 0, 0, 1, 1]
    assert find_twins(images, groups) == [Twin(0, 3, exact=True)]
    assert find_twins(images, [0, 1, 2, 2, 3]) == [
        Twin(0, 1, exact=False),
        Twin(0, 2, exact=True),
        Twin(0, 3, exact=True),
    ]
    assert find_twins(images, [0] * 5) == []
    assert find_twins([], []) == []


@pytest.mark.parametrize(("levels", "bits", "found"), [(0, 6, 1), (0, 7, 0), (2, 0, 0)])
def test_where_there_is_no_contrast_little_difference_is_a_lot(levels, bits, found):
    two = [flat("a", 100), flat("b", 100 + levels, 2**bits - 1)]
    assert len(find_twins(two, [0, 1])) == found


def test_many_images_are_compared_in_seconds():
    rng = np.random.default_rng(0)
    count = 5_000
    images = [flat(str(n), 0, int(rng.integers(2**63))) for n in range(count)]
    images.append(flat("0", 0, images[0].bits))
    start = time.monotonic()
    assert find_twins(images, [*[0] * count, 1]) == [Twin(0, count, exact=True)]
    assert time.monotonic() - start < 10


def test_every_near_pair_is_compared_in_whichever_bits_it_differs():
    rng = np.random.default_rng(0)
    first = [int(bits) for bits in rng.integers(2**63, size=300)]
    flips = [sum(1 << int(bit) for bit in rng.choice(63, 6, replace=False)) for _ in first]
    images = [flat(f"a{n}", 100, bits) for n, bits in enumerate(first)]
    images += [
        flat(f"b{n}", 100, bits ^ flip)
        for n, (bits, flip) in enumerate(zip(first, flips, strict=True))
    ]
    twins = find_twins(images, [0] * 300 + [1] * 300)
    assert twins == [Twin(n, 300 + n, exact=False) for n in range(300)]


def test_many_images_without_any_contrast_are_no_burden():
    images = [flat(str(n), n % 256) for n in range(6_000)]
    start = time.process_time()
    twins = find_twins(images, [n // 256 % 2 for n in range(6_000)])
    assert time.process_time() - start < 20
    assert [twin.second for twin in twins] == list(range(256, 6_000))
    assert all(images[twin.first].thumbnail[0, 0, 0] == twin.second % 256 for twin in twins)


def test_what_a_photograph_looks_like_is_cheap_beside_its_decoding():
    """It is 2.5% of it at 500x375 already, where nothing else wants the processor."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    photo = coarse.resize((1600, 1200), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    photo.save(buffer, format="JPEG", quality=90)

    def least(work) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    decoding = least(lambda: decode_image(buffer.getvalue()))
    assert least(lambda: thumbnail_of(photo)) < 0.03 * decoding
