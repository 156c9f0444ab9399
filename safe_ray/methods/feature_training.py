"""Training on pooled features: K candidates side by side, each as if alone.

In each epoch every support sample is seen once, in one of its views, in batches of 256; order and
views are drawn by a seed and are the same for all candidates. AdamW has torch's defaults but for
its epsilon, and each candidate has its own learning rate and number of epochs, with a cosine to
zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from safe_ray.heads.optimiser import Schedule

_BATCH = 256

Stacked = Sequence[Tensor]
"""The parameters of K candidates, each `[K, ...]`."""


def train_on_features(
    features: Tensor,
    labels: Tensor,
    start: Stacked,
    logits: Callable[[Stacked, Tensor], Tensor],
    lrs: Sequence[float],
    epochs: Sequence[int],
    seed: int,
    penalty: Callable[[Stacked], Tensor] | None = None,
    weight_decay: float = 0.0,
    epsilon: float = 1e-8,
) -> list[Tensor]:
    """Minimise the mean cross-entropy on the support samples.

    Args:
        features: `[K, S, V, D]`.
        labels: `[S]` int64.
        start: where to begin.
        logits: of parameters and features `[K, B, D]`, `[K, B, classes]`.
        lrs: one a candidate.
        epochs: one a candidate.
        seed: of the order and the views.
        penalty: what is added to each candidate's loss, `[K]`.
        weight_decay: AdamW's.
        epsilon: AdamW's.

    Returns:
        The trained parameters, as `start` has them.
    """
    samples, views = features.shape[1:3]
    steps = math.ceil(samples / _BATCH)
    schedules = [
        Schedule(lr, epoch * steps, warmup_steps=0) for lr, epoch in zip(lrs, epochs, strict=True)
    ]
    # A parameter group a candidate, for its learning rate.
    own = [[nn.Parameter(each[k].detach().clone()) for each in start] for k in range(len(lrs))]
    optimiser = torch.optim.AdamW(
        [{"params": parameters} for parameters in own], eps=epsilon, weight_decay=weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for _ in range(max(epochs)):
        order = torch.randperm(samples, generator=generator)
        drawn = torch.randint(views, (samples,), generator=generator)
        for batch in order.split(_BATCH):
            seen = features[:, batch.to(features.device), drawn[batch].to(features.device)]
            with torch.enable_grad():
                stacked = [torch.stack(each) for each in zip(*own, strict=True)]
                scores = logits(stacked, seen)
                target = labels[batch.to(labels.device)].expand(len(own), -1)
                loss = nn.functional.cross_entropy(
                    scores.flatten(0, 1), target.flatten(), reduction="sum"
                ) / len(batch)
                if penalty is not None:
                    loss = loss + penalty(stacked).sum()
                optimiser.zero_grad()
                loss.backward()
            for group, schedule in zip(optimiser.param_groups, schedules, strict=True):
                group["lr"] = schedule.at(step)  # 0, and so no change, where its epochs are over
            optimiser.step()
            step += 1
    return [torch.stack([each.detach() for each in same]) for same in zip(*own, strict=True)]
