"""Harm to disks: one that is full, and stored maps that are damaged."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from safe_ray.features.parts import open_part
from tests.faults.lab import Impossible, Lab

# Two banks of the tiny sweep write their checkpoints into it at once, each beside the old one.
_SMALL = "200m"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 200 MB in a folder.

    Raises:
        Impossible: this user may not, or the system has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_SMALL}", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError as error:
        raise Impossible("there is no mount command") from error
    except subprocess.CalledProcessError as error:
        raise Impossible(f"nothing can be mounted here: {error.stderr.strip()}") from error
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Fill a folder's file system but for some bytes, and return the file that takes the room."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    size = ballast.stat().st_size
    with ballast.open("r+b") as file:
        file.truncate(max(0, size - left))
    return ballast


def full_at(
    moments: Sequence[str], folder: Callable[[Lab], Path], rest: int, *, ends: bool = True
) -> Callable[[Lab], None]:
    """Return what fills a disk at one of some moments, but for fewer than `rest` bytes.

    Args:
        moments: a seed chooses one.
        folder: on the disk.
        rest: of a size that nothing fits into.
        ends: whether the sweep cannot go on then.
    """

    def harm(lab: Lab) -> None:
        sweep = lab.reach(lab.random.choice(moments))
        ballast = fill(folder(lab), lab.random.randrange(rest))
        lab.mend.append(ballast.unlink)
        if ends:
            ended = sweep.end()
            assert "free some space" in ended.said, ended.said
            assert "attempts" not in ended.said, ended.said

    return harm


def store_folder(lab: Lab) -> Path:
    return lab.folder / "store"


def banks_folder(lab: Lab) -> Path:
    return lab.sweep_folder / "banks"


def artifacts_folder(lab: Lab) -> Path:
    return lab.storage / "mlartifacts"


@contextlib.contextmanager
def store_on_small_disk(lab: Lab) -> Iterator[None]:
    with small_disk(store_folder(lab)):
        lab.store = store_folder(lab)
        yield


@contextlib.contextmanager
def banks_on_small_disk(lab: Lab) -> Iterator[None]:
    with small_disk(banks_folder(lab)):
        yield


@contextlib.contextmanager
def heads_on_small_disk(lab: Lab) -> Iterator[None]:
    # Without checkpoints, a head is the first large file of a bank.
    lab.overrides.append("training.checkpoint_seconds=1000")
    with small_disk(banks_folder(lab)):
        yield


@contextlib.contextmanager
def artifacts_on_small_disk(lab: Lab) -> Iterator[None]:
    with small_disk(artifacts_folder(lab)):
        yield


def with_parts(
    damage: Callable[[Lab, Path], None],
) -> Callable[[Lab], AbstractContextManager[None]]:
    """Return a scene whose store holds all maps, some of them damaged."""

    @contextlib.contextmanager
    def scene(lab: Lab) -> Iterator[None]:
        lab.store = store_folder(lab)
        if not lab.store.exists():
            shutil.copytree(lab.world.undisturbed / "features", lab.store)
        parts = sorted(lab.store.glob("*/part-*.arrow"))
        damage(lab, lab.random.choice(parts))
        yield

    return scene


def tear(lab: Lab, part: Path) -> None:
    size = part.stat().st_size
    with part.open("r+b") as file:
        file.truncate(lab.random.randrange(size))


def flip(lab: Lab, part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[lab.random.randrange(len(content))] ^= 1 << lab.random.randrange(8)
    part.write_bytes(content)


def is_set_aside(lab: Lab) -> None:
    """What was damaged is named; a flipped bit may lie where a file has nothing to say."""

    def check() -> None:
        assert lab.store is not None
        for damaged in lab.store.glob("*/*.damaged"):
            assert f"{damaged.name.removesuffix('.damaged')}" in lab.said
            assert "is damaged" in lab.said
        for part in lab.store.glob("*/part-*.arrow"):
            opened = open_part(part)
            opened.check(np.arange(len(opened.maps)))

    lab.after.append(check)
