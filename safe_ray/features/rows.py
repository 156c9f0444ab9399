"""The rows that an extraction makes: what is asked for, what of it the store lacks, in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from safe_ray.features.inventory import Inventory
from safe_ray.features.store import FeatureStore


@dataclass(frozen=True)
class ExtractionRequest:
    """Images, and the views of them that are wanted.

    Attributes:
        table: rows with `sample` (see `take_inventory`), `path`, and where the image is.
        views: the views of these images; None for those that `extract` was called with.
        bad: how many images the inventory left out, for the summary.
    """

    table: pa.Table
    views: tuple[int, ...] | None = None
    bad: int = 0

    @classmethod
    def of(cls, inventory: Inventory, views: Sequence[int] | None = None) -> ExtractionRequest:
        """Ask for the sound images of an inventory."""
        return cls(inventory.table, None if views is None else tuple(views), bad=len(inventory.bad))


# (sample, request, row in its table, views)
Row = tuple[str, int, int, list[int]]


def wanted_rows(
    requests: Sequence[ExtractionRequest], views: Sequence[int]
) -> tuple[list[Row], int]:
    """Each distinct sample once, with all the views that any request wants of it."""
    rows: dict[str, tuple[int, int, dict[int, None]]] = {}
    for number, request in enumerate(requests):
        wanted = dict.fromkeys(views if request.views is None else request.views)
        for row, sample in enumerate(request.table.column("sample").to_pylist()):
            _, _, row_views = rows.setdefault(sample, (number, row, {}))
            row_views.update(wanted)
    listed = [
        (sample, number, row, list(row_views)) for sample, (number, row, row_views) in rows.items()
    ]
    return listed, sum(len(row_views) for *_, row_views in listed)


def by_views(wanted: Sequence[Row]) -> list[tuple[list[str], tuple[int, ...]]]:
    """The samples of which the same views are wanted, with these views."""
    samples: dict[tuple[int, ...], list[str]] = {}
    for sample, _, _, views in wanted:
        samples.setdefault(tuple(views), []).append(sample)
    return [(alike, views) for views, alike in samples.items()]


def missing_rows(store: FeatureStore, wanted: Sequence[Row]) -> list[Row]:
    """The rows of `wanted` that the store lacks, each with the views that are missing."""
    absent: dict[str, list[int]] = {}
    for samples, alike in by_views(wanted):
        for sample, view in store.missing(samples, alike):
            absent.setdefault(sample, []).append(view)
    return [
        (sample, number, row, absent[sample])
        for sample, number, row, _ in wanted
        if sample in absent
    ]


def chunk_tables(
    requests: Sequence[ExtractionRequest], missing: Sequence[Row], size: int
) -> Iterator[pa.Table]:
    """Tables of images whose views are `size` rows together; only the last may be smaller."""
    chunk: list[Row] = []
    room = size
    for sample, number, row, views in missing:
        rest = views
        while rest:
            chunk.append((sample, number, row, rest[:room]))
            taken = len(rest[:room])
            rest, room = rest[taken:], room - taken
            if room == 0:
                yield _chunk_table(requests, chunk)
                chunk, room = [], size
    if chunk:
        yield _chunk_table(requests, chunk)


_CHUNK_SCHEMA = pa.schema(
    [
        ("sample", pa.string()),
        ("path", pa.string()),
        ("views", pa.list_(pa.int16())),
        ("image", pa.large_binary()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)


def _chunk_table(requests: Sequence[ExtractionRequest], chunk: Sequence[Row]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in _CHUNK_SCHEMA.names}
    for sample, number, row, views in chunk:
        table = requests[number].table
        columns["sample"].append(sample)
        columns["views"].append(views)
        for name in ("path", "image", "file", "offset", "length"):
            present = name in table.column_names
            columns[name].append(table.column(name)[row].as_py() if present else None)
    return pa.table(columns, schema=_CHUNK_SCHEMA)
