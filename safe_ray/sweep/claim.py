"""A sweep's name: who holds its folder, and what was begun under it.

`config.json` holds what the results depend on. It is written when everything has been checked that
can be, so that a command which is refused takes no name and leaves no folder behind.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_ray.config import REMEMBERED, SweepConfig, difference, essentials
from safe_ray.errors import InputError
from safe_ray.files import write_atomically
from safe_ray.outside import read_json
from safe_ray.sweep.ownership import LOCK, OWNER, owning

BEGUN = "begun"
"""The key of `config.json` under which the beginning is kept."""


@dataclass(frozen=True)
class Beginning:
    """What is kept of how a sweep was begun.

    Attributes:
        id: tells it from another sweep that has its name later.
        candidates: of each task, as its commands have asked for them: every number is larger than
            the one before.
    """

    id: str
    candidates: tuple[int, ...]

    def asked(self, candidates: int) -> Beginning:
        """Return it with what one more command asks for."""
        if self.candidates and self.candidates[-1] == candidates:
            return self
        return Beginning(self.id, (*self.candidates, candidates))


@dataclass(frozen=True)
class Claim:
    """The right to work in a sweep's folder, which lasts as long as `claimed` does.

    Attributes:
        config: of the sweep.
        beginning: of the sweep, with what this command asks for.
        resumed: whether an earlier command has begun the sweep.
        anew: whether what is in the folder goes when the name is taken.
    """

    config: SweepConfig
    beginning: Beginning
    resumed: bool
    anew: bool

    def take(self) -> None:
        """Take the name: nothing is left to check, and the work begins.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = self.config.outputs
        if self.anew:
            _empty(folder)
        begun = {"id": self.beginning.id, "candidates": list(self.beginning.candidates)}
        content = {**essentials(self.config), BEGUN: begun}
        write_atomically(folder / REMEMBERED, json.dumps(content, indent=2) + "\n")


def _ignore(sentence: str) -> None:
    pass


@contextlib.contextmanager
def claimed(
    config: SweepConfig, anew: bool = False, say: Callable[[str], None] = _ignore
) -> Iterator[Claim]:
    """Hold the sweep's folder against a second driver.

    If the name is not taken before the block ends, the folder is as it was before.

    Args:
        config: of the sweep.
        anew: begin the sweep from nothing, whatever was begun under its name.
        say: is told what is waited for (see `safe_ray.sweep.ownership`).

    Raises:
        InputError: the folder cannot be written, another driver holds it, or the sweep of this
            name has another configuration.
    """
    folder = config.outputs
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    silence = config.cluster.silence
    with owning(folder, silence, say, leave=lambda: _leave(folder, missing)):
        yield _claim(config, anew)


def beginning_of(folder: Path) -> Beginning:
    """Return how the sweep in a folder was begun.

    Raises:
        InputError: none was, or what is kept of that cannot be read.
    """
    found = _read(folder / REMEMBERED)
    if found is None:
        raise InputError(f"{folder} is not the folder of a sweep: it has no {REMEMBERED}.")
    return found[0]


def was_begun(config: SweepConfig) -> bool:
    """Return whether there is a sweep of this name."""
    return (config.outputs / REMEMBERED).exists()


def _leave(folder: Path, made: Sequence[Path]) -> None:
    """Remove the lock, and the folders that were made for it, of a name that was not taken."""
    if not (folder / REMEMBERED).exists():
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
            for place in made:
                place.rmdir()


def _claim(config: SweepConfig, anew: bool) -> Claim:
    candidates = config.search.candidates
    before = None if anew else _read(config.outputs / REMEMBERED)
    if before is None:
        new = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        return Claim(config, Beginning(new, (candidates,)), resumed=False, anew=anew)
    begun, old = before
    changed = difference(old, essentials(config))
    if changed is not None:
        raise InputError(
            f"The sweep {config.sweep!r} in {config.outputs} was started with another "
            f"configuration ({changed}): go on with the old one, choose another name with "
            "sweep=<name>, or begin it anew with --restart."
        )
    if candidates < begun.candidates[-1]:
        raise InputError(
            f"The sweep {config.sweep!r} in {config.outputs} has {begun.candidates[-1]} candidates "
            f"a task, and search.candidates={candidates} is fewer: a sweep may get more, so leave "
            "it as it was, choose another name with sweep=<name>, or begin it anew with --restart."
        )
    return Claim(config, begun.asked(candidates), resumed=True, anew=False)


def _read(file: Path) -> tuple[Beginning, Mapping[str, Any]] | None:
    if not file.exists():
        return None
    try:
        content = read_json(file, follow=False)
        begun = content.pop(BEGUN)
        beginning = Beginning(str(begun["id"]), tuple(map(int, begun["candidates"])))
        if not beginning.candidates:
            raise ValueError("it says of no command how many candidates it asked for")
        return beginning, content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} cannot be read ({error!r}): choose another name with sweep=<name>, or begin "
            "the sweep anew with --restart."
        ) from None


def _empty(folder: Path) -> None:
    """Remove all of a sweep's folder but the lock, and what says that it is a sweep.

    The latter is replaced when the rest is gone. A command that dies in between leaves the old
    sweep with fewer banks, which it trains again when it goes on.
    """
    try:
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in (LOCK, OWNER, REMEMBERED):
                entry.unlink()
    except OSError as error:
        raise InputError(
            f"Could not remove the old sweep in {folder} ({error.strerror}): remove it by hand, or "
            "choose another name with sweep=<name>."
        ) from error
