"""Digests, atomic writes and the one way in which a path in a configuration is read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.resources
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safe_ray.errors import DamagedFileError, InputError
from safe_ray.outside import read_json

PACKAGE_SCHEME = "pkg://"
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

_ADAPTERS: dict[type, Any] = {}
_DIGEST = "digest"
_Kind = TypeVar("_Kind")


def sha256_hex(*chunks: bytes, length: int = 64) -> str:
    """Return the first `length` hexadecimal digits of the SHA-256 over the chunks, joined."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()[:length]


def digest_json(value: Any, length: int = 16) -> str:
    """Return a digest of a JSON value that does not depend on the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_hex(canonical.encode(), length=length)


def unwritable(path: Path, error: OSError, setting: str = "storage") -> InputError:
    """Return the refusal of a path that could not be written, with the remedy of its cause."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space there"
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = "give this user the right to write there"
    else:
        remedy = "see to it that its folder can be written to"
    return InputError(
        f"Could not write {path} ({error.strerror}): {remedy}, or name another folder with "
        f"{setting}=<folder>."
    )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    A reader of `path` sees the old file or the whole new one.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` through `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links.

    Neither name may be written in place afterwards.
    """
    with replacing(target) as temporary:
        link_or_copy(source, temporary)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target`, which is not there yet, a link to `source`, or else a copy of it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def is_uri(text: str) -> bool:
    """Return whether `text` is a URI such as `s3://bucket/folder`, and not a local path."""
    return "://" in text and not text.startswith(PACKAGE_SCHEME)


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object together with its digest, so that `read_record` knows it again."""
    record = {**value, _DIGEST: digest_json(value)}
    write_atomically(path, json.dumps(record, allow_nan=False))


def read_record(path: Path) -> dict[str, Any] | None:
    """Read what `write_record` wrote; None if there is no file.

    Raises:
        DamagedFileError: the file is torn, or a part of it was altered.
        InputError: it cannot be read.
    """
    try:
        value = read_json(path, follow=False)
        # Records of older versions have no digest.
        whole = isinstance(value, dict)
        if whole and _DIGEST in value:
            whole = value.pop(_DIGEST) == digest_json(value)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the disk.") from error
    except ValueError:
        whole = False
    if not whole:
        raise damaged(path)
    return value


def damaged(path: Path) -> DamagedFileError:
    """Return the error that a file of the program's own does not hold what was written."""
    return DamagedFileError(
        f"{path} is damaged: delete it, and give the same command again to have it made anew."
    )


def as_kind(kind: type[_Kind], value: Any, path: Path) -> _Kind:
    """Return the dataclass that a record's plain values describe, every field of its type.

    Args:
        kind: the dataclass; its fields may be dataclasses, too.
        value: what `read_record` returned.
        path: of the record, for the error.

    Raises:
        DamagedFileError: a field is missing, or has another type.
    """
    from pydantic import ValidationError

    try:
        described: _Kind = _adapter(kind).validate_python(value)
        return described
    except ValidationError as error:
        raise damaged(path) from error


def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def names_file(text: str) -> bool:
    """Return whether what somebody calls weights is a file, and not a tag such as `openai`."""
    return text.startswith(("~", "$")) or "/" in text or text.endswith(WEIGHTS_SUFFIXES)


def check_writable(folder: Path, setting: str) -> None:
    """Check that a folder can be written to, or made, without making it.

    Args:
        folder: absolute.
        setting: the knob that names it, for the error.

    Raises:
        InputError: the first folder above it that exists is none, or is read-only.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        reason = "is a file"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = "cannot be written to"
    else:
        return
    raise InputError(
        f"{setting} is {folder}, and {existing} {reason}: make it a folder that you may write to, "
        f"or name another with {setting}=<folder>."
    )


def resolve_path(text: str | Path, base: Path | None = None) -> Path:
    """Return the absolute path that `text` names.

    `pkg://package/inner/path` is a file inside an installed package; `~` and environment variables
    are expanded; a relative path starts at `base` (by default the working directory).
    """
    name = str(text)
    if name.startswith(PACKAGE_SCHEME):
        package, _, inner = name.removeprefix(PACKAGE_SCHEME).partition("/")
        return Path(str(importlib.resources.files(package))) / inner
    path = Path(os.path.expandvars(name)).expanduser()
    return path if path.is_absolute() else (base or Path.cwd()) / path
