"""Heads as artifacts of runs, without a second copy on the same disk."""

from __future__ import annotations

import hashlib
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from safe_ray.errors import InputError
from safe_ray.files import link_or_copy
from safe_ray.outside import is_plain_name
from safe_ray.tracking.runs import Known

if TYPE_CHECKING:
    from mlflow import MlflowClient

HEAD_FOLDER = "head"


def store_head(client: MlflowClient, known: Known, head: Path, place: str = HEAD_FOLDER) -> None:
    """Make a head's files an artifact of a run, by default `head/`.

    Raises:
        InputError: what the server calls the place of the run's artifacts is none of the run's own.
    """
    folder = local_folder(known.artifact_uri, known.run_id)
    if folder is None:
        client.log_artifacts(known.run_id, str(head), place)
    else:
        link_files(head, folder / place)


def mend_head(known: Known, head: Path) -> None:
    """Let an artifact that is a link to a head follow it, where the head was written anew.

    Raises:
        InputError: see `store_head`.
    """
    folder = local_folder(known.artifact_uri, known.run_id)
    if folder is not None and _has_old_links(head, folder / HEAD_FOLDER):
        link_files(head, folder / HEAD_FOLDER)


def digest_of(content: bytes) -> str:
    """Return 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def folder_digest(folder: Path) -> str:
    """Return the digest of a folder's files, of their names and their contents."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = (f"{file.relative_to(folder)}\t{digest_of(file.read_bytes())}" for file in files)
    return digest_of("\n".join(lines).encode())


def local_folder(artifact_uri: str, owner: str) -> Path | None:
    """Return the folder of a run's or a model's artifacts; None if they lie on another machine.

    A server that could name any folder could have files written into it. MLflow gives each run and
    each model a folder of its own, that has its id in its path.

    Args:
        artifact_uri: what the server calls the place.
        owner: the id of the run or the model.

    Raises:
        InputError: the place is none of its own.
    """
    parts = urlsplit(artifact_uri)
    if parts.scheme not in ("", "file"):
        return None
    folder = Path(url2pathname(parts.path) if parts.scheme else artifact_uri)
    if not is_plain_name(owner) or ".." in folder.parts or owner not in folder.parts:
        raise InputError(
            f"MLflow names {artifact_uri!r} as the place of the artifacts of {owner!r}, which is "
            "no folder of its own: put the server right."
        )
    return folder if folder.is_absolute() and parts.netloc in ("", "localhost") else None


def _has_old_links(source: Path, target: Path) -> bool:
    """Whether files on the same disk as `source` are no longer links to it."""
    for file in source.iterdir():
        try:
            there, here = (target / file.name).stat(), file.stat()
        except FileNotFoundError:
            return True
        if there.st_dev == here.st_dev and there.st_ino != here.st_ino:
            return True
    return False


def link_files(source: Path, target: Path) -> None:
    """Put the files of one folder into another without a second copy on the same disk.

    Heads are never changed in place, so that a hard link is as good as a copy.
    """
    for file in sorted(source.rglob("*")):
        if not file.is_file():
            continue
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{file.name}.{threading.get_ident()}.{uuid.uuid4().hex[:8]}")
        link_or_copy(file, temporary)
        # rename(2) leaves both names when they are already links to one file.
        temporary.replace(place)
        temporary.unlink(missing_ok=True)
