"""The index of a store: the key columns of many parts in one file, so that few are opened.

It is only a cache. What does not match its checksum counts as absent.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from safe_ray.arrow_files import mapped_batches
from safe_ray.errors import InputError
from safe_ray.features.parts import write_batch
from safe_ray.outside import parse_json

INDEX_NAME = "index.arrow"


@dataclass(frozen=True)
class PartKeys:
    """The key columns of a part of `size` bytes: a sample and a view (int64) for each row."""

    size: int
    samples: pa.Array
    views: np.ndarray


def read_index(folder: Path) -> dict[str, PartKeys]:
    """Return the key columns of the parts in the index; empty if it is absent or damaged."""
    path = folder / INDEX_NAME
    try:
        batch = next(mapped_batches(path))
        metadata = batch.schema.metadata
        if int(metadata[b"checksum"]) != _checksum(batch, metadata[b"parts"]):
            return {}
        samples = batch.column("sample").cast(pa.string())
        if samples.null_count:
            return {}
        views = batch.column("view").to_numpy().astype(np.int64)
        return dict(_slices(parse_json(metadata[b"parts"]), samples, views))
    # It is only a cache, and can have anything in place of anything.
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, StopIteration):
        return {}


def _checksum(batch: pa.RecordBatch, parts: bytes) -> int:
    digest = xxhash.xxh3_64(parts)
    digest.update(batch.serialize())
    return digest.intdigest()


def _slices(
    listed: Sequence[tuple[str, int, int]], samples: pa.Array, views: np.ndarray
) -> Iterator[tuple[str, PartKeys]]:
    start = 0
    for name, size, rows in listed:
        if not isinstance(name, str) or size < 0 or not 0 <= rows <= len(views) - start:
            raise ValueError("The index does not add up.")
        yield name, PartKeys(size, samples.slice(start, rows), views[start : start + rows])
        start += rows
    if start != len(views):
        raise ValueError("The index does not add up.")


def write_index(folder: Path, parts: Mapping[str, PartKeys]) -> None:
    """Write the key columns of all parts; where storage refuses it, there is no index."""
    listed = [(name, part.size, len(part.views)) for name, part in parts.items()]
    samples = pa.chunked_array([part.samples for part in parts.values()], pa.string())
    batch = pa.record_batch(
        {
            "sample": samples.combine_chunks(),
            "view": pa.array(
                np.concatenate([part.views for part in parts.values()]).astype(np.int16)
            ),
        }
    )
    described = json.dumps(listed)
    checksum = str(_checksum(batch, described.encode()))
    # Only a cache: on read-only or full storage the next reader opens the parts again.
    with contextlib.suppress(InputError):
        write_batch(
            folder / INDEX_NAME,
            batch.replace_schema_metadata({"parts": described, "checksum": checksum}),
        )
