"""WebDataset: tar files of samples, each an image and its label under one name.

    0001.jpg  0001.cls      the image; its class: a number (`.cls`), a name (`.txt`), or a value in
    0002.jpg  0002.cls      a JSON object (`.json`, under the option `label_key`, by default the
                            first of `class_name`, `class`, `category` and `label`)

The location is a folder of `*.tar`, one such file, or several as in `data-{0000..0003}.tar`.
Numbers are indices into the option `classes`, or into the lines of a file `classnames.txt` in the
folder. Splits are in the names (`train/0.tar`, `data-val-0000.tar`), or a test split is drawn, as
for folders (`test_share`, `split_seed`). Only the headers and labels are read: an image is a range
of bytes of its tar, which must not be compressed.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa

from safe_ray.data.images import has_image_suffix
from safe_ray.data.locations import (
    exists,
    first_line,
    is_folder,
    join,
    open_input,
    read_bytes,
    walk,
)
from safe_ray.data.readers.base import RANGES_SCHEMA, SPLITS, RawDataset, check_options
from safe_ray.data.readers.columns import LABEL_COLUMNS
from safe_ray.data.readers.labels import label_classes
from safe_ray.data.readers.splitting import SPLIT_OPTIONS, divide, images, splits_of_files
from safe_ray.errors import InputError
from safe_ray.outside import MIB, parse_json
from safe_ray.specs import DatasetSpec

NAMES_FILE = "classnames.txt"
MOST_SHARDS = 100_000
LARGEST_LABEL = MIB
_LARGEST_HEADER = MIB
_LONGEST_NAME = 4096
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")

_MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_LABELS = ("cls", "json", "txt")
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_DAMAGE = (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
_BRACES = re.compile(r"\{([^{}]*)\}")


def read(spec: DatasetSpec, location: str) -> RawDataset:
    """Read the data set; no image is opened.

    Raises:
        InputError: no such files, a damaged or compressed tar, a sample with two images or without
            a label, names of which only some hold a split, or a class that is not listed.
    """
    check_options(spec, ("classes", "label_key", *SPLIT_OPTIONS))
    shards = _shards(spec, location)
    names = [name for name, _ in shards]
    splits = splits_of_files(location, names)
    paths: list[str] = []
    rows: list[tuple[str, int, int]] = []
    labels: list[str] = []
    counts: list[int] = []
    without_image = 0
    for name, file in shards:
        before = len(rows)
        for sample in _samples(spec, file):
            if not sample.image:
                without_image += 1
                continue
            paths.append(f"{name}/{sample.image}")
            rows.append((file, sample.offset, sample.length))
            labels.append(_label(file, sample))
        counts.append(len(rows) - before)
    if not rows:
        raise InputError(f"{location} has no image in its tar files: correct the path.")
    labelling = label_classes(spec, location, labels, names=_class_names(location))
    numbers = labelling.of(pa.array(labels, pa.string()))
    found = None
    if any(splits):
        found = np.repeat([SPLITS.index(split) for split in splits if split], counts)
    division = divide(spec, paths, numbers, found)
    files, offsets, lengths = map(list, zip(*rows, strict=True))
    table = pa.table(
        {"path": paths, "label": numbers, "file": files, "offset": offsets, "length": lengths},
        schema=RANGES_SCHEMA,
    )
    left_out = [f"Left out of {location}: samples without an image ({without_image})."]
    return RawDataset(
        source=location,
        classes=labelling.classes,
        tables=division.tables(table),
        listed=division.listed,
        notes=(
            f"{len(labelling.classes)} classes and {images(len(rows))} in {len(shards)} tar files.",
            *labelling.notes,
            *division.notes,
            *(left_out if without_image else []),
        ),
    )


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern such as `data-{0000..0003}.tar` or `{a,b}.tar` stands for.

    Raises:
        InputError: they are more than `MOST_SHARDS`.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, dots, last = match[1].partition("..")
    if dots and first.isdigit() and last.isdigit():
        # Python does not make a number of thousands of digits.
        if max(len(first), len(last)) > len(str(MOST_SHARDS)):
            raise _too_many(pattern)
        numbers = range(int(first), int(last) + 1)
        if len(numbers) > MOST_SHARDS:
            raise _too_many(pattern)
        choices = [str(n).zfill(len(first)) for n in numbers]
    else:
        choices = match[1].split(",")
    start, end = pattern[: match.start()], pattern[match.end() :]
    names: list[str] = []
    for choice in choices:
        names += expand_braces(start + choice + end)
        if len(names) > MOST_SHARDS:
            raise _too_many(pattern)
    return names


def _too_many(pattern: str) -> InputError:
    return InputError(
        f"{pattern} stands for more than {MOST_SHARDS} files: name the folder that they are in."
    )


@dataclass
class _Sample:
    key: str
    image: str = ""
    offset: int = 0
    length: int = 0
    labels: dict[str, str] = field(default_factory=dict)


def _shards(spec: DatasetSpec, location: str) -> list[tuple[str, str]]:
    """Each tar's name within the data set, and its location."""
    if is_folder(location):
        present = walk(location)
        tars = [path for path in present if path.lower().endswith(".tar")]
        if not tars:
            compressed = [path for path in present if path.lower().endswith(COMPRESSED_SUFFIXES)]
            if compressed:
                raise _is_compressed(join(location, compressed[0]))
            raise InputError(
                f"Data set {spec.name!r}: the folder {location} has no *.tar file; put them there "
                "or correct its path."
            )
        return [(path, join(location, path)) for path in tars]
    files = expand_braces(location)
    for file in files:
        if not exists(file):
            raise InputError(
                f"Data set {spec.name!r}: there is no file {file}; put it there, correct its path, "
                "or name the folder of your data sets with data.root=<folder>."
            )
    # From where the names begin to differ, so that a split above the tars is seen.
    start = location.partition("{")[0].rpartition("/")[0] + "/"
    return [(file.removeprefix(start), file) for file in files]


