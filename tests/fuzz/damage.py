"""What is done to a valid file: by its bytes, and by the values in it.

All of it is drawn from one `random.Random`, which may be a seeded one or Hypothesis's own, so that
a case is known by its number and Hypothesis can make a failing one smaller.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load, save

ESCAPES = (
    "../secret/secret.json",
    "../../secret",
    "/etc/passwd",
    "..",
    ".",
    "a/../../b",
    "~/x",
    "file:///etc/passwd",
    "a\x00b",
    "a\\..\\b",
)
TEXTS = (
    *ESCAPES,
    "",
    " ",
    "x" * 5000,
    "\ud800",
    "\x1b[2J\nTraceback (most recent call last):",
    "os",
    "this",
    "${oc.env:HOME}",
    "${a.b}",
    "${",
    "{}" * 50,
    "{0..999999999}",
    "NaN",
    "-1",
    "1e999",
    "pickle://x",
    "simplecache::http://127.0.0.1:9/x",
    "🙈" * 100,
    "ab\u202ecd",
)
NUMBERS = (
    0,
    -1,
    1,
    255,
    2**15,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e308,
    1.5,
)
OTHERS: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: False,
    lambda: [],
    lambda: {},
    lambda: [None] * 20,
    lambda: {"": {"": ""}},
    lambda: [[], [[]], {}],
    lambda: nested(50),
    lambda: nested(300),
    lambda: float("nan"),
    lambda: float("inf"),
)
WORDS = tuple(
    struct.pack(form, number)
    for form, numbers in (
        ("<i", (0, -1, 1, 2**31 - 1, -(2**31), 2**20)),
        (">i", (1, 2**31 - 1, 2**20)),
        ("<q", (-1, 2**63 - 1, 2**40)),
        ("<H", (0xFFFF,)),
    )
    for number in numbers
)
YAMLS = (
    "!!python/object/apply:os.system ['touch hacked']",
    "!!python/name:os.system",
    "&a [*a]",
    "{a: &a [x,x,x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a], "
    "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b], d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c], "
    "e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d], f: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e], "
    "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f], h: [*g,*g,*g,*g,*g,*g,*g,*g,*g,*g]}",
    "[" * 500,
    "? [a]\n: b",
    "!!binary '%%%'",
    "!!timestamp 9999-99-99",
    "2001-01-01",
    "!!set {a, b}",
    "1:2:3:4:5:6",
    "0x" + "f" * 5000,
    "1" * 5000,
    ".inf",
    "- - - - -",
    "<<: *nothing",
    "%YAML 9.9\n---\na: b",
    "a: b\n---\nc: d",
    "\x00",
)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def damaged_bytes(content: bytes, rng: Random) -> bytes:
    """Return the bytes with one to four changes."""
    for _ in range(rng.randint(1, 4)):
        content = rng.choice(_BYTE_CHANGES)(content, rng)
    return content


def _at(content: bytes, rng: Random) -> int:
    # Headers and footers, where the lengths are, as often as all between.
    size = len(content)
    where = rng.randint(0, 3)
    if where == 0:
        return rng.randint(0, min(size, 64))
    if where == 1:
        return max(0, size - rng.randint(0, min(size, 64)))
    return rng.randint(0, size)


def _flip(content: bytes, rng: Random) -> bytes:
    at = _at(content, rng)
    if at >= len(content):
        return content
    return content[:at] + bytes([content[at] ^ (1 << rng.randint(0, 7))]) + content[at + 1 :]


def _overwrite(content: bytes, rng: Random) -> bytes:
    at = _at(content, rng)
    word = rng.choice(WORDS)
    return content[:at] + word + content[at + len(word) :]


def _cut(content: bytes, rng: Random) -> bytes:
    return content[: _at(content, rng)]


def _insert(content: bytes, rng: Random) -> bytes:
    at = _at(content, rng)
    what = rng.choice((*WORDS, b"\x00" * 512, b"\xff" * 7, b'"', b"{[", b"}]", b"\n", b"../"))
    return content[:at] + what + content[at:]


def _remove(content: bytes, rng: Random) -> bytes:
    at = _at(content, rng)
    return content[:at] + content[at + rng.randint(1, 64) :]


def _repeat(content: bytes, rng: Random) -> bytes:
    at, length = _at(content, rng), rng.randint(1, 512)
    return content[:at] + content[at : at + length] * rng.randint(2, 20) + content[at + length :]


_BYTE_CHANGES = (_flip, _flip, _overwrite, _overwrite, _cut, _insert, _remove, _repeat)


def any_value(rng: Random) -> Any:
    """Return a value that nobody expects."""
    kind = rng.randint(0, 2)
    if kind == 0:
        return rng.choice(TEXTS)
    return rng.choice(NUMBERS) if kind == 1 else rng.choice(OTHERS)()


def changed_value(value: Any, rng: Random) -> Any:
    """Return plain values with one to three changes at some places."""
    for _ in range(rng.randint(1, 3)):
        value = _changed_once(value, rng)
    return value


def _changed_once(value: Any, rng: Random, depth: int = 0) -> Any:
    inside = isinstance(value, dict | list) and len(value) > 0
    if not inside or (depth > 0 and rng.randint(0, 3) == 0):
        return any_value(rng)
    if isinstance(value, dict):
        key = rng.choice(sorted(value, key=str))
        change = rng.randint(0, 9)
        if change == 0:
            return {k: v for k, v in value.items() if k != key}
        if change == 1:
            return {**value, rng.choice((*TEXTS, "extra")): any_value(rng)}
        if change == 2:
            return {**value, key: [value[key], value[key]]}
        return {**value, key: _changed_once(value[key], rng, depth + 1)}
    at = rng.randint(0, len(value) - 1)
    change = rng.randint(0, 9)
    if change == 0:
        return value[:at] + value[at + 1 :]
    if change == 1:
        return value[:at] + value[at : at + 1] * 3 + value[at + 1 :]
    return [*value[:at], _changed_once(value[at], rng, depth + 1), *value[at + 1 :]]


def damaged_json(content: bytes, rng: Random) -> bytes:
    """Return JSON with other values in it."""
    value = changed_value(json.loads(content), rng)
    with contextlib.suppress(ValueError):
        return json.dumps(value).encode()
    return content


def damaged_yaml(content: bytes, rng: Random) -> bytes:
    """Return YAML with other values in it, or with what only YAML has."""
    if rng.randint(0, 1):
        lines = content.decode().splitlines()
        at = rng.randint(0, len(lines) - 1) if lines else 0
        key = lines[at].partition(":")[0] if lines else "a"
        return "\n".join([*lines[:at], f"{key}: {rng.choice(YAMLS)}", *lines[at + 1 :]]).encode()
    value = changed_value(yaml.safe_load(content), rng)
    with contextlib.suppress(yaml.YAMLError, ValueError):
        return yaml.safe_dump(value).encode("utf-8", "surrogatepass")
    return content


def damaged_lines(content: bytes, rng: Random) -> bytes:
    """Return text with other lines, words or cells in it."""
    lines = content.decode("utf-8", "replace").split("\n")
    at = rng.randint(0, len(lines) - 1)
    text = str(any_value(rng)).encode("utf-8", "replace").decode()
    separator = next((mark for mark in (",", "\t", " ") if mark in lines[at]), " ")
    cells = lines[at].split(separator)
    cells[rng.randint(0, len(cells) - 1)] = text
    change = rng.randint(0, 3)
    lines[at : at + 1] = (
        [separator.join(cells)]
        if change
        else rng.choice(([], [lines[at]] * 2, [text], [separator.join(cells[:-1])]))
    )
    return "\n".join(lines).encode()


def damaged_table(table: pa.Table, rng: Random) -> pa.Table:
    """Return a table with columns of other types, with other values, or without some."""
    for _ in range(rng.randint(1, 2)):
        if not table.num_columns:
            return table
        at = rng.randint(0, table.num_columns - 1)
        name, column = table.column_names[at], table.column(at)
        change = rng.randint(0, 6)
        if change == 0:
            table = table.remove_column(at)
        elif change == 1:
            table = table.append_column(name, column)
        elif change == 2:
            text = str(any_value(rng))[:50].encode("utf-8", "replace").decode()
            table = table.set_column(at, text, column)
        else:
            with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
                values = _other_values(column.to_pylist(), change, rng)
                kind = rng.choice(_TYPES)(column.type)
                table = table.set_column(at, name, pa.array(values, kind))
    return table


_TYPES: tuple[Callable[[pa.DataType], pa.DataType | None], ...] = (
    lambda kind: kind,
    lambda kind: kind,
    lambda kind: None,
    lambda kind: pa.string(),
    lambda kind: pa.large_string(),
    lambda kind: pa.int64(),
    lambda kind: pa.float64(),
    lambda kind: pa.list_(kind),
    lambda kind: pa.dictionary(pa.int32(), pa.string()),
    lambda kind: pa.null(),
    lambda kind: pa.struct([("bytes", kind)]),
)


def _other_values(values: list[Any], change: int, rng: Random) -> list[Any]:
    if not values:
        return values
    if change == 3:
        return [None] * len(values)
    if change == 4:
        return [any_value(rng)] * len(values)
    return [*values[:-1], any_value(rng)]


def damaged_parquet(content: bytes, rng: Random) -> bytes:
    """Return Parquet with another table in it, or written in another way."""
    table = pq.read_table(io.BytesIO(content))
    table.validate(full=True)
    table = damaged_table(table, rng)
    buffer = io.BytesIO()
    with contextlib.suppress(pa.ArrowException, ValueError):
        pq.write_table(
            table,
            buffer,
            compression=rng.choice(("NONE", "SNAPPY", "ZSTD", "GZIP")),
            row_group_size=rng.choice((None, 1, 2)),
            use_dictionary=rng.choice((True, False)),
            store_schema=rng.choice((True, False)),
        )
        return buffer.getvalue()
    return content


def damaged_arrow(content: bytes, rng: Random) -> bytes:
    """Return an Arrow file with another table in it, perhaps compressed or in several batches."""
    with pa.ipc.open_file(io.BytesIO(content)) as reader:
        table = reader.read_all()
    table.validate(full=True)
    table = damaged_table(table, rng)
    metadata = table.schema.metadata or {}
    if metadata and rng.randint(0, 1):
        key = rng.choice(sorted(metadata))
        text = json.dumps(any_value(rng)) if rng.randint(0, 1) else "\x00"
        table = table.replace_schema_metadata({**metadata, key: text.encode()})
    buffer = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=rng.choice((None, None, "zstd", "lz4")))
    with (
        contextlib.suppress(pa.ArrowException, ValueError),
        pa.ipc.new_file(buffer, table.schema, options=options) as writer,
    ):
        writer.write_table(table, max_chunksize=rng.choice((None, None, 1)))
    return buffer.getvalue()


def damaged_tensors(content: bytes, rng: Random) -> bytes:
    """Return safetensors whose header has other values, or that hold other tensors."""
    (length,) = struct.unpack("<Q", content[:8])
    if rng.randint(0, 1):
        header = changed_value(json.loads(content[8 : 8 + length]), rng)
        try:
            text = json.dumps(header).encode()
        except ValueError:
            return content
        return struct.pack("<Q", len(text)) + text + content[8 + length :]
    header = json.loads(content[8 : 8 + length])
    tensors = load(content)
    name = rng.choice(sorted(tensors))
    change = rng.randint(0, 4)
    if change == 0:
        del tensors[name]
    elif change == 1:
        tensors[name] = tensors[name].reshape(-1)
    elif change == 2:
        tensors[name] = tensors[name].astype(rng.choice(("int64", "float64", "bool", "uint8")))
    elif change == 3:
        tensors[name] = tensors[name][:0]
    else:
        tensors[rng.choice(("extra", "0.head.x", "../x"))] = tensors[name]
    metadata = header.get("__metadata__")
    if metadata and rng.randint(0, 1):
        key = rng.choice(sorted(metadata))
        text = metadata[key]
        with contextlib.suppress(ValueError):
            text = json.dumps(changed_value(json.loads(text), rng))
        metadata = {**metadata, key: text}
    return save(tensors, metadata)


_NOT_SOUND = (
    ArithmeticError,
    LookupError,
    OSError,
    RecursionError,
    SafetensorError,
    SystemError,
    TypeError,
    ValueError,
    pa.ArrowException,
    struct.error,
    yaml.YAMLError,
)
BY_SUFFIX: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": damaged_json,
    ".yaml": damaged_yaml,
    ".parquet": damaged_parquet,
    ".arrow": damaged_arrow,
    ".safetensors": damaged_tensors,
    ".csv": damaged_lines,
    ".tsv": damaged_lines,
    ".txt": damaged_lines,
    ".log": damaged_lines,
    ".jsonl": damaged_lines,
}


def damaged(name: str, content: bytes, rng: Random) -> bytes:
    """Return a file's bytes, damaged by its bytes or, where its kind is known, by its values."""
    by_value = BY_SUFFIX.get(Path(name).suffix)
    if by_value is None or rng.randint(0, 1):
        return damaged_bytes(content, rng)
    try:
        content = by_value(content, rng)
    except _NOT_SOUND:
        # It was damaged before.
        return damaged_bytes(content, rng)
    return damaged_bytes(content, rng) if rng.randint(0, 9) == 0 else content
