"""Dense maps that do not fit a worker's memory, streamed from the store by Ray Data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from safe_ray.training.facts import TaskFacts
from safe_ray.training.maps import BatchKeys

# The share of the budget that one pipeline reads, which ends before the next begins. Used blocks
# leave the object store late, and Ray Data's own limit on memory stalls where it is small.
_READ_AHEAD = 1 / 12
_BLOCKS = 4
_READER_CPUS = 0.05


class StreamedMaps:
    """Maps read from the store in the order of each epoch, a bounded number of bytes at a time.

    Args:
        task_folder: of the task.
        samples: the sample digests of the worker's shard.
        device: to train on.
        budget: bytes of maps that may be in memory at once, over all processes.
    """

    def __init__(
        self, task_folder: Path, samples: Sequence[str], device: torch.device, budget: int
    ) -> None:
        facts = TaskFacts.load(task_folder)
        self.views = facts.views + 1
        self._task_folder = task_folder
        self._samples = np.asarray(samples, dtype=object)
        self._device = device
        self._shape = (facts.tokens, facts.width)
        self._bytes_per_map = 2 * facts.tokens * facts.width
        self._budget = budget

    def epoch(self, batches: Sequence[BatchKeys]) -> Iterator[Tensor]:
        """See `MapSource`; begins one pipeline for the whole epoch."""
        rows = np.concatenate([np.zeros(0, np.int64), *(rows.numpy() for rows, _ in batches)])
        views = np.concatenate([np.zeros(0, np.int64), *(views.numpy() for _, views in batches)])
        arriving = self._blocks(rows, views)
        waiting = np.zeros((0, *self._shape), np.float16)
        for batch, _ in batches:
            parts, missing = [], len(batch)
            while missing:
                if not len(waiting):
                    waiting = next(arriving)
                parts.append(waiting[:missing])
                waiting = waiting[missing:]
                missing -= len(parts[-1])
            whole = np.concatenate([np.zeros((0, *self._shape), np.float16), *parts])
            yield torch.from_numpy(whole).to(self._device)

    def _blocks(self, rows: np.ndarray, views: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the maps in blocks; no more of them are read ahead than the budget allows."""
        import ray.data

        size = max(1, int(self._budget * _READ_AHEAD / _BLOCKS / self._bytes_per_map))
        ahead = size * _BLOCKS
        context = _quiet_context()
        for first in range(0, len(rows), ahead):
            last = min(first + ahead, len(rows))
            keys = [
                pa.table(
                    {
                        "sample": pa.array(self._samples[rows[place : place + size]], pa.string()),
                        "view": pa.array(views[place : place + size], pa.int64()),
                    }
                ).slice(0, last - place)
                for place in range(first, last, size)
            ]
            with ray.data.DataContext.current(context):
                read: Any = _read_maps
                dataset = ray.data.from_arrow(keys).map_batches(
                    read,
                    batch_size=None,
                    fn_kwargs={"task_folder": str(self._task_folder)},
                    num_cpus=_READER_CPUS,
                )
                for block in dataset.iter_batches(batch_size=None, prefetch_batches=1):
                    yield np.asarray(block["maps"])


def _quiet_context() -> Any:
    """Ray Data's settings: batches in the order of the plan, and nothing on the terminal."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    context.execution_options.preserve_order = True
    return context


def _read_maps(batch: dict[str, np.ndarray], task_folder: str) -> dict[str, np.ndarray]:
    """Replace (sample, view) pairs by their maps."""
    samples = [str(sample) for sample in batch["sample"]]
    store = TaskFacts.load(Path(task_folder)).store()
    return {"maps": store.read_pairs(samples, batch["view"].tolist())}
