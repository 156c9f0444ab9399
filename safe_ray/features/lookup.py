"""Where each view of each sample lies: in which part, in which row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from safe_ray.features.index import PartKeys
from safe_ray.features.parts import MAX_VIEW, VIEW_BITS


class Lookup:
    """The rows of some parts by sample and view.

    Args:
        parts_by_name: the key columns of the parts.
    """

    def __init__(self, parts_by_name: Mapping[str, PartKeys]) -> None:
        self._names = sorted(parts_by_name)
        self._ids: dict[str, int] = {}
        self._keys = np.empty(0, np.int64)
        self._part_of = np.empty(0, np.int32)
        self._row_of = np.empty(0, np.int32)
        if not self._names:
            return
        parts = [parts_by_name[name] for name in self._names]
        samples = pa.chunked_array([part.samples for part in parts], pa.string())
        encoded = samples.combine_chunks().dictionary_encode()
        self._ids = {sample: i for i, sample in enumerate(encoded.dictionary.to_pylist())}
        ids = encoded.indices.to_numpy().astype(np.int64)
        keys = (ids << VIEW_BITS) + np.concatenate([part.views for part in parts])
        lengths = np.array([len(part.views) for part in parts])
        # Stable, so that of a pair in two parts the first is found.
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._part_of = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)[order]
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        self._row_of = (np.arange(len(keys)) - starts)[order].astype(np.int32)

    def __len__(self) -> int:
        """The number of distinct (sample, view) pairs."""
        return int(np.unique(self._keys).size)

    def locate(self, samples: Sequence[str], views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions, for `by_part`, of `views[i, :]` of sample i, and whether each is there."""
        get = self._ids.get
        ids = np.fromiter((get(sample, -1) for sample in samples), np.int64, len(samples))
        wanted = (ids[:, None] << VIEW_BITS) + views
        if not self._keys.size:
            return np.zeros(wanted.shape, np.int64), np.zeros(wanted.shape, bool)
        places = np.searchsorted(self._keys, wanted)
        places = np.minimum(places, self._keys.size - 1)
        known = (ids[:, None] >= 0) & (views >= 0) & (views <= MAX_VIEW)
        return places, known & (self._keys[places] == wanted)

    def by_part(self, places: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield each part's name, its rows at some of `places`, and which of `places` these are."""
        part_of = self._part_of[places]
        order = np.argsort(part_of, kind="stable")
        bounds = np.flatnonzero(np.diff(part_of[order])) + 1
        for target in np.split(order, bounds) if order.size else []:
            yield self._names[part_of[target[0]]], self._row_of[places[target]], target
