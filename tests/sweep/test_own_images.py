"""What is drawn, assumed and said of images of one's own: all are used, in their own shares."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from safe_ray.compose import load_config
from safe_ray.data.episodes import Episode
from safe_ray.data.manifest import Manifest
from safe_ray.features.inventory import no_progress
from safe_ray.sweep import data
from safe_ray.sweep.images import check_images
from tests.conftest import draw_shape


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """260 images in two classes of unequal size, without splits."""
    folder = tmp_path_factory.mktemp("own") / "cells"
    for name, shape, count in (("sound", "red circle", 150), ("broken", "black cross", 110)):
        (folder / name).mkdir(parents=True)
        for variant in range(count):
            (folder / name / f"{variant:03d}.png").write_bytes(draw_shape(shape, variant))
    return folder


def fewer_broken(unequal: Path, tmp_path: Path, count: int) -> Path:
    """Return a copy with so many images in the smaller class."""
    folder = tmp_path / "cells"
    shutil.copytree(unequal, folder)
    for image in sorted((folder / "broken").iterdir())[count:]:
        image.unlink()
    return folder


def drawn(folder: Path, *settings: str) -> tuple[Episode, Manifest, list[str]]:
    """Draw the one episode of the images, and return what is said about it."""
    config = load_config([f"data={folder}", f"storage={folder.parent}", *settings])
    manifests = data.read_manifests(config)
    ((task, episode),) = data.draw_episodes(config, manifests).items()
    return episode, manifests[task.dataset], data.assumptions(config, manifests, {task: episode})


def sizes(table: pa.Table) -> list[int]:
    return sorted(np.bincount(table["label"].to_numpy()).tolist(), reverse=True)


def test_unequal_classes_keep_their_shares_in_all_three_splits(unequal: Path) -> None:
    episode, manifest, said = drawn(unequal)
    assert sizes(manifest.split("test")) == [45, 33]
    assert sizes(episode.validation) == [21, 15]
    assert sizes(episode.train) == [84, 62]
    assert (
        "cells-all-seed1: 20% of each class's training images, 36 in all, are held out to choose "
        "candidates on; the other 146 support images train them."
    ) in said
    assert not any("other shares" in line for line in said)


def test_few_shots_of_unequal_classes_are_still_to_be_had(unequal: Path, tmp_path: Path) -> None:
    folder = fewer_broken(unequal, tmp_path, 60)
    episode, _, said = drawn(folder, "tasks.shots=16")
    assert (sizes(episode.train), sizes(episode.validation)) == ([16, 16], [4, 4])
    assert any("other shares" in line for line in said)
    episode, _, said = drawn(folder, "tasks.shots=16", "search.validation=held_out")
    assert (sizes(episode.train), sizes(episode.validation)) == ([16, 16], [21, 8])


def test_a_small_class_brings_cross_validation_on_all_images(unequal: Path, tmp_path: Path) -> None:
    episode, _, said = drawn(fewer_broken(unequal, tmp_path, 12))
    assert (sizes(episode.train), episode.validation.num_rows) == ([105, 8], 0)
    assert any("smallest class has fewer than 10 training images" in line for line in said)


def test_a_validation_split_is_used_whole(unequal: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    for split in ("train", "val", "test"):
        shutil.copytree(unequal, folder / split)
    for image in sorted((folder / "val" / "broken").iterdir())[30:]:
        image.unlink()
    episode, _, said = drawn(folder)
    assert (sizes(episode.train), sizes(episode.validation)) == ([150, 110], [150, 30])
    assert any("on the whole validation split, 180 images" in line for line in said)


def test_many_images_get_fewer_epochs_and_that_is_said(unequal: Path) -> None:
    _, _, said = drawn(unequal, "search.max_steps=30")
    (line,) = [line for line in said if "search.max_steps" in line]
    assert "146 support images are 5 steps an epoch" in line
    assert "at most 6 epochs and not 50, and 6 augmented views" in line


def test_test_images_among_the_training_images_are_counted_and_said(
    unequal: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cells"
    pictures = {name: sorted((unequal / name).iterdir()) for name in ("sound", "broken")}
    for place, split in enumerate(("train", "test")):
        for name, images in pictures.items():
            (folder / split / name).mkdir(parents=True)
            for image in images[place * 10 : place * 10 + 10]:
                shutil.copy(image, folder / split / name)
    shutil.copy(pictures["sound"][3], folder / "test" / "sound" / "copy.png")
    with Image.open(pictures["sound"][4]) as image:
        image.resize((160, 144)).save(folder / "test" / "sound" / "larger.jpg", quality=90)
    config = load_config([f"data={folder}", f"storage={tmp_path}"])
    manifests = data.read_manifests(config)
    episodes = data.draw_episodes(config, manifests)
    for _ in range(2):  # The second time from what the inventory remembers.
        checked = check_images(config, manifests, episodes, lambda name: no_progress)
        (said,) = checked.remarks()
        assert said.startswith(
            "cells: 2 of 22 test images are among the training images as well (1 in the same "
            "bytes, 1 by their looks), such as test/sound/copy.png, which is train/sound/003.png: "
        )
