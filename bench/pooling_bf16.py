"""What bfloat16 adds at RN50's size, to open_clip's layer under autocast and to a bank's step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor

from bench.harness import (
    Side,
    arguments,
    check_close,
    does_not_apply,
    finish,
    interleave,
    pin,
)
from bench.pooling import RN50, TINY, Problem
from safe_ray.devices import cpu_capabilities, has_instructions


def open_clip_autocast(layer: AttentionPool2d, images: Tensor) -> Tensor:
    """open_clip's layer with its products in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        pooled: Tensor = layer(images)
    return pooled.float()


def main() -> None:
    """Time both sides in both precisions; the ratio is that of the two in bfloat16."""
    quick = arguments(str(__doc__)).quick
    if not has_instructions("bf16", cpu_capabilities()):
        does_not_apply("pooling_bf16", "this CPU has no instructions for bfloat16")
        return
    pin()
    problem = Problem(TINY if quick else RN50)
    half = torch.bfloat16
    exact: Callable[[], Tensor] = problem.bank(1)[0]
    rounded, _, _ = problem.bank(1, half)
    loss = exact()
    check_close("the bank's loss in bfloat16", rounded(), loss, 0.02)
    usual, _, _ = problem.usual(open_clip_autocast)
    check_close("open_clip's loss in bfloat16", usual(), loss[0], 0.02)

    sides: dict[str, Side] = {
        "open_clip fp32": problem.usual(AttentionPool2d.forward)[0],
        "open_clip bf16": usual,
        "bank fp32": exact,
        "bank bf16": rounded,
    }
    medians = interleave(sides, 1 if quick else 5)
    for name, seconds in medians.items():
        print(f"{name}: {1e3 * seconds:.1f} ms a step")
    finish(
        "pooling_bf16",
        medians["open_clip bf16"] / medians["bank bf16"],
        8.0,
        open_clip_gain=round(medians["open_clip fp32"] / medians["open_clip bf16"], 2),
        bank_gain=round(medians["bank fp32"] / medians["bank bf16"], 2),
        step_ms={name: round(1e3 * seconds, 2) for name, seconds in medians.items()},
    )


if __name__ == "__main__":
    main()
