"""`search.refit`: a winner is trained once more, on support and validation images together.

The candidate's values and the knobs stay as the search has chosen them; what validation said stays
what the summary says. The refitted head is a task of its own, with a bank of one candidate: so it
is trained, resumed and checked as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from safe_ray.cluster import TrialPlan
from safe_ray.config import SweepConfig
from safe_ray.errors import InputError
from safe_ray.heads.artifact import load_head
from safe_ray.methods.base import make_method
from safe_ray.progress import Reporter
from safe_ray.search.choosing import Choice, ResultId, choose
from safe_ray.search.groups import Group
from safe_ray.search.searcher import BankSearcher, SearchOptions, Study
from safe_ray.search.space import SearchSpace
from safe_ray.search.tuning import run_trials
from safe_ray.specs import MethodGroup, MethodSpec
from safe_ray.sweep.winners import Decision
from safe_ray.training.facts import TaskFacts, load_classifier
from safe_ray.training.job import BankJob
from safe_ray.training.outcome import OUTCOME, BankOutcome


@dataclass(frozen=True)
class Refit:
    """One winner that is to be trained again.

    Attributes:
        choice: the winner.
        facts: its task, whose support set has the validation samples, too.
        study: a bank of one candidate, for one method with its knobs fixed.
    """

    choice: Choice
    facts: TaskFacts
    study: Study

    def job(self, sweep: str) -> BankJob:
        """Return the bank."""
        return BankJob(sweep, self.study.task_id, self.study.group.name, 0, ())


def refit_winners(
    config: SweepConfig,
    facts: Mapping[str, TaskFacts],
    decision: Decision,
    plan: TrialPlan,
    reporter: Reporter,
) -> Decision:
    """Train the winners again, and return the decision with the heads that come of it.

    A winner whose refit diverges, or cannot be trained, stays as it was, and that is said.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    sweep = str(config.outputs)
    refits = [
        refit_of(choice, facts[result.task_id])
        for result, choice in decision.choices.items()
        if is_refitted(choice, facts[result.task_id])
    ]
    if not refits:
        return decision
    for refit in refits:
        task_folder = config.outputs / "tasks" / refit.choice.id.task_id
        refit.facts.save(refit.job(sweep).task_folder, load_classifier(task_folder))
        _discard_if_damaged(refit.job(sweep), refit.choice.winner.method)
    progress = reporter.phase("training winners again")
    done = 0

    def on_bank(job: BankJob, outcome: BankOutcome) -> None:
        nonlocal done
        done += 1
        progress(done, len(refits), None)

    training = config.training
    searcher = BankSearcher(
        config.outputs,
        [refit.study for refit in refits],
        SearchOptions(
            candidates=1,
            bank=1,
            banks_in_flight=1,
            seed=config.search.seed,
            checkpoint_seconds=training.checkpoint_seconds,
            max_failures=training.max_failures,
        ),
        on_bank,
        say=reporter.say,
    )
    run_trials(searcher, plan, training.workers, config.outputs)
    if not searcher.complete and searcher.stopped is None:
        raise KeyboardInterrupt
    found = dict(_refitted(sweep, refits))
    for refit in refits:
        if refit.choice.id not in found:
            label = refit.choice.id.label(len(config.method))
            reporter.say(f"{label}: the winner could not be trained again, and stays as it was.")
    return replace(decision, choices={**decision.choices, **found})


def is_refitted(choice: Choice, facts: TaskFacts) -> bool:
    """Whether there is anything to fit, and validation samples that it has not been fitted to."""
    fitted = choice.winner.folder is not None and not choice.gave_way
    return fitted and facts.selection != "cross"


def refit_of(choice: Choice, facts: TaskFacts) -> Refit:
    """Return what is trained for a winner."""
    method = choice.winner.method
    fixed = replace(method, knobs={knob: (value,) for knob, value in choice.fit.at.items()})
    of_winner = next(group for group in facts.groups if method in group.methods)
    name = f"{choice.id.task_id}-{method.name}-refit"
    more = replace(
        facts,
        support=(*facts.support, *facts.validation),
        support_labels=(*facts.support_labels, *facts.validation_labels),
        groups=(MethodGroup(method.name, (fixed,), of_winner.trained),),
        card={**facts.card, "refit": True},
    )
    space = SearchSpace(dict(choice.candidate.values), fixed.knobs, method.name)
    recipe = make_method(method.module, method.options).recipe
    return Refit(choice, more, Study(name, Group((fixed,), recipe, space)))


def _refitted(sweep: str, refits: Sequence[Refit]) -> Iterator[tuple[ResultId, Choice]]:
    """Yield the winners with the folders of the heads that were trained again."""
    for refit in refits:
        outcome = BankOutcome.load(refit.job(sweep).folder)
        again = None if outcome is None else choose(sweep, [outcome], refit.choice.winner.method)
        if again is not None:
            winner = replace(refit.choice.winner, folder=again.winner.folder)
            yield refit.choice.id, replace(refit.choice, winner=winner)


def _discard_if_damaged(job: BankJob, method: MethodSpec) -> None:
    """Remove the outcome of a bank whose head is damaged, so that it is trained again."""
    outcome = BankOutcome.load(job.folder)
    choice = None if outcome is None else choose(job.sweep, [outcome], method)
    if choice is None or choice.winner.folder is None:
        return
    try:
        load_head(choice.winner.folder)
    except InputError:
        (job.folder / OUTCOME).unlink(missing_ok=True)
