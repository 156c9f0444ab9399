"""Methods that train on pooled features are their published formulas, each as if alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_ray.methods.base import Fitted, Method, TaskData
from safe_ray.methods.clip_adapter import ClipAdapter
from safe_ray.methods.features import GivenFeatures
from safe_ray.methods.knobs import points_of, sums_of_logits
from safe_ray.methods.probe import Probe, class_weights
from safe_ray.methods.task_residual import TaskResidual
from safe_ray.poolings.base import HeadState
from tests.methods.test_adapted import (
    CLASSES,
    DIM,
    HEAD,
    LABELS,
    SCALE,
    TESTED,
    draw,
    normal,
    samples,
    the_task,
)

METHODS: list[tuple[Method, dict[str, float]]] = [
    (Probe(), {"blend": 0.7}),
    (Probe(penalised=False), {"blend": 1.0}),
    (Probe(text="mix"), {"blend": 0.4}),
    (Probe("safe"), {"alpha": 0.3, "blend": 0.7}),
    (ClipAdapter(), {"ratio": 0.6}),
    (TaskResidual(), {"ratio": 0.8}),
]
NAMES = ["probe", "free probe", "mixed probe", "safe probe", "clip_adapter", "task_residual"]
EVERY = pytest.mark.parametrize(("method", "at"), METHODS, ids=NAMES)


def candidates(method: Method, *pairs: tuple[float, int]) -> list[dict[str, float]]:
    lr, epochs = method.quantities
    return [{lr: rate, epochs: count} for rate, count in pairs]


def task_of(method: Method, views: int = 1, heads: int = 1) -> TaskData:
    task = the_task(views)
    return replace(task, heads=[HEAD] * heads if method.recipe else [], seed=3)


def alone(parameters: Sequence[Tensor], loss: Callable[[], Tensor], lr: float, epochs: int) -> None:
    """The training of one candidate whose support samples are one batch of one view."""
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()


def expected(method: Any, at: dict[str, float], task: TaskData, lr: float, epochs: int) -> Tensor:
    """The logits of the test samples, by the formulas of each module's text."""
    raw, text = task.features.original[:, 0], task.classifier
    tested = samples(20, len(TESTED), 1)
    f = normal(tested.original[:, 0])
    if isinstance(method, ClipAdapter):
        generators = [torch.Generator().manual_seed(task.seed + place) for place in (0, 1)]
        middle = DIM // 4
        a, b = (
            torch.empty(rows, columns)
            .uniform_(-(rows**-0.5), rows**-0.5, generator=generator)
            .double()
            .requires_grad_()
            for (rows, columns), generator in zip(
                [(DIM, middle), (middle, DIM)], generators, strict=True
            )
        )

        def adapted(x: Tensor, ratio: float) -> Tensor:
            return normal(ratio * ((x @ a).relu() @ b).relu() + (1 - ratio) * x)

        alone(
            [a, b],
            lambda: nn.functional.cross_entropy(SCALE * adapted(raw, 0.2) @ text.T, LABELS),
            lr,
            epochs,
        )
        return SCALE * adapted(tested.original[:, 0], at["ratio"]) @ text.T
    if isinstance(method, TaskResidual):
        x = torch.zeros_like(text).requires_grad_()
        alone(
            [x],
            lambda: nn.functional.cross_entropy(
                SCALE * normal(raw) @ normal(text + 0.5 * x).T, LABELS
            ),
            lr,
            epochs,
        )
        return SCALE * f @ normal(text + at["ratio"] * x).T
    if method.features == "safe":
        raw = 0.5 * raw + 0.5 * task.features.pooled([HEAD])[0, :, 0]
        both = tested.original[:, 0], tested.pooled([HEAD])[0, :, 0]
        f = normal((1 - at["alpha"]) * both[0] + at["alpha"] * both[1])
    seen = normal(raw)
    zero_shot = normal(task.features.original[:, 0])
    odds = (SCALE * zero_shot @ text.T).softmax(-1)
    strength = torch.ones(CLASSES, dtype=torch.float64)
    for c in range(CLASSES):
        if (c == LABELS).any():
            strength[c] = odds[c == LABELS, c].mean()
    mixed = method.text == "mix"
    w = (torch.zeros_like(text) if mixed else text.clone()).requires_grad_()
    share = torch.ones(CLASSES, 1, dtype=torch.float64).requires_grad_()

    def weights() -> Tensor:
        return w + share * text if mixed else w

    def loss() -> Tensor:
        fit = nn.functional.cross_entropy(SCALE * seen @ weights().T, LABELS)
        away = (w - (0 if mixed else text)).square().sum(-1)
        return fit + (strength * away).mean() * method.penalised

    alone([w, share] if mixed else [w], loss, lr, epochs)
    return SCALE * f @ ((1 - at["blend"]) * text + at["blend"] * weights()).T


