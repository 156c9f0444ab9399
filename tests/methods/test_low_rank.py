"""SAFE of low rank keeps factors, and its files give what validation said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from safe_ray.compose import load_config
from safe_ray.errors import InputError
from safe_ray.methods.base import how_to_load
from safe_ray.poolings.low_rank import factors_of, weights_of, with_factors
from safe_ray.search.choosing import Winner
from safe_ray.search.groups import groups_of
from safe_ray.specs import BackboneSpec, MethodGroup, MethodSpec, Range
from safe_ray.sweep.testing import run_tests
from safe_ray.training.facts import TaskFacts, load_pooling
from safe_ray.training.job import CHECKPOINT, BankJob, run_bank
from safe_ray.training.outcome import BankOutcome
from tests.heads.test_bank import NAMES
from tests.training.tasks import TASK, device, write_task
from tests.training.test_distributed import run_two

METHOD = MethodSpec(
    "safe_lowrank", "SAFE, low rank", "safe_ray.methods.low_rank", {}, {"alpha": (0.0, 0.5, 1.0)}
)
GROUP = MethodGroup(METHOD.name, (METHOD,), NAMES, low_rank=True)
CANDIDATES = (
    {"lr": 3e-3, "weight_decay": 0.01, "epochs": 6, "rank": 2},
    {"lr": 1e-2, "weight_decay": 0.0, "epochs": 4, "rank": 4},
)


@pytest.mark.parametrize("selection", ["coop", "cross"])
def test_a_bank_of_different_ranks_is_trained_judged_and_kept(
    tmp_path: Path, selection: str
) -> None:
    written = write_task(tmp_path, groups=(GROUP,), selection=selection)
    job = BankJob(written.sweep, written.task_id, METHOD.name, 0, CANDIDATES)
    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    facts = TaskFacts.load(job.task_folder)
    for candidate in outcome.candidates:
        assert candidate.losses[-1] < candidate.losses[0]
        fit = candidate.fits[METHOD.name]
        kept = load_file(job.folder / str(fit.head) / "head.safetensors")
        rank = candidate.values["rank"]
        assert {tensor.shape[1] for name, tensor in kept.items() if name.endswith(".up")} == {rank}
        assert {len(tensor) for name, tensor in kept.items() if name.endswith(".down")} == {rank}
        if selection == "coop":
            winner = Winner(TASK.id, METHOD, job.folder / str(fit.head), fit.at)
            test = run_tests(
                Path(job.sweep), [winner], facts.validation, facts.validation_labels, device(), 9
            )[TASK.id].methods[METHOD.name]
            assert test.accuracy == pytest.approx(fit.point.accuracy)


def test_an_interrupted_bank_goes_on_to_the_same_heads(tmp_path: Path) -> None:
    heads = []
    for place in ("whole", "stopped"):
        written = write_task(tmp_path / place, groups=(GROUP,))
        job = BankJob(written.sweep, written.task_id, METHOD.name, 0, CANDIDATES, 0.0)
        if place == "stopped":

            def stop(share: float) -> None:
                if share > 0.4:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                run_bank(job, device(), on_progress=stop)
        run_bank(job, device())
        heads.append(load_file(job.folder / f"candidate-00-{METHOD.name}" / "head.safetensors"))
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_a_checkpoint_has_the_factors_and_not_the_weights_that_all_heads_share(
    tmp_path: Path,
) -> None:
    written = write_task(tmp_path, groups=(GROUP,), selection="cross")
    job = BankJob(written.sweep, written.task_id, METHOD.name, 0, CANDIDATES, 0.0)

    def stop(share: float) -> None:
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bank(job, device(), on_progress=stop)
    saved = load_file(job.folder / CHECKPOINT)
    assert {name.partition(".")[0] for name in saved} == {str(member) for member in range(2 * 4)}
    assert {name.rpartition(".")[2] for name in saved} == {"up", "down"}


def test_two_workers_train_the_heads_of_one(tmp_path: Path) -> None:
    heads = []
    for place in ("one", "two"):
        written = write_task(tmp_path / place, groups=(GROUP,))
        job = BankJob(written.sweep, written.task_id, METHOD.name, 0, CANDIDATES)
        if place == "one":
            run_bank(job, device())
        else:
            run_two((job, job), tmp_path)
        original = load_pooling(Path(job.sweep))
        kept = load_file(job.folder / f"candidate-01-{METHOD.name}" / "head.safetensors")
        heads.append((original, with_factors(original, kept)))
    for name in weights_of(NAMES, heads[0][0]):
        (original, one), (_, two) = heads
        moved = (one[name] - original[name]).norm()
        assert (two[name] - one[name]).norm() < 0.02 * moved, name


def test_training_in_bfloat16_loses_little(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        written = write_task(tmp_path / precision, groups=(GROUP,), precision=precision)
        job = BankJob(written.sweep, written.task_id, METHOD.name, 0, CANDIDATES)
        run_bank(job, device())
        outcome = BankOutcome.load(job.folder)
        assert outcome is not None
        losses[precision] = [candidate.losses[-1] for candidate in outcome.candidates]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_the_rank_is_searched_among_integers() -> None:
    (group,) = groups_of(load_config(["method=safe_lowrank"]))
    assert group.space.quantities["rank"] == Range(4, 16, log=True, integer=True)
    assert group.recipe is not None
    assert group.recipe.low_rank


def test_what_holds_a_head_near_the_start_is_refused() -> None:
    with pytest.raises(InputError, match=r"low rank, which decay_to_start cannot hold"):
        groups_of(load_config(["method=safe_lowrank", "search.decay_to_start=1.0"]))


def test_the_cards_lines_load_it_into_plain_open_clip(
    tmp_path: Path, tiny_backbone: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_clip.add_model_config(Path(str(tiny_backbone.model_config)))
    torch.manual_seed(3)
    model = open_clip.create_model(tiny_backbone.model).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    original = model.visual.attnpool.state_dict()
    names = weights_of(list(original), original)
    tuned = {
        name: tensor + 0.1 * torch.randn(len(tensor), 2) @ torch.randn(2, tensor.shape[1])
        for name, tensor in original.items()
        if name in names
    }
    save_file(factors_of(tuned, original, names, 2), tmp_path / "head.safetensors")
    named = {"model": tiny_backbone.model, "pretrained": str(tmp_path / "model.safetensors")}
    card = {"alpha": 0.4, "logit_scale": 100.0, "backbone": named}
    (tmp_path / "head.json").write_text(json.dumps(card))
    images = torch.rand(5, 3, 64, 64)
    classifier = torch.nn.functional.normalize(torch.randn(2, model.visual.output_dim), dim=-1)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"images": images, "classifier": classifier}
    with torch.no_grad():
        exec("\n".join(how_to_load("safe_ray.methods.low_rank", {})), found)
        before = model.encode_image(images)
        model.visual.attnpool.load_state_dict({**original, **tuned})
        blended = 0.4 * model.encode_image(images) + 0.6 * before
    expected = 100 * torch.nn.functional.normalize(blended, dim=-1) @ classifier.T
    torch.testing.assert_close(found["logits"], expected, rtol=1e-3, atol=1e-3)
