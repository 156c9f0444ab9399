"""The blend of the tuned and the original pooled features, at every alpha at once.

With `s_T = T W^T`, `s_O = O W^T` and the inner products of the two pooled vectors,

    |alpha T + (1 - alpha) O|^2 = alpha^2 T.T + 2 alpha (1 - alpha) T.O + (1 - alpha)^2 O.O
    logits = logit_scale * (alpha s_T + (1 - alpha) s_O) / |alpha T + (1 - alpha) O|

so no blended vector is ever formed: the whole row of alphas follows from one pass of each branch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from safe_ray.heads.sums import KnobSums

# Small enough that the logits of a chunk stay in a CPU's cache from one pass to the next.
_SCRATCH_BYTES = 4 * 2**20


def alpha_grid(points: int) -> tuple[float, ...]:
    """Return `points` evenly spaced alphas from 0 (zero-shot) to 1 (the tuned pooling alone)."""
    if points < 2:
        raise ValueError(f"an alpha grid needs at least 2 points, not {points}")
    return tuple(index / (points - 1) for index in range(points))


def blend_logits(
    tuned: Tensor, original: Tensor, classifier: Tensor, logit_scale: float, alpha: float
) -> Tensor:
    """Class logits at one alpha, with the blended features written out.

    Args:
        tuned: `[..., N, D]` features pooled by the tuned head, as the pooling returns them.
        original: `[..., N, D]` features pooled by the original head.
        classifier: `[classes, D]`, normalised rows.
        logit_scale: the model's, already exponentiated.
        alpha: 0 for the original pooling alone, 1 for the tuned one alone.

    Returns:
        `[..., N, classes]` logits.
    """
    blended = alpha * tuned + (1.0 - alpha) * original
    return logit_scale * (nn.functional.normalize(blended, dim=-1) @ classifier.t())


@torch.no_grad()
def sum_alpha_row(
    tuned: Tensor,
    original: Tensor,
    classifier: Tensor,
    labels: Tensor,
    logit_scale: float,
    alphas: tuple[float, ...],
) -> list[KnobSums]:
    """Evaluate K heads at every alpha, in closed form; the points of the sums are the alphas.

    Args:
        tuned: `[K, N, D]` features pooled by the tuned heads.
        original: `[N, D]` features pooled by the original head.
        classifier: `[classes, D]`, normalised rows.
        labels: `[N]` int64 class indices.
        logit_scale: the model's, already exponentiated.
        alphas: the grid, `A` values in [0, 1].
    """
    candidates, samples, _ = tuned.shape
    classes, points, device = classifier.shape[0], len(alphas), tuned.device
    alpha = torch.tensor(alphas, dtype=tuned.dtype, device=device)
    correct = torch.zeros(candidates, classes, points, dtype=torch.int32, device=device)
    gained = torch.zeros(candidates, points, dtype=torch.int64, device=device)
    lost = torch.zeros(candidates, points, dtype=torch.int64, device=device)
    nll = torch.zeros(candidates, points, dtype=torch.float64, device=device)

    per_sample = classes * points * tuned.element_size()
    chunk = max(1, _SCRATCH_BYTES // per_sample)
    for start in range(0, samples, chunk):
        part = slice(start, start + chunk)
        base, base_scores = original[part], original[part] @ classifier.t()
        base_square = (base * base).sum(-1, keepdim=True)
        target = labels[part].view(-1, 1, 1).expand(-1, 1, points)
        by_original = _is_highest(base_scores.unsqueeze(-1), target[..., :1]).squeeze(1)  # [n, 1]
        for index in range(candidates):
            features = tuned[index, part]
            norm = (
                alpha.square() * (features * features).sum(-1, keepdim=True)
                + 2 * alpha * (1 - alpha) * (features * base).sum(-1, keepdim=True)
                + (1 - alpha).square() * base_square
            ).clamp_min(1e-24)
            factor = logit_scale * norm.rsqrt()  # [n, A]
            # Both branches' scores are mixed by one product a sample, [classes, 2] x [2, A]: the
            # alphas come last because reductions over the classes are then vectorised.
            mix = torch.stack([factor * (1 - alpha), factor * alpha], dim=1)
            logits = torch.bmm(torch.stack([base_scores, features @ classifier.t()], dim=-1), mix)
            right = _is_highest(logits, target).squeeze(1)  # [n, A]
            correct[index].index_add_(0, labels[part], right.int())
            gained[index] += (right & ~by_original).sum(0)
            lost[index] += (by_original & ~right).sum(0)
            nll[index] -= torch.log_softmax(logits, 1).gather(1, target).double().sum((0, 1))
    # Not `bincount`, which waits for the device to know how long its answer is.
    sizes = torch.zeros(classes, dtype=torch.int64, device=device)
    sizes.index_add_(0, labels, torch.ones_like(labels))
    columns = (correct.transpose(1, 2).cpu(), gained.cpu(), lost.cpu(), nll.cpu())
    return [KnobSums(*head, sizes.cpu()) for head in zip(*columns, strict=True)]


def _is_highest(logits: Tensor, target: Tensor) -> Tensor:
    """Whether the target is the first highest of `[n, classes, A]`, as `argmax` would have it."""
    if logits.device.type != "cpu":
        # To ask whether there are ties would be to wait for the device.
        return logits.argmax(dim=1, keepdim=True) == target
    highest = logits == logits.amax(dim=1, keepdim=True)
    # More highest classes than rows: there are ties, as two classes of one name give.
    if int(torch.count_nonzero(highest)) > logits.shape[0] * logits.shape[2]:
        return logits.argmax(dim=1, keepdim=True) == target
    return highest.gather(1, target)
