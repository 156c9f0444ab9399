"""A step a head with updates of rank 8, at RN50's size: products shared, against weights merged.

Both are steps by autograd. The written-out step of the whole pooling, and what a head's file takes,
are printed beside them. The ratio is the least over the sizes of the bank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.harness import Side, arguments, finish, interleave, pin
from bench.pooling import RN50, TINY, Problem
from safe_ray.heads.bank import Bank
from safe_ray.heads.optimiser import BankOptimiser
from safe_ray.heads.step import AutogradStep
from safe_ray.poolings.low_rank import LowRank, beginning, weights_of
from safe_ray.poolings.modified_resnet import AttentionPool, with_mean_token

_RANK = 8


def low_rank(problem: Problem, candidates: int, *, merging: bool) -> Callable[[], Tensor]:
    """Return a step of K heads; with `merging` each forms its own weights."""
    names = weights_of(list(problem.start), problem.start)
    pooling = AttentionPool(problem.size.heads)
    form = LowRank(Merging(problem.size.heads) if merging else pooling, names)
    states = beginning(problem.start, names, [_RANK] * candidates, seed=0)
    bank = Bank(states, form, form.trained, problem.classifier, 100.0, shared=problem.start)
    step = AutogradStep(bank, BankOptimiser(bank, [0.01] * candidates))
    weights = torch.full((candidates, problem.size.batch), 1 / problem.size.batch)

    def run() -> Tensor:
        return step(with_mean_token(problem.maps), problem.labels, weights, [1e-5] * candidates)

    return run


class Merging(AttentionPool):
    """The pooling as a family without shared products has it."""

    pool_low_rank = None  # type: ignore[assignment]


if __name__ == "__main__":
    quick = arguments(__doc__).quick
    pin()
    problem = Problem(TINY if quick else RN50)
    counts = (4, 8)
    sides: dict[str, Side] = {}
    for count in counts:
        sides[f"whole {count}"] = problem.bank(count)[0]
        sides[f"low rank {count}"] = low_rank(problem, count, merging=False)
        sides[f"merged {count}"] = low_rank(problem, count, merging=True)
    medians = interleave(sides, 1 if quick else 3, calls=1)
    for count in counts:
        mine, whole, merged = (
            1e3 * medians[f"{kind} {count}"] / count for kind in ("low rank", "whole", "merged")
        )
        print(f"K={count}: {mine:.1f} ms a head, whole {whole:.1f} ms, merged {merged:.1f} ms")
    names = weights_of(list(problem.start), problem.start)
    [state] = beginning(problem.start, names, [_RANK], seed=0)
    kept, whole_head = (4 * sum(t.numel() for t in s.values()) for s in (state, problem.start))
    finish(
        "low_rank",
        min(medians[f"merged {count}"] / medians[f"low rank {count}"] for count in counts),
        1.2,
        head_bytes=kept,
        whole_head_bytes=whole_head,
        step_ms={str(c): round(1e3 * medians[f"low rank {c}"] / c, 2) for c in counts},
        whole_step_ms={str(c): round(1e3 * medians[f"whole {c}"] / c, 2) for c in counts},
        merged_step_ms={str(c): round(1e3 * medians[f"merged {c}"] / c, 2) for c in counts},
    )
