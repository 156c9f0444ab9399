"""What `python -m safe_ray.predict` says of its progress."""

from __future__ import annotations

import pytest

from safe_ray.prediction.command import _Count


@pytest.mark.parametrize(
    ("images", "errors", "seconds", "said"),
    [
        (1, 0, 0.5, "1 image in 0 s (2.0 a second)."),
        (9, 1, 45.0, "9 images in 45 s (0.2 a second); 1 could not be read, and their rows "),
        (1200, 0, 4.0, "1200 images in 4 s (300 a second)."),
    ],
)
def test_the_last_line_counts_images(images: int, errors: int, seconds: float, said: str) -> None:
    counted = _Count(quiet=True)
    counted.add(images, errors)
    assert counted.summary(seconds).startswith(said)
