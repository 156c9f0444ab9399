"""Where data lies: local paths, and URIs of any file system that Arrow or fsspec knows.

A path inside a folder is always relative, with `/`, and as the names read: URIs of the schemes that
percent-encode (`http`, `s3`, `gs`, ...) are encoded and decoded here. Access to a remote system is
what its library finds by itself, in the environment or in its own files.
"""

from __future__ import annotations

import datetime
import errno
import functools
import os
import sys
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from safe_ray.errors import InputError
from safe_ray.files import is_uri, resolve_path, sha256_hex
from safe_ray.outside import GIB, check_file, open_file

FILE_SCHEME = "file://"
LARGEST = 2 * GIB
"""The bytes of a local file that are read at once."""

_WEB = ("http", "https")
_ENCODED = (*_WEB, "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
# What fsspec's file systems call the time of the last change, the best first.
_CHANGED = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified")
_CHECKSUMS = ("ETag", "etag", "Content-MD5", "Digest", "md5Hash", "created")


def locate(text: str, root: Path) -> str:
    """Return the absolute path that `text` names, relative ones from `root`, or a URI as it is.

    A `file://` URI is a local path, and becomes one.
    """
    local = _local(text)
    return text if local is None else str(resolve_path(local, root))


def join(folder: str, relative: str) -> str:
    """Return the location of what has the relative path `relative` in a folder."""
    local = _local(folder)
    if local is not None:
        return os.path.join(local, relative)  # noqa: PTH118 - a million times, and URIs beside it
    base, mark, query = folder.partition("?")
    scheme = base.partition("://")[0]
    inside = urllib.parse.quote(relative) if scheme in _ENCODED else relative
    return f"{base.rstrip('/')}/{inside}{mark}{query}"


def read_bytes(
    file: str, offset: int = 0, length: int | None = None, largest: int = LARGEST
) -> bytes:
    """Return the bytes of a file, or `length` of them from `offset`.

    Raises:
        OSError: it is missing, out of reach or shorter than that; or it is a local file, and no
            regular one, or more than `largest` bytes of it are wanted.
        InputError: a package for its file system is not installed.
    """
    local = _local(file)
    if local is None:
        content = _remote(file).read(offset, length)
    else:
        with open_file(local) as stream:
            size = os.fstat(stream.fileno()).st_size
            wanted = size - offset if length is None else length
            # A length that the file does not have would be allocated before it is missed.
            if not 0 <= offset <= offset + wanted <= size:
                raise OSError(errno.EIO, f"the file ends before byte {offset + wanted}")
            if wanted > largest:
                raise OSError(errno.EFBIG, f"it has {wanted} bytes, more than {largest}")
            stream.seek(offset)
            content = stream.read(wanted)
    if length is not None and len(content) < length:
        raise OSError(errno.EIO, f"the file ends before byte {offset + length}")
    return content


def stamp(file: str) -> tuple[int, int]:
    """Return the size of a file in bytes, and what changes when it is written again.

    The second is the time of its last change in nanoseconds, or where the file system keeps none a
    number made of its checksum; 0 if nothing is known.

    Raises:
        OSError: it is missing or out of reach.
        InputError: a package for its file system is not installed.
    """
    local = _local(file)
    if local is None:
        return _remote(file).stamp()
    try:
        status = os.stat(local)  # noqa: PTH116 - a million times
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have such a name") from error
    return status.st_size, status.st_mtime_ns


def exists(location: str) -> bool:
    """Return whether there is a file or a folder.

    Raises:
        InputError: its file system is out of reach, or a package for it is not installed.
    """
    local = _local(location)
    if local is not None:
        return Path(local).exists()
    with _Explained(location):
        return _remote(location).kind() != "nothing"


def absent(files: Iterable[str]) -> list[str]:
    """Return those of many local files that do not exist, in their order; URIs are not looked at.

    Each folder is listed once, which is far fewer calls than asking for each file.
    """
    names: dict[str, frozenset[str]] = {}
    gone = []
    for file in files:
        local = _local(file)
        if local is None:
            continue
        folder, _, name = local.rpartition("/")
        if folder not in names:
            names[folder] = _names_in(folder or "/")
        # A file system may know a file under other letters than those that its listing has.
        if name not in names[folder] and not os.path.exists(local):  # noqa: PTH110
            gone.append(file)
    return gone


def _names_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208
    # The latter for a name with a zero byte.
    except (OSError, ValueError):
        return frozenset()


def is_folder(location: str) -> bool:
    """Return whether there is a folder.

    Raises:
        InputError: its file system is out of reach, or a package for it is not installed.
    """
    local = _local(location)
    if local is not None:
        return Path(local).is_dir()
    with _Explained(location):
        return _remote(location).kind() == "folder"


def list_folder(folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, each sorted.

    Hidden ones and `__MACOSX` are left out.

    Raises:
        InputError: it cannot be listed, or a name is no UTF-8.
    """
    local = _local(folder)
    with _Explained(folder):
        if local is None:
            folders, files = _remote(folder).listing()
            return sorted(filter(_visible, folders)), sorted(filter(_visible, files))
        found = list(_scan(local))
    folders = [name for name, kind in found if kind == "folder"]
    files = [name for name, kind in found if kind == "file"]
    _check_names(folder, (*folders, *files))
    return sorted(folders), sorted(files)


def walk(folder: str) -> list[str]:
    """Return the relative paths of all files in a folder and the folders in it, sorted.

    Hidden files and folders and `__MACOSX` are left out. Symbolic links are followed, but not one
    that leads back to a folder it lies in; one that leads nowhere is listed, for whoever reads it
    to name.

    Raises:
        InputError: it cannot be listed, or a name is no UTF-8.
    """
    local = _local(folder)
    with _Explained(folder):
        if local is None:
            paths = _remote(folder).walk()
            return sorted(path for path in paths if all(map(_visible, path.split("/"))))
        files = list(_walk_local(local))
    _check_names(folder, files)
    files.sort()
    return files


def open_input(file: str) -> pa.NativeFile:
    """Open a file for reading at any place; over HTTP it is fetched whole.

    Raises:
        OSError: it is missing or out of reach.
        InputError: a package for its file system is not installed.
    """
    local = _local(file)
    if local is None:
        return _remote(file).open()
    check_file(local, sys.maxsize, follow=True)
    return pa.OSFile(local)


def first_line(error: BaseException) -> str:
    """Return what an error says, for the brackets in a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _local(text: str) -> str | None:
    if text.startswith(FILE_SCHEME):
        return urllib.parse.unquote(urllib.parse.urlsplit(text).path)
    return None if is_uri(text) else text


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _check_names(folder: str, names: list[str] | tuple[str, ...]) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{folder} has a file or folder whose name is not UTF-8, {os.fsencode(name)!r}: "
                "rename it."
            ) from None


def _scan(folder: str) -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            kind = _kind(entry) if _visible(entry.name) else None
            if kind is not None:
                yield entry.name, kind


def _kind(entry: os.DirEntry[str]) -> str | None:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    # A symbolic link to itself.
    except OSError:
        return "file"
    # Neither pipes, which would block their reader, nor sockets.
    return "file" if entry.is_symlink() and not Path(entry).exists() else None


def _walk_local(root: str) -> Iterator[str]:
    def identity(folder: str) -> tuple[int, int]:
        status = os.stat(folder)  # noqa: PTH116
        return status.st_dev, status.st_ino

    # (prefix of the relative paths, the folder and those it lies in)
    pending = [("", frozenset([identity(root)]))]
    while pending:
        prefix, above = pending.pop()
        for name, kind in _scan(f"{root}/{prefix}"):
            if kind == "file":
                yield prefix + name
                continue
            here = identity(f"{root}/{prefix}{name}")
            if here not in above:
                pending.append((f"{prefix}{name}/", above | {here}))


class _Explained:
    """Turns the errors of a file system into one sentence."""

    def __init__(self, location: str) -> None:
        self._location = location

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise InputError(
                f"{self._location} cannot be read ({first_line(error)}): correct the path, or "
                "check that you have access to it."
            ) from error


@dataclass(frozen=True)
class _Remote:
    """A path in a file system; of the two libraries the one that knows it."""

    path: str
    arrow: pafs.FileSystem | None = None
    spec: Any = None
    web: bool = False

    def read(self, offset: int, length: int | None) -> bytes:
        if self.arrow is not None:
            if not offset and length is None:
                with self.arrow.open_input_stream(self.path) as stream:
                    return stream.read()
            with self.arrow.open_input_file(self.path) as file:
                size = file.size() - offset if length is None else length
                return file.read_at(max(size, 0), offset)
        if not offset and length is None:
            return _only_os_errors(self.spec.cat_file, self.path)
        end = None if length is None else offset + length
        content = _only_os_errors(self.spec.cat_file, self.path, start=offset, end=end)
        # A web server may answer a request for a range with the whole file.
        if self.web and length is not None and len(content) > length:
            return content[offset : offset + length]
        return content

    def stamp(self) -> tuple[int, int]:
        if self.arrow is not None:
            info = self.arrow.get_file_info(self.path)
            if info.type == pafs.FileType.NotFound:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return info.size or 0, info.mtime_ns or 0
        found = _only_os_errors(self.spec.info, self.path)
        return int(found.get("size") or 0), _change(found)

    def kind(self) -> str:
        if self.arrow is not None:
            kind = self.arrow.get_file_info(self.path).type
            names = {pafs.FileType.Directory: "folder", pafs.FileType.NotFound: "nothing"}
            return names.get(kind, "file")
        # To a web server everything is a file; its folders are the pages of links.
        if self.web and not self.path.endswith("/"):
            found = _only_os_errors(self.spec.exists, self.path)
            page = found and _only_os_errors(self.spec.info, self.path).get("mimetype")
            return "folder" if page == "text/html" else "file" if found else "nothing"
        if _only_os_errors(self.spec.isdir, self.path):
            return "folder"
        return "file" if _only_os_errors(self.spec.exists, self.path) else "nothing"

    def listing(self) -> tuple[list[str], list[str]]:
        if self.arrow is not None:
            infos = self.arrow.get_file_info(pafs.FileSelector(self.path))
            folders = [info.base_name for info in infos if info.type == pafs.FileType.Directory]
            return folders, [info.base_name for info in infos if info.is_file]
        found = _only_os_errors(self.spec.ls, self.path, detail=True)
        named = [(self._relative(info["name"]), info["type"] == "directory") for info in found]
        named = [(name, is_folder) for name, is_folder in named if name and "/" not in name]
        return (
            [name for name, is_folder in named if is_folder],
            [name for name, is_folder in named if not is_folder],
        )

    def walk(self) -> list[str]:
        if self.arrow is not None:
            infos = self.arrow.get_file_info(pafs.FileSelector(self.path, recursive=True))
            return [self._relative(info.path) for info in infos if info.is_file]
        if not _only_os_errors(self.spec.isdir, self.path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return [self._relative(name) for name in _only_os_errors(self.spec.find, self.path)]

    def open(self) -> pa.NativeFile:
        if self.arrow is not None:
            return self.arrow.open_input_file(self.path)
        if self.web:
            return pa.BufferReader(self.read(0, None))
        return pa.PythonFile(_only_os_errors(self.spec.open, self.path, "rb"), mode="r")

    def _relative(self, name: str) -> str:
        inside = name.strip("/").removeprefix(self.path.strip("/")).strip("/")
        return urllib.parse.unquote(inside) if self.web else inside


def _remote(uri: str) -> _Remote:
    # fsspec reads a chain as a file in a file, or one that it first copies to this machine.
    if "::" in uri:
        raise InputError(f"{uri} chains file systems: name a file of one of them.")
    scheme, _, rest = uri.partition("://")
    if scheme in _WEB:
        return _Remote(uri, spec=_fsspec(uri)[0], web=True)
    body, _, query = rest.partition("?")
    authority, _, path = body.partition("/")
    path = (urllib.parse.unquote(path) if scheme in _ENCODED else path).strip("/")
    known = _arrow(scheme, authority, query)
    if known is not None:
        system, base = known
        return _Remote(f"{base.rstrip('/')}/{path}".rstrip("/"), arrow=system)
    system, stripped = _fsspec(uri)
    if scheme in _ENCODED:
        stripped = urllib.parse.unquote(stripped)
    return _Remote(stripped.rstrip("/"), spec=system)


@functools.lru_cache(maxsize=16)
def _arrow(scheme: str, authority: str, query: str) -> tuple[pafs.FileSystem, str] | None:
    try:
        system, base = pafs.FileSystem.from_uri(
            f"{scheme}://{authority}/" + (f"?{query}" if query else "")
        )
    # An unknown scheme, or one that this build of Arrow came without.
    except (ValueError, NotImplementedError):
        return None
    # Arrow hands some schemes over to fsspec itself, and hides half of what that can do.
    return None if isinstance(system, pafs.PyFileSystem) else (system, base)


def _fsspec(uri: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs
    from fsspec.registry import available_protocols

    scheme = uri.partition("://")[0]
    try:
        return url_to_fs(uri)
    except ImportError as error:
        missing = getattr(error.__cause__ or error, "name", None) or scheme
        raise InputError(
            f"Reading {uri} needs a package that is not installed: run `pip install "
            f"{missing.partition('.')[0]}`."
        ) from error
    # Some file systems can be made from a URI only if it has more to it.
    except (TypeError, ValueError) as error:
        if scheme in available_protocols():
            raise OSError(first_line(error)) from error
        raise InputError(
            f"No file system is known for {uri}: use a local path, or a scheme such as s3://, "
            "gs://, abfs://, hdfs:// or https://."
        ) from error


def _only_os_errors(call: Any, *args: Any, **options: Any) -> Any:
    """Call fsspec, whose file systems raise the errors of the libraries below them."""
    try:
        return call(*args, **options)
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
    except OSError:
        raise
    except Exception as error:
        raise OSError(first_line(error)) from error


def _change(info: dict[str, Any]) -> int:
    for key in _CHANGED:
        value = info.get(key)
        if isinstance(value, datetime.datetime):
            return int(value.timestamp() * 1e9)
        if isinstance(value, int | float) and value:
            return int(value * 1e9)
    texts = [str(info[key]) for key in (*_CHANGED, *_CHECKSUMS) if info.get(key)]
    return int(sha256_hex("\n".join(texts).encode(), length=15), 16) if texts else 0
