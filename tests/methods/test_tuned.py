"""Each blend is what its equation says; tables agree with logits; a head comes back as it was."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from safe_ray.heads.selection import Rule
from safe_ray.methods.base import Recipe, TaskData, make_method
from safe_ray.methods.features import Features, MappedFeatures
from safe_ray.methods.knobs import KnobTable, solve
from safe_ray.poolings.base import HeadState
from tests.heads.test_bank import (
    CLASSES,
    GRID,
    NAMES,
    POOL,
    WIDTH,
    as_image,
    classifier,
    layer,
    state_of,
)

CPU = torch.device("cpu")
SCALE = 20.0
ORIGINAL, TUNED = state_of(layer(0)), state_of(layer(1))
MAPS = torch.randn(9, 2, GRID * GRID, WIDTH, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(9) % CLASSES
ALPHAS = (0.0, 0.25, 0.5, 1.0)


def features() -> Features:
    return MappedFeatures(MAPS, POOL, ORIGINAL, CPU)


def task(*heads: HeadState) -> TaskData:
    return TaskData(features(), LABELS, classifier(), SCALE, ORIGINAL, heads)


def pooled(state: Mapping[str, Tensor]) -> Tensor:
    """View 0 through open_clip's own layer, in float64."""
    reference = layer(0).double()
    reference.load_state_dict({name: state[name].double() for name in NAMES})
    with torch.no_grad():
        result: Tensor = reference(as_image(MAPS[:, 0].double(), GRID))
    return result


def by_hand(blend: str, alpha: float) -> Tensor:
    def logits(embeddings: Tensor) -> Tensor:
        return SCALE * functional.normalize(embeddings, dim=-1) @ classifier().double().t()

    if blend == "features":
        return logits(alpha * pooled(TUNED) + (1 - alpha) * pooled(ORIGINAL))
    if blend == "logits":
        return alpha * logits(pooled(TUNED)) + (1 - alpha) * logits(pooled(ORIGINAL))
    between = {n: alpha * TUNED[n].double() + (1 - alpha) * ORIGINAL[n].double() for n in NAMES}
    return logits(pooled(between))


@pytest.mark.parametrize("blend", ["features", "logits", "weights"])
def test_each_blend_is_its_equation(blend: str) -> None:
    method = make_method("safe_ray.methods.tuned", {"blend": blend})
    (fitted,) = method.fit(task(TUNED), [{}])
    for alpha in ALPHAS:
        found = fitted.logits(features(), {"alpha": alpha}).double()
        torch.testing.assert_close(found, by_hand(blend, alpha), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blend", ["features", "logits", "weights"])
def test_a_table_says_what_the_logits_say(blend: str) -> None:
    method = make_method("safe_ray.methods.tuned", {"blend": blend})
    (fitted,) = method.fit(task(TUNED), [{}])
    grid = {"alpha": ALPHAS}
    table = KnobTable.of(fitted.sums(features(), LABELS, grid, {}), grid, {}, Rule())
    before = by_hand(blend, 0.0).argmax(-1) == LABELS
    for alpha, point in zip(ALPHAS, table.figures, strict=True):
        logits = by_hand(blend, alpha)
        right = logits.argmax(-1) == LABELS
        assert point.accuracy == pytest.approx(float(right.double().mean()))
        assert point.nll == pytest.approx(float(functional.cross_entropy(logits, LABELS)), rel=1e-4)
        assert (point.gained, point.lost) == (
            int((right & ~before).sum()),
            int((before & ~right).sum()),
        )


@pytest.mark.parametrize("blend", ["features", "logits", "weights"])
def test_what_is_kept_makes_it_again(blend: str) -> None:
    method = make_method("safe_ray.methods.tuned", {"blend": blend})
    (fitted,) = method.fit(task(TUNED), [{}])
    assert set(fitted.state()) == set(NAMES)
    again = method.load(dict(fitted.state()), task())
    for alpha in ALPHAS:
        at = {"alpha": alpha}
        assert torch.equal(again.logits(features(), at), fitted.logits(features(), at))


def test_alpha_is_solved_among_the_values_that_it_may_take() -> None:
    method = make_method("safe_ray.methods.tuned", {})
    (fitted,) = method.fit(task(TUNED), [{}])

    def evaluate(grid, at):
        return fitted.sums(features(), LABELS, grid, at)

    rule = Rule("accuracy", "nll")
    fixed = solve(evaluate, method.knobs, {"alpha": [1.0]}, rule)
    free = solve(evaluate, method.knobs, {"alpha": ALPHAS}, rule)
    assert fixed.at == {"alpha": 1.0}
    assert free.point.nll <= fixed.point.nll


def test_methods_that_train_the_same_have_one_recipe() -> None:
    safe = make_method("safe_ray.methods.tuned", {})
    blend = make_method("safe_ray.methods.tuned", {"blend": "logits"})
    projection = make_method("safe_ray.methods.tuned", {"parameters": ["c_proj"]})
    assert safe.recipe == blend.recipe == Recipe(("all",))
    assert projection.recipe == Recipe(("c_proj",))


def test_zero_shot_is_the_original_pooling_alone() -> None:
    method = make_method("safe_ray.methods.zero_shot", {})
    assert method.recipe is None
    (fitted,) = method.fit(task(), [{}])
    found = fitted.logits(features(), {}).double()
    torch.testing.assert_close(found, by_hand("features", 0.0), rtol=1e-4, atol=1e-4)
    solution = solve(
        lambda grid, at: fitted.sums(features(), LABELS, grid, at), method.knobs, {}, Rule()
    )
    assert (solution.point.gained, solution.point.lost) == (0, 0)
    assert fitted.state() == {}
