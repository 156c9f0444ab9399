"""Reading what others may have written: bounded before it is allocated, and plain values only.

Whoever can put a file where this project reads one may have meant harm. So a file is a regular
file of a bounded size, JSON and YAML are plain values of a bounded depth, size and range, and
nothing here runs, imports or follows what the content says. Files raise `OSError` and contents
`ValueError`, for the caller to make a sentence of.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KIB, MIB, GIB = 2**10, 2**20, 2**30
LARGEST_JSON = 256 * MIB
LARGEST_YAML = 256 * KIB
"""What a person writes by hand; a list of ten thousand class names has that size."""
LARGEST_TEXT = 256 * MIB
LARGEST_IMAGE = 512 * MIB

DEEPEST = 64
_LARGEST_INTEGER = 2**64
_MOST_YAML_NODES = 200_000
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_file(path: str | Path, largest: int, follow: bool = True) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: of the file.
        largest: how many bytes it may have.
        follow: whether it may be a symbolic link, as it is where Kubernetes mounts configuration;
            what the program writes itself is never one.

    Raises:
        OSError: it is missing, unreadable, no regular file, a link, or larger.
    """
    with open_file(path, follow) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > largest else file.read(largest + 1)
    if size > largest or len(content) > largest:
        raise OSError(
            errno.EFBIG, f"it has {max(size, len(content))} bytes, more than {largest}", str(path)
        )
    return content


def open_file(path: str | Path, follow: bool = True) -> Any:
    """Open a regular file for reading in binary mode; a pipe or a device would block or never end.

    Raises:
        OSError: it is missing, unreadable, no regular file, or a link and `follow` is off.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:
        # A zero byte, or half of a surrogate pair.
        raise OSError(errno.EINVAL, "no file can have such a name", repr(path)) from error
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def check_file(path: str | Path, largest: int, follow: bool = False) -> None:
    """Check that a file which a library will open by its name is what `read_file` would read.

    Raises:
        OSError: it is not.
    """
    with open_file(path, follow) as file:
        size = os.fstat(file.fileno()).st_size
    if size > largest:
        raise OSError(errno.EFBIG, f"it has {size} bytes, more than {largest}", str(path))


def parse_json(content: bytes | str) -> Any:
    """Return the plain value that JSON text holds.

    Raises:
        ValueError: it is no JSON, or holds what no JSON of this project's does: values that are
            not finite, integers of more than 64 bits, text that is no Unicode, or nesting deeper
            than `DEEPEST`.
    """
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    check_plain(value)
    return value


def read_json(path: str | Path, largest: int = LARGEST_JSON, follow: bool = True) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: see `read_file`.
        ValueError: see `parse_json`.
    """
    return parse_json(read_file(path, largest, follow))


def parse_yaml(content: bytes | str) -> Any:
    """Return the plain value that YAML text holds.

    Raises:
        ValueError: it is no YAML, asks for more than plain values, is nested too deeply or, with
            its aliases written out, too large; or it has text that is no Unicode.
    """
    import yaml

    text = check_yaml(content)
    try:
        value = yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, RecursionError, OverflowError, TypeError, AttributeError) as error:
        raise ValueError(_one_line(error)) from error
    check_plain(value, finite=False)
    return value


def check_yaml(content: bytes | str) -> str:
    """Return YAML text whose nesting and size, with aliases written out, are within the bounds.

    Nine aliases of nine aliases, nine times, are a billion values in a few hundred bytes. So the
    values are counted from the parser's events, before any is made.

    Raises:
        ValueError: it is not, or is no YAML in UTF-8.
    """
    import yaml

    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        if len(text) > LARGEST_YAML:
            raise ValueError(f"it has {len(text)} characters, more than {LARGEST_YAML}")
        _count(yaml.parse(text, Loader=_loader()))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(_one_line(error)) from error
    return text


def read_yaml(path: str | Path) -> Any:
    """Return the value in a YAML file.

    Raises:
        OSError: see `read_file`.
        ValueError: see `parse_yaml`.
    """
    return parse_yaml(read_file(path, 4 * LARGEST_YAML))


def check_plain(value: Any, finite: bool = True) -> None:
    """Check what JSON or YAML came to, without recursion.

    Args:
        value: of dictionaries, lists and scalars.
        finite: whether numbers must be finite.

    Raises:
        ValueError: see `parse_json`.
    """
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            if not item.isascii() and _LONE_SURROGATE.search(item):
                raise ValueError("it has text that is no Unicode")
        elif isinstance(item, int):
            if not -_LARGEST_INTEGER < item < _LARGEST_INTEGER:
                raise ValueError("it has an integer of more than 64 bits")
        elif isinstance(item, float):
            if finite and not math.isfinite(item):
                raise ValueError("it has a number that is not finite")
        elif isinstance(item, dict | list | tuple | set):
            if depth >= DEEPEST:
                raise ValueError("it is nested too deeply")
            if isinstance(item, dict):
                pending.extend((key, depth + 1) for key in item)
                item = item.values()
            pending.extend((each, depth + 1) for each in item)


def is_plain_name(text: Any) -> bool:
    """Return whether a text names something inside a folder: no separator, not `.` or `..`."""
    return (
        isinstance(text, str)
        and text not in ("", ".", "..")
        and not any(mark in text for mark in "/\\\0")
    )


def is_module_name(text: Any) -> bool:
    """Return whether a text is the dotted name of a Python module, and no path or expression."""
    return isinstance(text, str) and all(map(str.isidentifier, text.split(".")))


def _count(events: Iterable[Any]) -> None:
    import yaml

    sizes: dict[str, int] = {}
    # The anchor of each open collection, and the values in it so far.
    open_: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        size = 1
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((anchor, 1))
            if len(open_) > DEEPEST:
                raise ValueError("it is nested too deeply")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.AliasEvent):
            size, anchor = sizes.get(event.anchor, 1), None
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, count = open_[-1]
        open_[-1] = (outer, count + size)
        if count + size > _MOST_YAML_NODES:
            raise ValueError(
                f"it has more than {_MOST_YAML_NODES} values with its aliases written out"
            )


def _loader() -> Any:
    """The parser in C where PyYAML was built with it: the other takes a second for 100 kB."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it has the value {name}, which is no JSON")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
