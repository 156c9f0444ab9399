"""Methods that train the same share a bank; a file that does not fit its method is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_ray.compose import ConfigTree, load_config
from safe_ray.errors import InputError
from safe_ray.heads.blending import alpha_grid
from safe_ray.methods.base import Recipe
from safe_ray.search.groups import described, groups_of
from safe_ray.specs import Range
from tests.heads.test_bank import NAMES, POOL

METHODS = ConfigTree.of().choices("method")


def names(*overrides: str) -> list[list[str]]:
    groups = groups_of(load_config(overrides))
    return [[method.name for method in group.methods] for group in groups]


@pytest.mark.parametrize("name", METHODS)
def test_every_file_of_the_package_makes_a_method(name: str) -> None:
    (group,) = groups_of(load_config([f"method={name}"]))
    (spec,) = group.methods
    assert spec.title != name or name == "gda"
    assert group.name == name


def test_methods_with_one_recipe_and_one_space_share_a_bank() -> None:
    assert names("method=[safe,tip_adapter,safe_a,tuned_pooling,zero_shot,gda,prolip]") == [
        ["safe", "safe_a", "tuned_pooling"],
        ["tip_adapter", "zero_shot", "gda"],
        ["prolip"],
    ]


def test_numbers_that_mean_nothing_to_the_others_keep_no_method_apart() -> None:
    assert names("method=[safe,safe_a_f,safe_linear]") == [["safe", "safe_a_f", "safe_linear"]]
    (group,) = groups_of(load_config(["method=[safe,safe_a_f]"]))
    assert group.space.quantities["key_lr"] == 1e-3
    searched = "method.safe_a_f.space.key_lr={low: 0.001, high: 0.1, log: true}"
    assert names("method=[safe,safe_a_f]", searched) == [["safe"], ["safe_a_f"]]
    assert names("method=[tip_adapter_f,gda]") == [["tip_adapter_f"], ["gda"]]


def test_a_method_with_a_range_of_its_own_trains_its_own() -> None:
    assert names("method=[safe,tuned_pooling]", "method.tuned_pooling.space.lr=0.001") == [
        ["safe"],
        ["tuned_pooling"],
    ]


def test_a_group_without_anything_to_search_has_one_candidate() -> None:
    safe, zero_shot = groups_of(load_config(["method=[safe,zero_shot]"]))
    assert (safe.candidates(16), zero_shot.candidates(16)) == (16, 1)


def test_quantities_come_from_the_search_and_knobs_from_the_file() -> None:
    (group,) = groups_of(load_config(["method=safe_a", "search.alpha_points=5", "search.lr=0.01"]))
    assert group.space.quantities["lr"] == 0.01
    assert group.space.quantities["epochs"] == Range(10, 50, log=True, integer=True)
    assert group.methods[0].knobs == {"alpha": alpha_grid(5), "beta": (5.5,), "gamma": (1.0,)}


def test_alphas_lie_in_the_range_that_is_asked_for() -> None:
    bounds = ["search.alpha={low: 0.3, high: 0.6}", "search.alpha_points=11"]
    (group,) = groups_of(load_config(bounds))
    assert group.methods[0].knobs["alpha"] == pytest.approx((0.3, 0.4, 0.5, 0.6))
    (fixed,) = groups_of(load_config(["search.alpha=0.55"]))
    assert fixed.methods[0].knobs == {"alpha": (0.55,)}


def test_the_parts_that_are_trained_are_the_methods_or_those_of_the_training() -> None:
    (safe,) = groups_of(load_config(["training.parameters=[v_proj,c_proj]"]))
    assert safe.recipe == Recipe(("v_proj", "c_proj"))
    assert described(safe, POOL, NAMES).trained == tuple(
        name for name in NAMES if name.split(".")[0] in ("v_proj", "c_proj")
    )
    (prolip,) = groups_of(load_config(["method=prolip"]))
    assert {name.split(".")[0] for name in described(prolip, POOL, NAMES).trained} == {"c_proj"}
    (gda,) = groups_of(load_config(["method=gda"]))
    assert described(gda, POOL, NAMES).trained == ()


def test_one_over_the_shots_becomes_a_number_when_these_are_known() -> None:
    (prolip,) = groups_of(load_config(["method=prolip"]))
    assert prolip.space.quantities["distance_penalty"] == "1/shots"
    assert prolip.space.for_shots(4).quantities["distance_penalty"] == 0.25


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("module: no.such.module", "cannot be imported"),
        ("module: safe_ray.errors", "makes no method"),
        ("{module: safe_ray.methods.tuned, options: {blend: paint}}", "blend is 'paint'"),
        ("{module: safe_ray.methods.tuned, options: {blent: 1}}", "refuses its options"),
        (
            "{module: safe_ray.methods.tuned, knobs: {alpha: 1.0}, space: {lrr: 1.0}}",
            "has space.lrr, which it does not know. Did you mean 'lr'",
        ),
        (
            "{module: safe_ray.methods.tuned, knobs: {alpa: 1.0}}",
            "has knobs.alpa, which it does not know. Did you mean 'alpha'",
        ),
        ("module: safe_ray.methods.tuned", "lacks knobs.alpha"),
        (
            "{module: safe_ray.methods.adapted, options: {train: true}, "
            "knobs: {beta: 1.0, gamma: 1.0}, space: {lr: 0.1}}",
            "lacks space.epochs",
        ),
        ("{modul: safe_ray.methods.tuned}", "no setting 'modul'"),
        ("{module: safe_ray.methods.tuned, knobs: {alpha: []}}", "knobs"),
        ("{module: safe_ray.methods.tuned, space: {lr: {low: 2, high: 1}}}", "low must be below"),
    ],
)
def test_a_file_that_is_no_methods_is_refused_in_a_sentence(
    tmp_path: Path, content: str, sentence: str
) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(content + "\n")
    with pytest.raises(InputError, match=r"(?i)method") as refusal:
        groups_of(load_config(["method=mine"], tmp_path))
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method=saf"], "no file method/saf.yaml"),
        (["method=[safe,safe]"], "names 'safe' twice"),
        (["method=[]"], "method"),
        (["method.safe=3"], "is no setting of a method"),
        (["method.safe_a.knobs.beta=1.0"], "not asked for"),
        (["method"], "is no setting of a method"),
        (["method=[safe"], "cannot be read"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_said(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=r".") as refusal:
        load_config(overrides)
    assert sentence in str(refusal.value)
