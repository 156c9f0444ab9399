"""Adapters on pooled features are their published formulas, on original and on SAFE's features."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn

from safe_ray.errors import InputError
from safe_ray.methods import TaskData
from safe_ray.methods.adapted import ADAPTERS, Adapted, Affinities, Pooled
from safe_ray.methods.base import make_method
from safe_ray.methods.features import GivenFeatures, MappedFeatures
from safe_ray.methods.knobs import points_of, sums_of_logits
from safe_ray.poolings.modified_resnet import AttentionPool

CLASSES, DIM, SCALE, HEADS = 6, 16, 20.0, 4
KNOBS = {"alpha": 0.3, "beta": 5.5, "gamma": 0.7, "lambda": 0.2}
# Unequal counts, and nothing of class 4, as part of a support set may be.
LABELS = torch.tensor([0, 0, 0, 1, 2, 2, 3, 5, 3, 1])
TESTED = torch.tensor([0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0])
ALL = [(features, adapter) for features in ("original", "safe") for adapter in ADAPTERS]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(values: Tensor) -> Tensor:
    return nn.functional.normalize(values, dim=-1)


HEAD = {"weight": torch.ones(1)}


def samples(seed: int, count: int, views: int) -> GivenFeatures:
    return GivenFeatures(
        draw(seed, count, views, DIM), {id(HEAD): draw(seed + 1, count, views, DIM)}
    )


def the_task(views: int = 3, labels: Tensor = LABELS) -> TaskData:
    classifier = normal(draw(7, CLASSES, DIM))
    features = samples(1, len(labels), views)
    return TaskData(features, labels, classifier, SCALE, HEAD, [HEAD])


def a_task(features: str, **changes: Any) -> TaskData:
    task = the_task(**changes)
    return task if features == "safe" else replace(task, heads=[])


def blended(features: GivenFeatures, alpha: float, kind: str) -> Tensor:
    if kind == "original":
        return features.original
    return alpha * features.pooled([HEAD])[0] + (1 - alpha) * features.original


def expected_logits(adapter: str, kind: str, task: TaskData, tested: GivenFeatures) -> Tensor:
    """The formulas as they are published, sample by sample and class by class."""
    support = blended(task.features, KNOBS["alpha"], kind)
    f = normal(blended(tested, KNOBS["alpha"], kind)[:, 0])
    keys, w, s = normal(support.mean(1)), task.classifier, SCALE
    logits = s * f @ w.T
    if adapter == "cache":
        for n in range(len(f)):
            for i, label in enumerate(task.labels.tolist()):
                closeness = math.exp(-KNOBS["beta"] * (1 - float(f[n] @ keys[i])))
                logits[n, label] += KNOBS["gamma"] * closeness
    elif adapter == "gda":
        x, y = normal(support).flatten(0, 1), task.labels.repeat_interleave(support.shape[1])
        mu = torch.stack(
            [x[y == c].mean(0) if (y == c).any() else x.mean(0) for c in range(CLASSES)]
        )
        covariance = (x - mu[y]).T.cov()
        ridge = covariance.trace() * torch.eye(DIM, dtype=torch.float64)
        p = DIM * torch.linalg.pinv((len(x) - 1) * covariance + ridge)
        for c in range(CLASSES):
            score = f @ p @ mu[c] + math.log(1 / CLASSES) - mu[c] @ p @ mu[c] / 2
            logits[:, c] += KNOBS["gamma"] * score
    elif adapter == "kernel":

        def rbf(a: Tensor, b: Tensor) -> Tensor:  # |a - b|^2 = 2 - 2 a b
            return torch.exp(-KNOBS["beta"] / 2 * torch.cdist(a, b) ** 2)

        system = rbf(keys, keys) / KNOBS["lambda"] + torch.eye(len(keys))
        residual = nn.functional.one_hot(task.labels, CLASSES) - keys @ w.T
        logits = s * (f @ w.T + rbf(f, keys) @ torch.linalg.inv(system) @ residual)
    else:
        n = len(keys)
        for c in range(CLASSES):
            own = keys[task.labels == c].sum(0)
            weight = w[c] + (1 / n) * (1 / (1 / n)) * own / (1 / s)
            logits[:, c] = s * f @ (weight / weight.norm())
    return logits


@pytest.mark.parametrize(("kind", "adapter"), ALL)
def test_the_logits_are_the_published_ones(kind: str, adapter: str) -> None:
    task, tested = a_task(kind), samples(20, len(TESTED), 2)
    [fitted] = Adapted(kind, adapter).fit(task, [{}])
    expected = expected_logits(adapter, kind, task, tested)
    assert torch.allclose(fitted.logits(tested, KNOBS), expected, rtol=1e-9, atol=1e-9)


GRIDS = {
    "alpha": [0.0, 0.35, 1.0],
    "beta": [0.5, 3.0, 5.5],
    "gamma": [0.1, 1.0, 4.0, 30.0],
    "lambda": [0.01, 0.5],
}


@pytest.mark.parametrize(("kind", "adapter"), ALL)
def test_every_grid_holds_what_the_logits_come_to(kind: str, adapter: str) -> None:
    task, tested = a_task(kind), samples(20, len(TESTED), 2)
    method = Adapted(kind, adapter)
    [fitted] = method.fit(task, [{}])
    known = [name for group in method.knobs for name in group]
    for varying in [*method.knobs, tuple(known), tuple(reversed(known)), ()]:
        grid = {name: GRIDS[name] for name in varying}
        at = {name: KNOBS[name] for name in known if name not in grid}
        sums = fitted.sums(tested, TESTED, grid, at)
        zero_shot = SCALE * normal(tested.original[:, 0]) @ task.classifier.T
        naive = sums_of_logits(lambda a: fitted.logits(tested, a), zero_shot, TESTED, grid, at)
        assert len(sums.nll) == len(points_of(grid))
        assert torch.equal(sums.class_correct, naive.class_correct)
        assert torch.equal(sums.gained, naive.gained)
        assert torch.equal(sums.lost, naive.lost)
        assert torch.equal(sums.class_samples, naive.class_samples)
        assert torch.allclose(sums.nll, naive.nll, rtol=1e-9)


@pytest.mark.parametrize(("kind", "adapter"), ALL)
def test_an_alpha_is_independent_of_those_asked_for_before(kind: str, adapter: str) -> None:
    task, tested = a_task(kind), samples(20, len(TESTED), 2)
    [fitted] = Adapted(kind, adapter).fit(task, [{}])
    before = fitted.logits(tested, KNOBS)
    fitted.logits(tested, {**KNOBS, "alpha": 0.9, "beta": 2.0})
    assert torch.equal(fitted.logits(tested, KNOBS), before)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("train", [False, True])
def test_what_is_kept_makes_it_again_to_the_digit(adapter: str, train: bool) -> None:
    if train and adapter != "cache":
        return
    for kind in ("original", "safe"):
        layers = [AttentionPool2d(2, 64, HEADS, DIM).state_dict() for _ in range(3)]
        original, heads = layers[0], layers[1:]
        maps = draw(3, len(LABELS) + len(TESTED), 2, 4, 64).half()
        pool = AttentionPool(HEADS)
        device = torch.device("cpu")
        support = MappedFeatures(maps[: len(LABELS)], pool, original, device)
        tested = MappedFeatures(maps[len(LABELS) :], pool, original, device)
        classifier = normal(draw(7, CLASSES, DIM)).float()
        used = heads if kind == "safe" else []
        task = TaskData(support, LABELS, classifier, SCALE, original, used)
        method = Adapted(kind, adapter, train=train)
        candidates = [dict.fromkeys(method.quantities, 1.0), dict.fromkeys(method.quantities, 2.0)]
        for fitted in method.fit(task, candidates):
            state = {name: tensor.clone() for name, tensor in fitted.state().items()}
            assert all(isinstance(tensor, Tensor) for tensor in state.values())
            bare = replace(task, features=None, labels=None, heads=[])
            again = method.load(state, bare)
            assert torch.equal(again.logits(tested, KNOBS), fitted.logits(tested, KNOBS))


@pytest.mark.parametrize("moved", [None, 0.1 * draw(9, 4, DIM)])
def test_affinities_of_a_blend_come_from_the_affinities_of_both_poolings(moved) -> None:
    features, keys = (Pooled(draw(i, n, DIM), draw(i + 1, n, DIM)) for i, n in ((1, 5), (3, 4)))
    classifier = normal(draw(7, CLASSES, DIM))
    tables = Affinities(features, keys, classifier, moved)
    for alpha in (0.0, 0.4, 1.0):
        f, k = normal(features.at(alpha)), normal(keys.at(alpha))
        affinity, scores = tables.at(alpha)
        assert torch.allclose(affinity, f @ (k + (0 if moved is None else moved)).T, rtol=1e-10)
        assert torch.allclose(scores, f @ classifier.T, rtol=1e-10)


def test_safe_at_gamma_zero_is_safe_and_at_alpha_zero_its_cache_is_tip_adapter() -> None:
    tested = samples(20, len(TESTED), 2)
    [tip] = Adapted("original", "cache").fit(a_task("original"), [{}])
    [safe] = Adapted("safe", "cache").fit(a_task("safe"), [{}])
    at = {**KNOBS, "alpha": 0.0}
    assert torch.allclose(safe.logits(tested, at), tip.logits(tested, at))
    features = normal(blended(tested, 0.3, "safe")[:, 0])
    without = safe.logits(tested, {**KNOBS, "gamma": 0.0})
    assert torch.allclose(without, SCALE * features @ a_task("safe").classifier.T)


def test_trained_keys_of_each_candidate_are_as_published() -> None:
    task = a_task("original", views=1)
    candidates = [{"lr": 1e-2, "epochs": 7}, {"lr": 1e-3, "epochs": 20.0}]
    fitted = Adapted("original", "cache", train=True).fit(task, candidates)
    features, w = normal(task.features.original[:, 0]), task.classifier
    one_hot = nn.functional.one_hot(LABELS, CLASSES).double()
    tested = samples(20, len(TESTED), 2)
    f = normal(tested.original[:, 0])
    for one, candidate in zip(fitted, candidates, strict=True):
        epochs = int(candidate["epochs"])
        adapter = nn.Linear(DIM, len(LABELS), bias=False).double()
        adapter.weight = nn.Parameter(features.clone())
        optimiser = torch.optim.AdamW(adapter.parameters(), lr=candidate["lr"], eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
        for _ in range(epochs):
            votes = torch.exp(-1.0 * (1 - adapter(features))) @ one_hot
            logits = SCALE * features @ w.T + 1.17 * votes
            optimiser.zero_grad()
            nn.functional.cross_entropy(logits, LABELS).backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            votes = torch.exp(-KNOBS["beta"] * (1 - adapter(f))) @ one_hot
            expected = SCALE * f @ w.T + KNOBS["gamma"] * votes
        assert torch.allclose(one.logits(tested, KNOBS), expected, rtol=1e-9, atol=1e-9)


def test_training_lowers_the_loss_on_the_support_samples_of_several_views() -> None:
    for kind, names in (("original", ("lr", "epochs")), ("safe", ("key_lr", "key_epochs"))):
        task = a_task(kind)
        at = {"alpha": 0.5, "beta": 1.0, "gamma": 1.17}
        [plain] = Adapted(kind, "cache").fit(task, [{}])
        [trained] = Adapted(kind, "cache", train=True).fit(
            task, [dict(zip(names, (1e-2, 30), strict=True))]
        )
        before, after = (
            nn.functional.cross_entropy(one.logits(task.features, at), LABELS)
            for one in (plain, trained)
        )
        assert after < before - 0.05


def test_one_view_of_one_shot_gives_gda_nothing_to_say() -> None:
    task = a_task("original", views=1, labels=torch.arange(CLASSES))
    [fitted] = Adapted("original", "gda").fit(task, [{}])
    logits = fitted.logits(task.features, {"gamma": 100.0})
    zero_shot = SCALE * normal(task.features.original[:, 0]) @ task.classifier.T
    assert torch.allclose(logits.softmax(-1), zero_shot.softmax(-1))


def test_what_is_searched_and_solved() -> None:
    safe = Adapted("safe", "cache")
    assert safe.knobs == (("alpha",), ("beta", "gamma"))
    assert safe.recipe is not None
    assert safe.recipe.parameters == ("all",)
    assert Adapted("original", "gda").knobs == (("gamma",),)
    assert Adapted("original", "gda").recipe is None
    assert Adapted("original", "ss_text").knobs == ()
    assert Adapted(train=True).quantities == ("lr", "epochs")
    assert Adapted("safe", train=True).quantities == ("key_lr", "key_epochs")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"features": "both"}, "both"),
        ({"adapter": "svm"}, "svm"),
        ({"adapter": "gda", "train": True}, "gda"),
        ({"colour": 1}, "colour"),
    ],
)
def test_options_that_make_no_method_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        make_method("safe_ray.methods.adapted", options)