def _samples(spec: DatasetSpec, file: str) -> Iterator[_Sample]:
    try:
        with open_input(file) as source:
            if source.read(8).startswith(_MAGICS):
                raise _is_compressed(file)
            source.seek(0)
            with tarfile.open(fileobj=cast(Any, _Headers(source)), mode="r:") as tar:
                yield from _grouped(spec, file, tar, source)
    except InputError:
        raise
    # Damaged headers make tarfile raise almost anything.
    except (tarfile.TarError, pa.ArrowException, OSError, *_DAMAGE) as error:
        raise InputError(
            f"{file} cannot be read as a tar file ({first_line(error)}): write it again, or "
            "correct the path."
        ) from error


class _Headers:
    """What tarfile reads of a tar: headers, whose own sizes may be anything.

    A long name is read in one piece of the size that its header gives, which may be gigabytes, or
    less than nothing.
    """

    def __init__(self, source: pa.NativeFile) -> None:
        self._source = source
        self.tell = source.tell
        self.name = ""

    def seek(self, place: int) -> None:
        if not 0 <= place <= self._source.size():
            raise tarfile.ReadError("it ends within a file")
        self._source.seek(place)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"it has a header of {size} bytes")
        return bytes(self._source.read(size))


def _grouped(
    spec: DatasetSpec, file: str, tar: tarfile.TarFile, source: pa.NativeFile
) -> Iterator[_Sample]:
    sample = _Sample("")
    size, before = source.size(), -1
    while (member := tar.next()) is not None:
        # The list of members, of which there may be millions, is never used.
        tar.members = []  # type: ignore[attr-defined]
        # A size below nothing would lead back to headers that were read before.
        if tar.offset <= before:
            raise tarfile.ReadError("its headers lead back")
        before = tar.offset
        if not 0 <= member.offset_data <= member.offset_data + member.size <= size:
            raise tarfile.ReadError("it ends within a file")
        name = member.name.removeprefix("./")
        if len(name) > _LONGEST_NAME or not _is_unicode(name):
            raise InputError(
                f"{file} has a file whose name is not text in UTF-8, or longer than "
                f"{_LONGEST_NAME} characters, {name[:80]!r}: rename it."
            )
        match = _NAME.fullmatch(name)
        if not member.isreg() or match is None:
            continue
        key, suffix = match[1], match[2].lower()
        if key != sample.key:
            if sample.key:
                yield sample
            sample = _Sample(key)
        if has_image_suffix(f".{suffix}") and "." not in suffix:
            if sample.image:
                raise InputError(
                    f"{file} has two images for the sample {key!r}, {sample.image!r} and "
                    f"{match[0]!r}: leave one."
                )
            if member.issparse():
                raise InputError(
                    f"{file} holds {match[0]!r} as a sparse file: write it again without --sparse."
                )
            sample.image, sample.offset, sample.length = match[0], member.offset_data, member.size
        elif suffix in _LABELS:
            if member.size > LARGEST_LABEL:
                raise InputError(
                    f"{file} has a label {match[0]!r} of {member.size} bytes, more than "
                    f"{LARGEST_LABEL}: write labels alone into such files."
                )
            content = source.read_at(member.size, member.offset_data)
            if (text := _text(spec, file, match[0], suffix, content)) is not None:
                sample.labels[suffix] = text
    # Without it, tarfile takes the place where a copy broke off for the end.
    if len(source.read_at(tarfile.BLOCKSIZE, tar.offset)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends before its end mark")
    if sample.key:
        yield sample


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(spec: DatasetSpec, file: str, name: str, suffix: str, content: bytes) -> str | None:
    try:
        text = content.decode("utf-8-sig").strip()
        if suffix != "json":
            return text or None
        value: Any = parse_json(text)
    except ValueError as error:
        raise InputError(
            f"{file} has an unreadable label {name!r} ({first_line(error)}): write it in UTF-8."
        ) from error
    key = spec.options.get("label_key")
    keys = LABEL_COLUMNS if key is None else (key,)
    for key in keys:
        if isinstance(value, dict) and isinstance(value.get(key), str | int):
            return str(value[key])
    return None


def _label(file: str, sample: _Sample) -> str:
    for suffix in _LABELS:
        if suffix in sample.labels:
            return sample.labels[suffix]
    raise InputError(
        f"{file} has no label for the image {sample.image!r}: add {sample.key}.cls with its number "
        f"or {sample.key}.txt with the name of its class, or name the key of the label in its "
        ".json as options.label_key."
    )


def _class_names(location: str) -> tuple[str, ...] | None:
    folder = location if is_folder(location) else location.partition("{")[0].rpartition("/")[0]
    file = join(folder, NAMES_FILE)
    if not exists(file):
        return None
    try:
        lines = read_bytes(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read ({first_line(error)}): write one class name a line in UTF-8."
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def _is_compressed(file: str) -> InputError:
    return InputError(
        f"{file} is a compressed tar, in which no image has a place of its own: unpack it (gunzip, "
        "bunzip2, unxz or unzstd) and give the .tar."
    )
