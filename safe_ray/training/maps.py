"""Where a worker's dense maps lie while it trains: on its device, on the host, or in the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from safe_ray.devices import indexed

Pin = Literal["device", "host", "stream"]

# Of the memory that a worker may use, what its maps may take: the bank needs the rest.
_MAPS_SHARE = 0.5

BatchKeys = tuple[Tensor, Tensor]
"""The rows of a worker's shard in one batch, and the view of each: two `[n]` int64."""


class MapSource(Protocol):
    """Gives the maps of a worker's support samples, batch by batch."""

    views: int

    def epoch(self, batches: Sequence[BatchKeys]) -> Iterator[Tensor]:
        """Yield the maps of each batch, `[n, L, C]` on the training device, in the order given."""
        ...


class ResidentMaps:
    """All maps of the shard in memory.

    Args:
        maps: `[n, views, L, C]` in any floating-point type, on the training device, or on the host
            if they are copied batch by batch.
        device: to train on.
    """

    def __init__(self, maps: Tensor, device: torch.device) -> None:
        self.views = int(maps.shape[1])
        self._device = indexed(device)
        from_host = maps.device.type == "cpu" and self._device.type == "cuda"
        self._maps = maps.pin_memory() if from_host else maps

    def epoch(self, batches: Sequence[BatchKeys]) -> Iterator[Tensor]:
        """See `MapSource`."""
        for rows, views in batches:
            home = self._maps.device
            chosen = self._maps[rows.to(home), views.to(home)]
            yield chosen.to(self._device, non_blocking=True)


def resident_maps(maps: np.ndarray, pin: Pin, device: torch.device) -> ResidentMaps:
    """Return maps `[n, views, L, C]` that stay on the device, or on the host, while training."""
    tensor = torch.from_numpy(maps)
    return ResidentMaps(tensor.to(device) if pin == "device" else tensor, device)


def choose_pin(
    wanted: Pin | Literal["auto"], maps_bytes: int, device_memory: int, host_memory: int
) -> Pin:
    """Decide where a task's maps lie.

    Args:
        wanted: `training.pin`; anything but `auto` is taken as it is.
        maps_bytes: of the maps that one worker trains on.
        device_memory: bytes of the training device that a worker may use.
        host_memory: bytes of the host's memory that a worker may use, 0 where the host is the
            training device.

    Returns:
        The first of device, host and stream whose memory holds the maps with as much left free.
    """
    if wanted != "auto":
        return wanted
    if maps_bytes <= device_memory * _MAPS_SHARE:
        return "device"
    return "host" if maps_bytes <= host_memory * _MAPS_SHARE else "stream"


def stream_budget(memory: int) -> int:
    """Return the bytes of maps that a worker which streams may have in flight at once."""
    return int(memory * _MAPS_SHARE)
