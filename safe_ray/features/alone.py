"""Extraction in this process: the same maps in the same store, without a cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from safe_ray.data.views import Preprocessing
from safe_ray.features import plan
from safe_ray.features.decoding import views_of
from safe_ray.features.folder import prepare_folder
from safe_ray.features.inventory import no_progress
from safe_ray.features.rows import (
    ExtractionRequest,
    by_views,
    chunk_tables,
    missing_rows,
    wanted_rows,
)
from safe_ray.features.store import FeatureStore
from safe_ray.features.trunk import dense_maps
from safe_ray.progress import Progress

if TYPE_CHECKING:
    import torch

    from safe_ray.backbones.openclip import Backbone

_PARTS_OF_PROGRESS = 8


def extract_alone(
    requests: Sequence[ExtractionRequest],
    backbone: Backbone,
    store: FeatureStore,
    device: torch.device,
    batch_size: int | None = None,
    progress: Progress = no_progress,
) -> int:
    """Fill a store with what it lacks of `requests`; see `safe_ray.features.extract`.

    Args:
        requests: what is wanted; each names its views.
        backbone: its trunk is on `device`.
        store: of this backbone's maps, in the precision that its key names.
        device: where the trunk is.
        batch_size: images a forward pass; None goes by their size and the device.
        progress: called after each part, with dense maps.

    Returns:
        How many dense maps were missing.

    Raises:
        InputError: the folder is read-only or full, an image is gone or damaged, or a dense map
            does not fit float16. Parts already written are kept.
    """
    wanted, _ = wanted_rows(requests, ())
    store.check(by_views(wanted))
    missing = missing_rows(store, wanted)
    rows = sum(len(views) for *_, views in missing)
    if not rows:
        return 0
    prepare_folder(store.folder.parent, rows * store.bytes_per_row)
    size = batch_size or plan.plan_batch_size(backbone.preprocessing.size, device.type == "cuda")
    # Whole batches, for the last one of a part is padded.
    shown = -(-rows // _PARTS_OF_PROGRESS // size) * size
    of_part = min(plan.plan_rows_per_file(rows, store.bytes_per_row, size, 1), max(size, shown))
    began, done = time.monotonic(), 0
    progress(0, rows, None)
    with ThreadPoolExecutor(_cores(), "decode") as threads:
        decoded = _decoded(threads, chunk_tables(requests, missing, of_part), backbone)
        for samples, views, pixels in decoded:
            maps = dense_maps(backbone, pixels, store.key.precision, size, str(device))
            store.write_part(samples, views, maps)
            done += len(samples)
            progress(done, rows, (time.monotonic() - began) / done * (rows - done))
    return rows


_Part = tuple[list[str], list[int], np.ndarray]


def _decoded(
    threads: ThreadPoolExecutor, chunks: Iterator[pa.Table], backbone: Backbone
) -> Iterator[_Part]:
    """Yield samples, views and pixels of each chunk, the next one being decoded meanwhile."""
    recipe: Preprocessing = backbone.preprocessing

    def begin(chunk: pa.Table) -> tuple[list[Mapping[str, Any]], Iterator[np.ndarray]]:
        rows = chunk.to_pylist()
        return rows, threads.map(lambda row: views_of(row, recipe), rows)

    waiting = None
    for chunk in chunks:
        following = begin(chunk)
        if waiting is not None:
            yield _gathered(*waiting)
        waiting = following
    if waiting is not None:
        yield _gathered(*waiting)


def _gathered(rows: Sequence[Mapping[str, Any]], pixels: Iterator[np.ndarray]) -> _Part:
    samples = [row["sample"] for row in rows for _ in row["views"]]
    views = [view for row in rows for view in row["views"]]
    return samples, views, np.concatenate(list(pixels))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
