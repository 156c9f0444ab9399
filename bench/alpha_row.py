"""A row of 101 alphas costs at most 1.1 times one alpha, pooling the validation maps included."""

from __future__ import annotations

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch.nn import functional

from bench.harness import arguments, check_close, finish, interleave, pin
from bench.pooling import EMBEDDED, RN50, TINY, Size
from safe_ray.heads.blending import alpha_grid, blend_logits, sum_alpha_row
from safe_ray.heads.sums import KnobSums
from safe_ray.poolings.modified_resnet import AttentionPool
from safe_ray.poolings.pooled import pool_with_heads

_SCALE, _POINTS = 100.0, 101


def measure(size: Size, samples: int, repeats: int) -> float:
    """Return the seconds of 101 alphas over those of one, for one head of the size."""
    heads = [
        AttentionPool2d(size.grid, size.width, size.heads, size.output).state_dict()
        for _ in range(2)
    ]
    maps = torch.randn(samples, size.grid**2, size.width).relu().half()
    labels = torch.randint(size.classes, (samples,))
    classifier = functional.normalize(torch.randn(size.classes, size.output), dim=-1)

    form, device = AttentionPool(size.heads), classifier.device

    def evaluate(alphas: tuple[float, ...]) -> KnobSums:
        tuned = pool_with_heads(heads[:1], form, maps, device)
        original = pool_with_heads(heads[1:], form, maps, device)[0]
        return sum_alpha_row(tuned, original, classifier, labels, _SCALE, alphas)[0]

    row = evaluate(alpha_grid(_POINTS))
    tuned, original = pool_with_heads(heads, form, maps, device)
    for index, alpha in enumerate(alpha_grid(_POINTS)):
        logits = blend_logits(tuned, original, classifier, _SCALE, alpha)
        loss = functional.cross_entropy(logits, labels, reduction="sum").double()
        check_close(f"the row at alpha {alpha}", row.nll[index], loss, 1e-4)
    check_close("one point", evaluate((0.5,)).nll[0], row.nll[_POINTS // 2], 1e-6)

    medians = interleave(
        {"row": lambda: evaluate(alpha_grid(_POINTS)), "point": lambda: evaluate((0.5,))}, repeats
    )
    print(
        f"C={size.width}, {samples} maps, {size.classes} classes: {_POINTS} alphas "
        f"{1e3 * medians['row']:.1f} ms, one alpha {1e3 * medians['point']:.1f} ms"
    )
    return medians["row"] / medians["point"]


def main() -> None:
    """Run at both sizes and print the worse ratio."""
    quick = arguments(str(__doc__)).quick
    pin()
    ratios = {
        "rn50": measure(TINY if quick else RN50, 4 if quick else 200, 1 if quick else 25),
        "embedded": measure(TINY if quick else EMBEDDED, 4 if quick else 200, 1 if quick else 301),
    }
    finish(
        "alpha_row",
        max(ratios.values()),
        1.1,
        at_most=True,
        ratio_by_size={name: round(ratio, 3) for name, ratio in ratios.items()},
    )


if __name__ == "__main__":
    main()
