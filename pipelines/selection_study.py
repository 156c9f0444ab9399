"""`python -m pipelines.selection_study`: which rule chooses best, decided on half of the data sets.

The sweeps of a suite have trained and judged their candidates. Each rule of `search.choose_by` is
asked again which candidate and which alpha it would have taken, from the validation figures on
disk, and what it takes is tested. One half of the data sets says which rule is best; the other
half, which had no say, says by how much. No test image has a say in any sweep; here they judge
rules, which is why the halves are fixed beforehand: data sets in alphabetical order, in turns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safe_ray.arguments import CONFIG_DIR, HELP, Arguments, answer, help_lines, parse
from safe_ray.errors import InputError

if TYPE_CHECKING:
    from safe_ray.config import SweepConfig
    from safe_ray.heads.selection import ChooseBy
    from safe_ray.specs import Task
    from safe_ray.training.facts import TaskFacts
    from safe_ray.training.outcome import CandidateOutcome

METHOD = "safe"
RULES: tuple[ChooseBy, ...] = ("metric", "nll", "nll_prior", "metric_nll_prior")
OPTIONS = (CONFIG_DIR, HELP)
USAGE = """usage: python -m pipelines.selection_study suite=NAME [sweep=NAME] [group.knob=value]

Compare the rules of search.choose_by on the candidates that `python -m pipelines.benchmark` of the
same suite, name and settings has trained; nothing is trained here.

options:"""


@dataclass(frozen=True)
class Chosen:
    """What a rule takes in one task.

    Attributes:
        task: data set, shots and seed.
        rule: see `safe_ray.heads.selection.Rule`.
        alpha: the chosen one.
        accuracy: on the test images, 0 to 1.
    """

    task: Task
    rule: str
    alpha: float
    accuracy: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: _study(parse(arguments, OPTIONS)))


def _study(given: Arguments) -> int:
    if HELP.name in given.flags:
        print("\n".join([USAGE, *help_lines(OPTIONS)]))
        return 0
    from pipelines.suites import load_suite, plan, split_suite

    name, overrides = split_suite(given.rest)
    if name is None:
        raise InputError("Which suite was run? Write suite=NAME, such as suite=embedded.")
    config_dir = given.value(CONFIG_DIR.name)
    planned = plan(load_suite(name, config_dir), overrides, config_dir)
    chosen = [one for sweep in planned.sweeps for one in choices(sweep)]
    print("\n".join(report(chosen)))
    return 0


def choices(config: SweepConfig) -> Iterator[Chosen]:
    """Yield what every rule takes in every task of a sweep that has ended.

    Raises:
        InputError: a task of the sweep has not been searched.
    """
    from safe_ray.features.inventory import no_progress, take_inventory
    from safe_ray.sweep.data import read_manifests
    from safe_ray.training.facts import TaskFacts

    cache = config.features.store / "inventory.arrow"
    tests = {
        name: take_inventory(manifest.split("test"), cache, skip_bad=True, progress=no_progress)
        for name, manifest in read_manifests(config).items()
    }
    for task in config.tasks.tasks():
        folder = config.outputs / "tasks" / task.id
        if not folder.exists():
            raise InputError(f"{folder} is missing: run pipelines.benchmark of the suite first.")
        inventory = tests[task.dataset]
        labels = inventory.table.column("label").to_pylist()
        yield from _of_task(config, TaskFacts.load(folder), inventory.samples, labels)


def _of_task(
    config: SweepConfig, facts: TaskFacts, samples: Sequence[str], labels: Sequence[int]
) -> Iterator[Chosen]:
    import torch

    from safe_ray.heads.artifact import load_head
    from safe_ray.heads.blending import sum_alpha_row
    from safe_ray.heads.selection import Rule
    from safe_ray.poolings.pooled import pool_with_heads
    from safe_ray.training.facts import load_classifier, load_pooling

    found = list(_candidates(config.outputs / "banks" / facts.task.id / METHOD))
    heads = [load_head(folder)[0] for folder, _ in found]
    maps = torch.from_numpy(facts.store().read(samples, (0,)))[:, 0]
    classifier = load_classifier(config.outputs / "tasks" / facts.task.id)
    device, pooling = classifier.device, facts.pool()
    alphas = found[0][1].fits[METHOD].rows["alpha"].values
    sums = sum_alpha_row(
        pool_with_heads(heads, pooling, maps, device),
        pool_with_heads([load_pooling(config.outputs)], pooling, maps, device)[0],
        classifier,
        torch.tensor(labels),
        facts.logit_scale,
        alphas,
    )
    count = facts.validation_count
    for name in RULES:
        rule = Rule(facts.metric, name)
        scores = {
            (slot, at): rule.score(value, nll, count, count, {"alpha": alpha})
            for slot, (_, candidate) in enumerate(found)
            for row in [candidate.fits[METHOD].rows["alpha"]]
            for at, (alpha, value, nll) in enumerate(
                zip(alphas, row.accuracy, row.nll, strict=True)
            )
        }
        slot, at = max(scores, key=lambda key: (scores[key], -key[0], -key[1]))
        right = float(sums[slot].class_correct[at].sum()) / len(labels)
        yield Chosen(facts.task, name, alphas[at], right)


def _candidates(study: Path) -> Iterator[tuple[Path, CandidateOutcome]]:
    """Yield the candidates that have a head, with its folder."""
    from safe_ray.training.outcome import BankOutcome

    for bank in sorted(study.glob("bank-*")):
        outcome = BankOutcome.load(bank)
        for candidate in outcome.candidates if outcome else ():
            fit = candidate.fits.get(METHOD)
            if fit is not None and fit.head is not None:
                yield bank / fit.head, candidate


def report(chosen: Sequence[Chosen]) -> list[str]:
    """Return the lines of the report, as Markdown: the differences by halves, and the means."""
    from pipelines.halves import members, table

    results: dict[str, dict[tuple[str, int, int], float]] = {
        rule: {
            (one.task.dataset, one.task.shots, one.task.seed): one.accuracy
            for one in chosen
            if one.rule == rule
        }
        for rule in RULES
    }
    shots = sorted({one.task.shots for one in chosen})
    lines = [*members(one.task.dataset for one in chosen), "", *table(results, "rule")]
    lines += [
        "",
        "| rule | mean alpha | " + " | ".join(map(str, shots)) + " |",
        "|:--" + "|--:" * (1 + len(shots)) + "|",
    ]
    for rule in RULES:
        own = [one for one in chosen if one.rule == rule]
        means = [
            _mean([100 * one.accuracy for one in own if one.task.shots == count]) for count in shots
        ]
        alpha = _mean([one.alpha for one in own])
        lines.append(f"| `{rule}` | {alpha:.2f} | " + " | ".join(f"{m:.1f}" for m in means) + " |")
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())
