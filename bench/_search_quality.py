"""What the search finds, beside scrambled Sobol points and random ones at equal cost.

Each side suggests the candidates of a task, bank by bank, and every bank is really trained and
judged. What is compared is the best validation score after 16, 32 and 64 candidates. There is no
claim, and `make bench` leaves it out; it trains 64 heads a task and side:

    python -m bench._search_quality
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
import torch
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler

from bench.harness import arguments
from bench.sweeps import ready
from safe_ray.search.choosing import choose
from safe_ray.search.space import SearchSpace, suggest_bank
from safe_ray.specs import MethodSpec
from safe_ray.training.job import BankJob, run_bank
from safe_ray.training.outcome import BankOutcome

_BANK = 4
_STOPS = (16, 32, 64)
_SEEDS = (1, 2)

Next = Callable[[Sequence[BankOutcome]], list[dict[str, float]]]
"""The candidates of the next bank, from the outcomes of those before it."""


def estimator(space: SearchSpace, seed: int) -> Next:
    """Suggest as a sweep does."""
    return lambda finished: suggest_bank(space, finished, [], _BANK, seed)


def sampler(space: SearchSpace, made: BaseSampler) -> Next:
    """Suggest with a sampler that learns nothing."""
    study = optuna.create_study(direction="maximize", sampler=made)
    distributions = space.distributions()
    return lambda _: [space.complete(study.ask(distributions).params) for _ in range(_BANK)]


def sides(space: SearchSpace, seed: int) -> dict[str, Next]:
    """Return what is compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sobol = QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)
    return {
        "estimator": estimator(space, seed),
        "sobol": sampler(space, sobol),
        "random": sampler(space, RandomSampler(seed)),
    }


def best_after(
    folder: Path, task_id: str, group: str, method: MethodSpec, suggest: Next, stops: Sequence[int]
) -> Iterator[float]:
    """Yield the best validation score after so many candidates."""
    finished: list[BankOutcome] = []
    for bank in range(max(stops) // _BANK):
        job = BankJob(str(folder), task_id, group, bank, tuple(suggest(finished)))
        run_bank(job, torch.device("cpu"))
        outcome = BankOutcome.load(job.folder)
        assert outcome is not None
        finished.append(outcome)
        if (bank + 1) * _BANK in stops:
            choice = choose(str(folder), finished, method)
            yield float("nan") if choice is None else choice.fit.point.score


def main() -> None:
    """Train all sides on some tasks, and print what each has after so many candidates."""
    quick = arguments(str(__doc__)).quick
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stops = (2 * _BANK,) if quick else _STOPS
    datasets = "pictogram_foods" if quick else "pictogram_foods,icon_kinds,game_icons"
    torch.set_num_threads(2)
    found: dict[str, list[list[float]]] = {}
    with TemporaryDirectory() as scratch:
        sweep = ready(Path(scratch), f"tasks.datasets=[{datasets}]", "tasks.shots=[2]")
        (group,) = sweep.groups
        for task_id in sweep.facts:
            for seed in _SEEDS[:1] if quick else _SEEDS:
                for side, suggest in sides(group.space, seed).items():
                    folder = Path(scratch) / f"{task_id}-{seed}-{side}"
                    folder.mkdir()
                    for part in ("tasks", "pooling.safetensors"):
                        (folder / part).symlink_to(sweep.config.outputs / part)
                    method = group.methods[0]
                    scores = [*best_after(folder, task_id, group.name, method, suggest, stops)]
                    found.setdefault(side, []).append(scores)
                    shown = ", ".join(f"{score:.4f}" for score in scores)
                    print(f"{task_id}, seed {seed}, {side}: {shown}", flush=True)
    print(f"mean of the best validation score after {', '.join(map(str, stops))} candidates:")
    for side, runs in found.items():
        means = [sum(column) / len(column) for column in zip(*runs, strict=True)]
        print(f"  {side:10} " + "  ".join(f"{mean:.4f}" for mean in means))


if __name__ == "__main__":
    main()
