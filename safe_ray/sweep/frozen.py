"""Frozen manifests: a split that was made from a listing of files is kept beside the store.

The same data set then means the same split on every machine that shares the store, and a copy of
the file is a `table` data set that carries the split anywhere else.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from safe_ray.arrow_files import read_parquet
from safe_ray.data.locations import first_line
from safe_ray.data.manifest import Manifest
from safe_ray.data.readers import SPLITS
from safe_ray.errors import InputError
from safe_ray.files import digest_json, replacing
from safe_ray.specs import DatasetSpec

MANIFESTS = "manifests"
SCHEMA = pa.schema([("path", pa.string()), ("label", pa.string()), ("split", pa.string())])


def compare(manifest: Manifest, spec: DatasetSpec, folder: Path, redraw: bool) -> str | None:
    """Compare the split of a data set with the one that was kept.

    Args:
        manifest: the data set as it is read now.
        spec: where and how it is read; another location or other options are another file.
        folder: where frozen manifests are.
        redraw: a split that was made from other images will be replaced, rather than refused.

    Returns:
        None if the split is new or the same; else a sentence that says what is replaced.

    Raises:
        InputError: the split was made from other images, or what was kept cannot be read.
    """
    file = _file(manifest, spec, folder)
    before, now = _read(file), _table(manifest)
    if before is None or before.equals(now):
        return None
    if not redraw:
        raise InputError(
            f"The images of {manifest.name!r} are not those that its split was made from "
            f"({_difference(before, now)}): restore them, or delete {file} to take the split as it "
            "is now."
        )
    return f"The images have changed since last time ({_difference(before, now)}): a new split."


def freeze(manifest: Manifest, spec: DatasetSpec, folder: Path) -> None:
    """Keep the split of a data set, in place of what was kept of it before.

    It is a Parquet file in the folder, with path, label (the class's id or name) and split.

    Raises:
        InputError: the folder cannot be written.
    """
    file = _file(manifest, spec, folder)
    now = _table(manifest)
    if (before := _read(file)) is None or not before.equals(now):
        with replacing(file) as temporary:
            pq.write_table(now, temporary)


def _file(manifest: Manifest, spec: DatasetSpec, folder: Path) -> Path:
    digest = digest_json([spec.format, spec.path, dict(spec.options)])
    return folder / f"{manifest.name}-{digest[:8]}.parquet"


def _read(file: Path) -> pa.Table | None:
    if not file.exists():
        return None
    try:
        return read_parquet(file, SCHEMA.names).cast(SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"The frozen manifest {file} cannot be read ({first_line(error)}): delete it "
            "to freeze the split anew."
        ) from error


def _difference(before: pa.Table, now: pa.Table) -> str:
    kept, found = (
        set(zip(*(table.column(name).to_pylist() for name in SCHEMA.names), strict=True))
        for table in (before, now)
    )
    return f"{len(found - kept)} new or moved, {len(kept - found)} gone"


def _table(manifest: Manifest) -> pa.Table:
    labels = pa.array(manifest.ids or manifest.classes, pa.string())
    parts = [
        pa.table(
            {
                "path": table.column("path"),
                "label": labels.take(table.column("label").combine_chunks()),
                "split": pa.array([split] * table.num_rows, pa.string()),
            },
            schema=SCHEMA,
        )
        for split in SPLITS
        if (table := manifest.split(split)).num_rows
    ]
    return pa.concat_tables(parts).combine_chunks()
