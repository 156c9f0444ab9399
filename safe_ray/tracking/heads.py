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


def store_head(client: MlflowClient, known: Known, head: Path) -> None:
    """Make a head's files the artifact `head/` of a run.

    Raises:
        InputError: what the server calls the place of the run's artifacts is none of the run's own.
    """
    folder = _local_folder(known)
    if folder is None:
        client.log_artifacts(known.run_id, str(head), HEAD_FOLDER)
    else:
        _link_files(head, folder / HEAD_FOLDER)


def mend_head(known: Known, head: Path) -> None:
    """Let an artifact that is a link to a head follow it, where the head was written anew.

    Raises:
        InputError: see `store_head`.
    """
    folder = _local_folder(known)
    if folder is not None and _has_old_links(head, folder / HEAD_FOLDER):
        _link_files(head, folder / HEAD_FOLDER)


def digest_of(content: bytes) -> str:
    """Return 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def folder_digest(folder: Path) -> str:
    """Return the digest of a folder's files, of their names and their contents."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = (f"{file.relative_to(folder)}\t{digest_of(file.read_bytes())}" for file in files)
    return digest_of("\n".join(lines).encode())


def _local_folder(known: Known) -> Path | None:
    """Return the folder of a run's artifacts; None if they lie elsewhere than on this machine.

    A server that could name any folder could have files written into it. MLflow gives each run a
    folder of its own, that has the run's id in its path.
    """
    parts = urlsplit(known.artifact_uri)
    if parts.scheme not in ("", "file"):
        return None
    folder = Path(url2pathname(parts.path) if parts.scheme else known.artifact_uri)
    if not is_plain_name(known.run_id) or ".." in folder.parts or known.run_id not in folder.parts:
        raise InputError(
            f"MLflow names {known.artifact_uri!r} as the place of the artifacts of run "
            f"{known.run_id!r}, which is no folder of this run alone: put the server right."
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


def _link_files(source: Path, target: Path) -> None:
    """Put the files of one folder into another without a second copy on the same disk.

    Heads are never changed in place, so that a hard link is as good as a copy.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        temporary = target / f".{file.name}.{threading.get_ident()}.{uuid.uuid4().hex[:8]}"
        link_or_copy(file, temporary)
        # rename(2) leaves both names when they are already links to one file.
        temporary.replace(target / file.name)
        temporary.unlink(missing_ok=True)