@EVERY
def test_each_candidate_is_the_formula_trained_alone(method: Method, at: dict[str, float]) -> None:
    pairs = [(0.02, 6), (0.003, 11)]
    task = task_of(method, heads=2)
    tested = samples(20, len(TESTED), 1)
    for (lr, epochs), fitted in zip(
        pairs, method.fit(task, candidates(method, *pairs)), strict=True
    ):
        wanted = expected(method, at, task, lr, epochs).detach()
        assert torch.allclose(fitted.logits(tested, at), wanted, rtol=1e-6, atol=1e-6)


def fitted(method: Method) -> Fitted:
    return method.fit(task_of(method, views=3), candidates(method, (0.02, 4)))[0]


@EVERY
def test_what_is_kept_makes_it_again(method: Method, at: dict[str, float]) -> None:
    one, tested = fitted(method), samples(20, len(TESTED), 2)
    bare = replace(the_task(), features=samples(1, 0, 1), labels=LABELS[:0], heads=[])
    again = method.load(dict(one.state()), bare)
    if method.recipe is None:
        assert torch.equal(again.logits(tested, at), one.logits(tested, at))
    else:  # features know a head by its identity, which a copy has not
        assert set(one.state()) == {*HEAD, "adapter.weights"}


@EVERY
def test_the_tables_hold_what_the_logits_come_to(method: Method, at: dict[str, float]) -> None:
    one, tested = fitted(method), samples(20, len(TESTED), 2)
    group = method.knobs[-1]
    grid = dict.fromkeys(group, (0.0, 0.5, 1.0))
    others = {knob: value for knob, value in at.items() if knob not in group}
    sums = one.sums(tested, TESTED, grid, others)
    zero_shot = SCALE * normal(tested.original[:, 0]) @ the_task().classifier.T
    wanted = sums_of_logits(lambda a: one.logits(tested, a), zero_shot, TESTED, grid, others)
    assert len(points_of(grid)) == len(sums.nll)
    assert torch.equal(sums.class_correct, wanted.class_correct)
    assert torch.allclose(sums.nll, wanted.nll)


@pytest.mark.parametrize(
    ("method", "zero"),
    [
        (Probe(), {"blend": 0.0}),
        (Probe(text="mix"), {"blend": 0.0}),
        (ClipAdapter(), {"ratio": 0.0}),
        (TaskResidual(), {"ratio": 0.0}),
    ],
)
def test_at_zero_each_is_zero_shot(method: Method, zero: dict[str, float]) -> None:
    tested = samples(20, len(TESTED), 2)
    zero_shot = SCALE * normal(tested.original[:, 0]) @ the_task().classifier.T
    assert torch.allclose(fitted(method).logits(tested, zero), zero_shot)


@pytest.mark.parametrize("views", [1, 3])
def test_a_class_is_held_as_far_as_its_text_is_right(views: int) -> None:
    seen, text = draw(5, len(LABELS), views, DIM), the_task().classifier
    wanted = torch.ones(CLASSES, dtype=torch.float64)  # nothing is of class 4
    for c in set(LABELS.tolist()):
        own = normal(seen[c == LABELS]).flatten(0, 1)
        wanted[c] = (SCALE * own @ text.T).softmax(-1)[:, c].mean()
    assert torch.allclose(class_weights(seen, LABELS, text, SCALE), wanted, rtol=1e-12)


class Counted:
    """Features that count how often they are pooled with heads."""

    def __init__(self, features: GivenFeatures) -> None:
        self.original, self.times, self._features = features.original, 0, features

    def pooled(self, heads: Sequence[HeadState]) -> Tensor:
        self.times += 1
        return self._features.pooled(heads)


def test_a_table_pools_the_samples_once() -> None:
    features = Counted(samples(20, len(TESTED), 2))
    grid = {"alpha": (0.0, 0.5, 1.0), "blend": (0.0, 1.0)}
    fitted(Probe("safe")).sums(features, TESTED, grid, {})
    assert features.times == 1


@pytest.mark.parametrize(
    ("options", "word"), [({"features": "both"}, "original or safe"), ({"text": "no"}, "mix")]
)
def test_options_that_make_no_probe_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Probe(**options)
