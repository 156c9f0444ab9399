"""What every bench shares: cores, interleaved timing, this machine's rates, the last line."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

CORES = 2

Side = Callable[[], object]


def arguments(description: str) -> argparse.Namespace:
    """Read the command line: `--quick` runs a tiny form that proves nothing."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a tiny form, to see that it runs")
    return parser.parse_args()


def pin() -> None:
    """Give this process, and torch, the first two cores that it may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(CORES)
    torch.manual_seed(0)


def interleave(
    sides: Mapping[str, Side], repeats: int, warm_up: int = 1, calls: int = 1
) -> dict[str, float]:
    """Time every side in turn each round, so that a disturbance of the machine meets all of them.

    Args:
        sides: what to time.
        repeats: rounds.
        warm_up: rounds before them that do not count.
        calls: how often a side is called in its turn. What is called in a loop in real use, and
            fits the caches, needs more than one, for the other sides have emptied them.

    Returns:
        The median seconds of a call of each side over the rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm_up + repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            for _ in range(calls):
                side()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


class Rates:
    """This machine's rates, as two more sides of a run: a large product and a long sum.

    Args:
        quick: measure next to nothing.
    """

    def __init__(self, quick: bool) -> None:
        size, length = (64, 2**12) if quick else (1024, 2**24)
        left, right, out = (torch.ones(size, size) for _ in range(3))
        one, two = torch.ones(length), torch.ones(length)
        self.sides: dict[str, Side] = {
            "product": lambda: torch.mm(left, right, out=out),
            "memory": lambda: one.add_(two),
        }
        self._operations, self._bytes = 2 * size**3, 3 * 4 * length

    def floor(self, medians: Mapping[str, float], operations: float, moved: float) -> float:
        """Return the seconds that so many operations and bytes take, one after the other."""
        flops = self._operations / medians["product"]
        bandwidth = self._bytes / medians["memory"]
        print(
            f"rates in this run: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s; floor of "
            f"{operations / 1e9:.2f} GFLOP and {moved / 1e6:.0f} MB: "
            f"{1e3 * operations / flops:.1f} + {1e3 * moved / bandwidth:.1f} ms"
        )
        return operations / flops + moved / bandwidth


def check_close(name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Stop unless `found` is `expected` up to a share of its norm.

    Raises:
        SystemExit: it is not, so that there is nothing to time.
    """
    error = float((found - expected).norm() / expected.norm())
    if not error <= tolerance:
        raise SystemExit(f"{name} differs by {error:.1e} of its norm: the sides are not equal")


def does_not_apply(bench: str, reason: str) -> None:
    """Print as the last line that a bench says nothing on this machine."""
    print(json.dumps({"bench": bench, "inapplicable": reason}), flush=True)


def finish(bench: str, ratio: float, target: float, at_most: bool = False, **details: Any) -> None:
    """Print the result as the last line: one JSON object."""
    holds = ratio <= target if at_most else ratio >= target
    result = {"bench": bench, "ratio": round(ratio, 3), "target": target, "at_most": at_most}
    print(json.dumps({**result, "holds": holds, **details}), flush=True)
