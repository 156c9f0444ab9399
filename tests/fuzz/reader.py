"""What a reader is to the tests: how a valid file is made, how it is read, what may come of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safe_ray.errors import InputError
from safe_ray.files import digest_json

Fold = Callable[[Path], object]


def nothing(folder: Path) -> None:
    """Leave everything as it is."""


@dataclass(frozen=True)
class Reader:
    """One way in for what others may have written.

    Attributes:
        name: of the reader.
        make: writes valid files into an empty folder, as the project itself writes them.
        read: reads them, with all that the project then does before it trusts them.
        damage: patterns of the files that are damaged; the others stay.
        allowed: the errors that the command line makes sentences of.
        sign: makes the digests right again after the damage, as one who means harm would.
        own: whether the files are the project's own, which are never links.
        confined: whether what is read must lie in the folder; a table may name any file.
        share: how many cases this reader gets, beside others'.
    """

    name: str
    make: Fold
    read: Fold
    damage: tuple[str, ...] = ("**/*",)
    allowed: tuple[type[Exception], ...] = (InputError,)
    sign: Fold = nothing
    own: bool = True
    confined: bool = True
    share: int = 4


def sign_records(folder: Path) -> None:
    """Give every JSON record the digest of what it holds now."""
    for file in folder.rglob("*.json"):
        try:
            value = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(value, dict) and "digest" in value:
            value.pop("digest")
            try:
                file.write_text(json.dumps({**value, "digest": digest_json(value)}))
            except (ValueError, RecursionError):
                continue


def sha256_of(file: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
