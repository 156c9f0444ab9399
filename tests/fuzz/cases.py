"""One case: a valid file, damaged in a way that its number decides, and read under watch."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from safe_ray.errors import InputError
from tests.fuzz.damage import damaged
from tests.fuzz.guard import Hang, watched
from tests.fuzz.reader import Reader

HUGE = 2**42
"""Bytes of a file that has holes in place of them."""


@dataclass(frozen=True)
class Finding:
    """What one case came to.

    Attributes:
        refused: whether the reader refused what it read.
        seconds: how long it took.
        fault: what was wrong about that, or "".
    """

    refused: bool
    seconds: float
    fault: str = ""


@functools.cache
def valid_files(reader: Reader) -> Mapping[str, bytes]:
    """Return the files that the reader's `make` writes, which it must then read."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        folder = Path(root, "case")
        folder.mkdir()
        reader.make(folder)
        files = {
            str(file.relative_to(folder)): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        reader.read(folder)
    return files


def targets(reader: Reader) -> list[str]:
    """Return those of the files that are damaged."""
    names = [Path(name) for name in valid_files(reader)]
    found = [name for name in names if any(_matches(name, one) for one in reader.damage)]
    assert found, reader.name
    return [str(name) for name in found]


def _matches(name: Path, pattern: str) -> bool:
    start, several, end = pattern.partition("**/")
    if not several:
        return name.match(pattern) and len(name.parts) == len(Path(pattern).parts)
    return str(name).startswith(start) and name.match(end)


def run_case(reader: Reader, rng: Random, root: Path, keep: Path | None = None) -> Finding:
    """Damage the reader's files as `rng` says, let it read them, and judge what comes of it.

    Args:
        reader: of the registry.
        rng: decides all.
        root: an empty folder of the reader's own.
        keep: where the files of a case with a fault are copied to.
    """
    folder, secret = root / "case", root / "secret"
    with _fresh(folder, secret, valid_files(reader)):
        regular = [_damage(reader, folder, secret, rng) for _ in range(rng.choice((1, 1, 1, 2)))]
        if all(regular) and rng.randint(0, 1):
            reader.sign(folder)
        finding = judged(reader, folder, secret if reader.confined else root / "nothing")
        if finding.fault and keep is not None:
            shutil.rmtree(keep, ignore_errors=True)
            shutil.copytree(folder, keep, symlinks=True, ignore=_pipes)
        return finding


def _pipes(folder: str, names: Sequence[str]) -> list[str]:
    places = [Path(folder, name) for name in names]
    return [
        place.name
        for place in places
        if not place.is_symlink()
        and not place.is_dir()
        and (not place.is_file() or place.stat().st_size > 2**30)
    ]


def _damage(reader: Reader, folder: Path, secret: Path, rng: Random) -> bool:
    """Damage one file, and return whether it is still one."""
    name = rng.choice(targets(reader))
    file = folder / name
    special = rng.randint(0, 59)
    if special > 5:
        if file.is_file() and file.stat().st_size < HUGE:
            file.write_bytes(damaged(name, file.read_bytes(), rng))
        return True
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)
    if special == 0:
        os.mkfifo(file)
    elif special == 1:
        file.mkdir()
    elif special == 2:
        with file.open("wb") as stream:
            stream.truncate(HUGE)
    elif special == 3 and reader.own:
        file.symlink_to(secret / "secret.json")
    elif special == 4:
        file.symlink_to(file.name)
    elif special == 5:
        file.write_bytes(b"")
    return False


def judged(reader: Reader, folder: Path, secret: Path) -> Finding:
    """Let the reader read the folder, and judge what it does."""
    began = time.perf_counter()
    refused, fault = False, ""
    with watched(folder, secret) as watch:
        try:
            reader.read(folder)
        except reader.allowed as error:
            refused = True
            fault = _fault_of(error)
        except (Hang, Exception) as error:
            fault = "".join(traceback.format_exception(error)[-6:])
    if watch.crimes:
        fault = "; ".join((fault, *watch.crimes)).removeprefix("; ")
    return Finding(refused, time.perf_counter() - began, fault)


def _fault_of(error: BaseException) -> str:
    text = str(error)
    if not text.strip():
        return f"it says nothing ({error!r})"
    if "\n" in text or 'File "' in text:
        return f"it says more than a sentence: {text!r}"
    if isinstance(error, InputError) and not text.isprintable():
        return f"it says what a terminal would obey: {text!r}"
    return ""


@contextlib.contextmanager
def _fresh(folder: Path, secret: Path, files: Mapping[str, bytes]) -> Iterator[None]:
    for place in (folder, secret):
        place.mkdir()
    (secret / "secret.json").write_text("{}")
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    try:
        yield
    finally:
        for place in (folder, secret):
            shutil.rmtree(place, ignore_errors=True)


def seeded(reader: Reader, seed: int, number: int) -> Random:
    """Return what decides the case of that number."""
    return Random(f"{reader.name}/{seed}/{number}")
