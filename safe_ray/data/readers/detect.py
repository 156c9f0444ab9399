"""Which format a location that somebody typed has."""

from __future__ import annotations

from collections import deque

import pyarrow as pa

from safe_ray.arrow_files import parquet_schema
from safe_ray.data.images import has_image_suffix
from safe_ray.data.locations import (
    exists,
    first_line,
    is_folder,
    join,
    list_folder,
    open_input,
)
from safe_ray.data.readers.huggingface import HUB_SCHEME
from safe_ray.data.readers.webdataset import COMPRESSED_SUFFIXES
from safe_ray.errors import InputError

# Folders that are looked into: enough to meet an image, whatever empty ones come first.
_LOOKED_INTO = 64
_UNDERSTOOD = (
    "a folder with a folder of images for each class (perhaps in train, val and test), a .csv, "
    ".tsv or .parquet file of paths and labels, .parquet files with the images in them, "
    "WebDataset's .tar files, a folder of save_to_disk, or hf://owner/name"
)


def detect_format(location: str) -> str:
    """Return the key of the reader that fits a location, from names and headers alone.

    Args:
        location: an absolute local path or a URI (see `locate`).

    Raises:
        InputError: there is nothing, or nothing that a reader understands.
    """
    lower = location.lower().partition("?")[0]
    if lower.startswith(HUB_SCHEME):
        return "huggingface"
    if lower.endswith((".tar", *COMPRESSED_SUFFIXES)) and "{" in lower:
        return "webdataset"
    if is_folder(location):
        return _folder_format(location)
    if not exists(location):
        raise InputError(
            f"There is no file or folder {location}: correct the path, or give {_UNDERSTOOD}."
        )
    if lower.endswith((".csv", ".tsv")):
        return "table"
    if lower.endswith(".parquet"):
        return "parquet" if _holds_images(location) else "table"
    if lower.endswith((".tar", *COMPRESSED_SUFFIXES)):
        return "webdataset"
    raise InputError(f"{location} is no data set that can be read: give {_UNDERSTOOD}.")


def _folder_format(location: str) -> str:
    folders, files = list_folder(location)
    if "dataset_dict.json" in files or {"state.json", "dataset_info.json"} <= set(files):
        return "huggingface"
    tables = [name for name in files if name.lower().endswith((".csv", ".tsv"))]
    pending = deque([(location, folders, files)])
    looked_into = 0
    while pending and looked_into < _LOOKED_INTO:
        folder, folders, files = pending.popleft()
        looked_into += 1
        below = folder != location
        for name in files:
            lower = name.lower()
            if lower.endswith((".tar", *COMPRESSED_SUFFIXES)):
                return "webdataset"
            if lower.endswith(".parquet"):
                if _holds_images(join(folder, name)):
                    return "parquet"
                tables.append(name)
        if below and any(map(has_image_suffix, files)):
            # Class folders come in twos; a single folder of images beside a table has none.
            if tables and len(list_folder(location)[0]) < 2:
                break
            return "folder"
        for name in folders[:_LOOKED_INTO]:
            inner = join(folder, name)
            pending.append((inner, *list_folder(inner)))
            if len(pending) > _LOOKED_INTO:
                break
    if tables:
        raise InputError(
            f"{location} has no class folders, but the table {tables[0]}: give "
            f"{join(location, tables[0])}."
        )
    raise InputError(f"{location} is no data set that can be read: give {_UNDERSTOOD}.")


def _holds_images(file: str) -> bool:
    try:
        with open_input(file) as source:
            schema = parquet_schema(source)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file} cannot be read as Parquet ({first_line(error)}): write it again, or correct "
            "the path."
        ) from error
    return any(
        pa.types.is_binary(column.type)
        or pa.types.is_large_binary(column.type)
        or (pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0)
        for column in schema
    )
