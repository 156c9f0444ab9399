"""How busy a machine and this process are, sampled now and then, where psutil is installed.

The names are those of MLflow's own monitor of system metrics, whose pages show them. It is not used
itself: it writes to MLflow from wherever it runs, and waits for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 10.0
MOST = 120
"""How many samples are kept at most; then every second one is left out, again and again."""

_FIRST = 1.0
_MIB = 2**20
_LATEST = 3e10


def is_time(seconds: float) -> bool:
    """Whether a number is a time since 1970, or 0, within a thousand years."""
    return 0 <= seconds < _LATEST


@dataclass(frozen=True)
class Sample:
    """What was measured at one time.

    Attributes:
        time: seconds since 1970.
        values: by MLflow's names of system metrics.
    """

    time: float
    values: Mapping[str, float]

    @property
    def is_sound(self) -> bool:
        """Whether it is a time of our days, and its values are finite."""
        return is_time(self.time) and all(map(math.isfinite, self.values.values()))


class Sampler:
    """Measures in a thread of its own, as long as the block lasts.

    Args:
        seconds: between two samples.
        on_sample: is told all samples after each; what it raises ends the measuring.
        probe: measures once; None measures nothing.
    """

    def __init__(
        self,
        seconds: float = SECONDS,
        on_sample: Callable[[tuple[Sample, ...]], None] | None = None,
        probe: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self._seconds = seconds
        self._on_sample = on_sample
        self._probe = probe
        self._samples: list[Sample] = []
        self._stride = 1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="usage", daemon=True)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """What was measured so far."""
        return tuple(self._samples)

    def __enter__(self) -> Sampler:
        if self._probe is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(self._seconds)

    def _work(self) -> None:
        assert self._probe is not None
        turn = 0
        # A bank may be trained in seconds, and its first moment says what it did.
        while not self._ended.wait(min(_FIRST, self._seconds) if turn == 0 else self._seconds):
            turn += 1
            values = self._probe()
            if turn % self._stride:
                continue
            self._samples.append(Sample(round(time.time(), 3), values))
            if len(self._samples) >= MOST:
                self._samples = self._samples[1::2]
                self._stride *= 2
            if self._on_sample is not None:
                self._on_sample(self.samples)


def probe_of_machine() -> Callable[[], Mapping[str, float]] | None:
    """Return what measures this machine and this process; None where psutil is not installed."""
    try:
        import psutil
    except ImportError:
        return None
    process = psutil.Process()
    began = psutil.net_io_counters()
    # Both count from the call before.
    psutil.cpu_percent()
    process.cpu_percent()

    def probe() -> Mapping[str, float]:
        memory, disk, network = (
            psutil.virtual_memory(),
            psutil.disk_usage(Path.cwd().anchor),
            psutil.net_io_counters(),
        )
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MIB,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "process_cpu_percentage": process.cpu_percent(),
            "process_memory_megabytes": process.memory_info().rss / _MIB,
            **_network(began, network),
            **_gpus(),
        }
        return {name: round(float(value), 2) for name, value in values.items()}

    return probe


def _network(began: Any, now: Any) -> dict[str, float]:
    if began is None or now is None:
        return {}
    return {
        "network_receive_megabytes": (now.bytes_recv - began.bytes_recv) / _MIB,
        "network_transmit_megabytes": (now.bytes_sent - began.bytes_sent) / _MIB,
    }


def _gpus() -> dict[str, float]:
    """Return how busy the GPUs are that this process has begun to use, by torch."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    values: dict[str, float] = {}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        values[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / _MIB
        values[f"gpu_{index}_memory_usage_percentage"] = 100 * (total - free) / total
        try:
            values[f"gpu_{index}_utilization_percentage"] = torch.cuda.utilization(index)
        except (ImportError, ModuleNotFoundError, RuntimeError):
            # NVIDIA's own package is needed for that.
            continue
    return values
