"""A refit trains the winner on support and validation samples, and changes nothing else of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safe_ray.heads.artifact import load_head
from safe_ray.search.choosing import Choice, choose
from safe_ray.specs import MethodGroup, MethodSpec
from safe_ray.sweep.refitting import is_refitted, refit_of
from safe_ray.training.facts import TaskFacts, load_classifier
from safe_ray.training.job import BankJob, run_bank
from safe_ray.training.outcome import BankOutcome
from tests.heads.test_bank import NAMES
from tests.training.tasks import SAFE, VIEWS, device, write_task

ZERO_SHOT = MethodSpec("zero_shot", "zero-shot", "safe_ray.methods.zero_shot")


def winner(job: BankJob, method: MethodSpec = SAFE) -> Choice:
    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    choice = choose(job.sweep, [outcome], method)
    assert choice is not None
    return choice


@pytest.fixture
def job(tmp_path: Path) -> BankJob:
    """A task whose validation samples have all views, as `search.refit` extracts them."""
    job = write_task(tmp_path)
    facts = TaskFacts.load(job.task_folder)
    maps = torch.randn(len(facts.validation) * VIEWS, facts.tokens, facts.width).half().numpy()
    keys = [(sample, view) for sample in facts.validation for view in range(1, VIEWS + 1)]
    facts.store().write_part([s for s, _ in keys], [view for _, view in keys], maps)
    return job


def test_the_winners_values_and_knobs_stay_and_its_images_are_more(job: BankJob) -> None:
    choice = winner(job)
    facts = TaskFacts.load(job.task_folder)
    refit = refit_of(choice, facts)
    assert refit.facts.support == (*facts.support, *facts.validation)
    assert len(refit.facts.support_labels) == len(refit.facts.support)
    (group,) = refit.facts.groups
    assert group.trained == NAMES
    assert group.methods[0].knobs == {"alpha": (choice.fit.at["alpha"],)}
    assert refit.study.group.space.complete({}) == choice.candidate.values

    again = replace(refit.job(job.sweep), candidates=(dict(choice.candidate.values),))
    refit.facts.save(again.task_folder, load_classifier(job.task_folder))
    refitted = winner(again)
    assert refitted.fit.at == choice.fit.at
    assert refitted.winner.folder is not None
    assert choice.winner.folder is not None
    head, card = load_head(refitted.winner.folder)
    before, _ = load_head(choice.winner.folder)
    assert not torch.equal(head["v_proj.weight"], before["v_proj.weight"])
    assert card["refit"] is True
    assert set(card["metrics"]) == {"train_loss"}


def test_what_has_nothing_to_fit_or_nothing_more_to_see_is_left_alone(job: BankJob) -> None:
    facts = TaskFacts.load(job.task_folder)
    choice = winner(job)
    assert is_refitted(choice, facts)
    assert not is_refitted(choice, replace(facts, selection="cross"))
    groups = (MethodGroup("zero_shot", (ZERO_SHOT,)),)
    replace(facts, groups=groups).save(job.task_folder, load_classifier(job.task_folder))
    untouched = winner(replace(job, group="zero_shot", candidates=({},)), ZERO_SHOT)
    assert not is_refitted(untouched, facts)
