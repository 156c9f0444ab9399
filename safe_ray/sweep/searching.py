"""The search of a sweep, and the winners that it comes to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import optuna

from safe_ray.backbones.openclip import Backbone
from safe_ray.cluster import (
    TrialPlan,
)
from safe_ray.config import SweepConfig
from safe_ray.job import is_submitted
from safe_ray.progress import Reporter
from safe_ray.search.groups import Group
from safe_ray.search.journal import Journal
from safe_ray.search.searcher import BankSearcher, SearchOptions, Study, size_of_first_bank
from safe_ray.search.sizing import BankFootprint, automatic_bank_size
from safe_ray.search.tuning import run_trials
from safe_ray.sweep.claim import Claim
from safe_ray.sweep.plan import decided
from safe_ray.sweep.recorder import Recorder
from safe_ray.sweep.schedule import group_for
from safe_ray.sweep.winners import Decision, decide, discard_damaged, remedied
from safe_ray.training.facts import TaskFacts
from safe_ray.training.job import BankJob
from safe_ray.training.outcome import BankOutcome


def search_winners(
    claim: Claim,
    facts: Mapping[str, TaskFacts],
    groups: Sequence[Group],
    backbone: Backbone,
    plan: TrialPlan,
    recorder: Recorder,
    reporter: Reporter,
) -> Decision:
    """Search, and choose winners whose files are whole: a damaged one's bank is trained again."""
    sweep = str(claim.config.outputs)
    searcher = _search(claim, facts, groups, backbone, plan, recorder, reporter)
    decision = decide(sweep, searcher)
    damaged = discard_damaged(decision)
    if damaged:
        for result, reason in damaged.items():
            label = result.label(len(claim.config.method))
            reporter.say(f"{label}: {reason}; the winner's bank is trained again.")
        searcher = _search(claim, facts, groups, backbone, plan, recorder, reporter)
        decision = decide(sweep, searcher)
        decision = decision.without(discard_damaged(decision))
    for study, failures in searcher.given_up.items():
        if any(choice.id.task_id == study.task_id for choice in decision.choices.values()):
            reporter.say(
                f"{study.task_id}: {len(failures)} of its banks could not be trained "
                f"({remedied(next(iter(failures.values())))})."
            )
    return decision


def _search(
    claim: Claim,
    facts: Mapping[str, TaskFacts],
    groups: Sequence[Group],
    backbone: Backbone,
    plan: TrialPlan,
    recorder: Recorder,
    reporter: Reporter,
) -> BankSearcher:
    config = claim.config
    folder, search = config.outputs, config.search
    studies = [
        Study(task.task.id, group_for(config, task, group))
        for group in groups
        for task in facts.values()
    ]
    spaces = {(study.task_id, study.group.name): study.group.space for study in studies}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = Journal(folder, reporter.say)
    total = sum(group.candidates(search.candidates) for group in groups) * len(facts)
    progress = reporter.phase("searching")
    began = time.monotonic()
    done = found = 0
    trained_here = False
    failed: Counter[str] = Counter()

    def on_bank(bank: BankJob, outcome: BankOutcome) -> None:
        nonlocal done
        if is_submitted() and trained_here:
            reporter.say(
                f"{bank.name}: {len(outcome.candidates)} candidates, {outcome.seconds:.1f} s"
            )
        failed[outcome.task_id] += sum(candidate.failed for candidate in outcome.candidates)
        recorder.bank(bank)
        journal.record(spaces[outcome.task_id, outcome.group], outcome)
        done += len(outcome.candidates)

    def show(unfinished: float) -> None:
        trained = done - found + unfinished
        rest = total - done - unfinished
        # Before a whole candidate is trained, the start of the processes would be extrapolated.
        left = (time.monotonic() - began) / trained * rest if trained >= 1 else None
        progress(int(done + unfinished), total, left)

    searcher = BankSearcher(
        folder,
        studies,
        SearchOptions(
            candidates=search.candidates,
            bank=_bank_size(config, facts, backbone, plan),
            banks_in_flight=search.banks_in_flight,
            seed=search.seed,
            checkpoint_seconds=config.training.checkpoint_seconds,
            before=claim.beginning.candidates[:-1],
            max_failures=config.training.max_failures,
            measured=config.tracking.system,
        ),
        on_bank,
        show,
        reporter.say,
    )
    searcher.on_start = recorder.begin_bank
    found = done
    trained_here = True
    progress(done, total, None)
    run_trials(searcher, plan, config.training.workers, folder)
    if not searcher.complete and searcher.stopped is None:
        # Somebody ended Tune's run with a signal that Tune takes itself.
        raise KeyboardInterrupt
    for task_id in facts:
        if failed[task_id]:
            reporter.say(f"{task_id}: {failed[task_id]} candidates diverged and were left out.")
    return searcher


def _bank_size(
    config: SweepConfig,
    facts: Mapping[str, TaskFacts],
    backbone: Backbone,
    plan: TrialPlan,
) -> int:
    """Return the size of a bank: as asked for, or as the first run of the sweep decided."""
    search = config.search
    if search.bank != "auto":
        return search.bank
    footprint = BankFootprint.of(list(facts.values()), backbone, config.training.batch_size)
    return decided(
        config,
        "bank",
        lambda: (
            size_of_first_bank(config.outputs)
            or automatic_bank_size(search.candidates, footprint, plan.memory)
        ),
    )
