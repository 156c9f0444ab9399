"""Every image of a data set is looked at once, and what is wrong with it is said."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from safe_ray.data.manifest import Manifest
from safe_ray.features.survey import survey
from tests.conftest import SHAPES, draw_shape
from tests.data.image_tree import load

NAMES = sorted(SHAPES)[:3]


def jpeg(encoded: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, variants in (("train", range(4)), ("test", range(4, 6))):
        for name in NAMES:
            (tmp_path / split / name).mkdir(parents=True)
            for variant in variants:
                file = tmp_path / split / name / f"{variant}.png"
                file.write_bytes(draw_shape(name, variant))
    return tmp_path


def read(folder: Path) -> Manifest:
    return load("folder", folder)


def test_a_sound_data_set_has_nothing_to_say(folder: Path) -> None:
    assert list(survey(read(folder)).lines()) == [
        "All 18 images decode.",
        "No image is in more than one split.",
        "No image is in more than one class.",
    ]


def test_the_same_bytes_and_the_same_looks_are_found_across_splits_and_classes(
    folder: Path,
) -> None:
    one, two, three = NAMES
    (folder / "test" / one / "copy.png").write_bytes(draw_shape(one, 0))
    (folder / "test" / one / "saved again.jpg").write_bytes(jpeg(draw_shape(one, 1)))
    (folder / "train" / three / "wrong.png").write_bytes(draw_shape(two, 2))
    (folder / "train" / one / "copy in its own class.png").write_bytes(draw_shape(one, 2))
    lines = list(survey(read(folder)).lines())
    assert lines[1:4] == [
        "2 images are in another split as well (1 in the same bytes, 1 by their looks): a result "
        "on them is too good.",
        f"  train: train/{one}/0.png ({one}) is test: test/{one}/copy.png ({one})",
        f"  train: train/{one}/1.png ({one}) looks like test: test/{one}/saved again.jpg ({one})",
    ]
    assert lines[4].startswith("1 image is in another class as well (1 in the same bytes")
    assert (lines[5].count(f"train/{two}/2.png"), len(lines)) == (1, 6)


def test_bad_and_doubtful_images_are_named(folder: Path) -> None:
    (folder / "train" / NAMES[0] / "0.png").write_bytes(b"<html>")
    (folder / "test" / NAMES[1] / "4.png").unlink()
    manifest = read(folder)
    (folder / "train" / NAMES[1] / "0.png").unlink()
    buffer = io.BytesIO()
    Image.effect_noise((90, 90), 80).save(buffer, "JPEG")
    noise = buffer.getvalue()
    damaged = noise[: len(noise) // 2] + bytes(400) + noise[len(noise) // 2 + 400 :]
    (folder / "test" / NAMES[2] / "5.png").write_bytes(damaged)
    found = survey(manifest)
    lines = list(found.lines())
    assert lines[0] == "2 of 17 images cannot be used:"
    assert lines[1].startswith(f"  train: train/{NAMES[0]}/0.png: not an image")
    assert lines[2] == f"  train: train/{NAMES[1]}/0.png: No such file or directory"
    assert lines[3] == "1 of them with a warning; they may be damaged:"
    assert lines[4].startswith(f"  test: test/{NAMES[2]}/5.png: Corrupt JPEG data")
    assert (len(found.bad), len(found.sound)) == (2, 15)


def test_the_first_ten_bad_images_are_named(folder: Path) -> None:
    for file in (folder / "train").rglob("*.png"):
        file.write_bytes(b"x")
    lines = list(survey(read(folder)).lines())
    assert lines[0] == "12 of 18 images cannot be used:"
    assert all(line.startswith("  train: ") for line in lines[1:11])
    assert lines[11] == "  and 2 more"


def test_progress_has_an_estimate(folder: Path) -> None:
    told: list[tuple[int, int, float | None]] = []
    seconds = iter(range(0, 100, 10))
    survey(read(folder), lambda *now: told.append(now), clock=lambda: next(seconds))
    assert told == [(12, 18, pytest.approx(10 / 12 * 6)), (18, 18, 0)]


def test_of_a_large_data_set_evenly_spaced_images_are_looked_at(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    found = survey(read(folder), lambda done, total, left: told.append((done, total)), most=9)
    assert [look.split for look in found.looks] == ["train"] * 6 + ["test"] * 3
    assert next(found.lines()) == (
        "9 of 18 images were looked at, evenly spaced; what follows is about these."
    )
    assert told[-1] == (9, 9)
