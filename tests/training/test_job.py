"""A bank's files: what it leaves, that it does nothing twice, and how it cross-validates."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safe_ray.heads.artifact import load_head
from safe_ray.heads.blending import blend_logits
from safe_ray.poolings.pooled import pool_with_heads
from safe_ray.specs import MethodGroup, MethodSpec, Metric
from safe_ray.training import job as job_module
from safe_ray.training.facts import TaskFacts, load_pooling
from safe_ray.training.job import CHECKPOINT, BankJob, bank_members, run_bank
from safe_ray.training.members import TrainingState
from safe_ray.training.outcome import BankOutcome
from tests.heads.test_bank import NAMES, POOL, classifier
from tests.training.tasks import CANDIDATES, SAFE, device, write_task


def test_a_bank_leaves_heads_and_an_outcome(tmp_path: Path) -> None:
    job = write_task(tmp_path)
    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    assert outcome.samples == 14
    assert [c.values for c in outcome.candidates] == list(CANDIDATES)
    for candidate in outcome.candidates:
        assert len(candidate.losses) == candidate.values["epochs"]
        fit = candidate.fits["safe"]
        assert fit.point.score == max(fit.rows["alpha"].score)
        _, card = load_head(job.folder / str(fit.head))
        assert card["alpha"] == card["knobs"]["alpha"] == fit.at["alpha"]
        assert card["method"]["name"] == "safe"
        assert card["hyper_parameters"] == candidate.values
    zero_shot = {c.fits["safe"].rows["alpha"].accuracy[0] for c in outcome.candidates}
    assert len(zero_shot) == 1  # at alpha = 0 every head is the original pooling
    assert not (job.folder / CHECKPOINT).exists()


def test_the_row_in_the_outcome_is_what_the_stored_head_gives(tmp_path: Path) -> None:
    job = write_task(tmp_path)
    run_bank(job, device())
    facts = TaskFacts.load(job.task_folder)
    maps = torch.from_numpy(facts.store().read(facts.validation, (0,)))[:, 0]
    original = pool_with_heads([load_pooling(Path(job.sweep))], POOL, maps, device())[0]
    labels = torch.tensor(facts.validation_labels)
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    for candidate in outcome.candidates:
        fit = candidate.fits["safe"]
        head, _ = load_head(job.folder / str(fit.head))
        tuned = pool_with_heads([head], POOL, maps, device())[0]
        row = fit.rows["alpha"]
        for alpha, accuracy in zip(row.values, row.accuracy, strict=True):
            logits = blend_logits(tuned, original, classifier(), 20.0, alpha)
            assert (logits.argmax(-1) == labels).float().mean().item() == pytest.approx(accuracy)


@pytest.mark.parametrize("metric", ["accuracy", "mean_per_class"])
def test_the_alpha_is_chosen_by_the_metric_of_the_task(tmp_path: Path, metric: Metric) -> None:
    unequal = (0,) * 9 + (1,) * 3 + (2,) * 2
    job = write_task(tmp_path, metric=metric, validation_labels=unequal)
    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    for candidate in outcome.candidates:
        row, point = candidate.fits["safe"].rows["alpha"], candidate.fits["safe"].point
        assert row.accuracy != row.mean_per_class
        assert getattr(point, metric) == pytest.approx(max(getattr(row, metric)), abs=1e-12)
        assert point.gained - point.lost == round((point.accuracy - row.accuracy[0]) * 14)


def test_training_in_bfloat16_leaves_the_same_heads_but_for_rounding(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        job = write_task(tmp_path / precision, precision=precision)
        run_bank(job, device())
        outcome = BankOutcome.load(job.folder)
        assert outcome is not None
        losses[precision] = [candidate.losses[-1] for candidate in outcome.candidates]
        head, _ = load_head(job.folder / str(outcome.candidates[0].fits["safe"].head))
        assert {tensor.dtype for tensor in head.values()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_a_finished_bank_is_not_trained_again(tmp_path: Path) -> None:
    job = write_task(tmp_path)
    run_bank(job, device())
    before = (job.folder / "outcome.json").stat().st_mtime_ns
    run_bank(job, device())
    assert (job.folder / "outcome.json").stat().st_mtime_ns == before


def test_a_killed_bank_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_task(tmp_path / "whole")
    run_bank(replace(whole, checkpoint_seconds=0.0), device())
    job = replace(write_task(tmp_path / "killed"), checkpoint_seconds=0.0)
    save = job_module.save_state

    def save_then_die(path: Path, state: TrainingState, owner: str) -> None:
        save(path, state, owner)
        if state.epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "save_state", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            run_bank(job, device())
    epochs: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(job_module, "save_state", lambda _, state, __: epochs.append(state.epoch))
        run_bank(job, device())
    assert min(epochs) == 4
    first, second = BankOutcome.load(whole.folder), BankOutcome.load(job.folder)
    assert first is not None
    assert second is not None
    assert first.candidates == second.candidates


def test_a_diverged_candidate_is_failed_and_its_neighbours_are_not(tmp_path: Path) -> None:
    job = write_task(tmp_path)
    wild = {"lr": 1e30, "weight_decay": 0.0, "epochs": 3}
    run_bank(replace(job, candidates=(CANDIDATES[0], wild, CANDIDATES[1])), device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    assert [candidate.failed for candidate in outcome.candidates] == [False, True, False]
    assert outcome.candidates[1].fits == {}
    assert math.isnan(outcome.candidates[1].losses[-1])


def test_cross_validation_scores_each_support_sample_by_a_head_that_never_saw_it(
    tmp_path: Path,
) -> None:
    job = write_task(tmp_path, selection="cross")
    facts = TaskFacts.load(job.task_folder)
    members = bank_members(facts, job.candidates)
    assert len(members) == len(CANDIDATES) * (1 + facts.folds)
    assert all(member.include is None for member in members[: len(CANDIDATES)])
    left_out = [
        [i for i, included in enumerate(member.include or ()) if not included]
        for member in members[len(CANDIDATES) :: len(CANDIDATES)]
    ]
    assert sorted(i for fold in left_out for i in fold) == list(range(len(facts.support)))

    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    assert outcome.samples == len(facts.support)
    # The stored heads have seen all of the support set: the same as without cross-validation.
    plain = write_task(tmp_path / "plain")
    run_bank(plain, device())
    for candidate in outcome.candidates:
        head, _ = load_head(job.folder / str(candidate.fits["safe"].head))
        expected, _ = load_head(plain.folder / str(candidate.fits["safe"].head))
        assert torch.allclose(
            head["c_proj.weight"], expected["c_proj.weight"], rtol=1e-3, atol=1e-5
        )


def test_a_job_survives_the_way_to_a_worker() -> None:
    job = BankJob("/sweep", "task", "safe", 2, CANDIDATES, 5.0)
    assert BankJob.from_json(job.to_json()) == job


def test_every_method_of_a_group_finds_its_own_tensors_again(tmp_path: Path) -> None:
    """States that are made for saving alone must not be taken for each other."""
    adapted, probe = "safe_ray.methods.adapted", "safe_ray.methods.probe"
    safe = {"features": "safe"}
    cache = {"alpha": (0.5,), "beta": (5.5,), "gamma": (1.0,)}
    methods = (
        SAFE,
        MethodSpec("safe_a", "", adapted, safe, cache),
        MethodSpec("safe_gda", "", adapted, {**safe, "adapter": "gda"}, {**cache, "beta": ()}),
        MethodSpec("safe_linear", "", probe, safe, {"alpha": (0.5,), "blend": (0.5,)}),
        MethodSpec("safe_a_f", "", adapted, {**safe, "train": True}, cache),
    )
    methods = tuple(
        replace(each, knobs={knob: values for knob, values in each.knobs.items() if values})
        for each in methods
    )
    own = {"key_lr": 1e-3, "key_epochs": 2, "probe_lr": 1e-2, "probe_epochs": 2}
    job = write_task(tmp_path, groups=(MethodGroup("safe", methods, NAMES),))
    run_bank(replace(job, candidates=tuple({**c, **own} for c in CANDIDATES)), device())
    for slot in range(len(CANDIDATES)):
        kept = {
            method.name: {
                name.removeprefix("adapter.")
                for name in load_head(job.folder / f"candidate-{slot:02d}-{method.name}")[0]
                if name.startswith("adapter.")
            }
            for method in methods
        }
        assert kept == {
            "safe": set(),
            "safe_a": {"original", "tuned", "labels"},
            "safe_gda": {"original", "tuned", "labels"},
            "safe_linear": {"weights"},
            "safe_a_f": {"original", "tuned", "labels", "moved"},
        }
        views = {
            name: load_head(job.folder / f"candidate-{slot:02d}-{name}")[0]["adapter.original"]
            for name in ("safe_a", "safe_gda")
        }
        assert views["safe_a"].shape[1] == 1
        assert views["safe_gda"].shape[1] == 3
