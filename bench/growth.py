"""Time and memory of a search grow at most in proportion to its heads, samples, classes and tasks.

Each point is a process of its own, one thread, at the size of the package's backbone. Training:
seconds of `train_bank` and of the alpha rows, and the memory at its peak above what the process had
before. Tasks: what the driver does of a sweep of that many tasks (suggestions, the outcomes that it
reads, the journal; not MLflow), where each trial leaves a made-up outcome instead of training.

The claim is on the slopes of the log-log fits: at most 1.1.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import optuna
import torch
from torch.nn import functional

from bench.harness import arguments, finish
from safe_ray.heads.blending import alpha_grid, sum_alpha_row
from safe_ray.methods.base import Recipe
from safe_ray.poolings.modified_resnet import AttentionPool
from safe_ray.poolings.pooled import pool_with_heads
from safe_ray.search.groups import Group
from safe_ray.search.journal import Journal
from safe_ray.search.searcher import BankSearcher, SearchOptions, Study
from safe_ray.search.space import SearchSpace
from safe_ray.specs import KnobRow, MethodSpec, Range, Task, Values
from safe_ray.training.job import BankJob
from safe_ray.training.loop import LoopOptions, SupportShard, begin, train_bank
from safe_ray.training.maps import ResidentMaps
from safe_ray.training.members import Member
from safe_ray.training.outcome import BankOutcome, CandidateOutcome, Fit

FIGURE = Path(__file__).parents[1] / "docs" / "growth.png"
_TOKENS, _WIDTH, _HEADS, _OUTPUT, _VIEWS = 16, 512, 8, 192, 9
_ALPHAS = alpha_grid(101)
_SPACE = SearchSpace(
    {
        "lr": Range(1e-5, 1e-2, log=True),
        "weight_decay": Range(1e-4, 1e-1, log=True),
        "epochs": 30,
    },
    {"alpha": _ALPHAS},
)
_SAFE = MethodSpec("safe", "SAFE", "safe_ray.methods.tuned", knobs={"alpha": _ALPHAS})
_GROUP = Group((_SAFE,), Recipe(), _SPACE)
# A slope over a few points says little once a fixed cost is a large part of the smallest.
_SMALLEST = 1e-9


@dataclass(frozen=True)
class Size:
    """What is searched: heads of a bank, support samples, classes; and tasks of a sweep."""

    heads: int = 4
    samples: int = 128
    classes: int = 32
    tasks: int = 1


@dataclass(frozen=True)
class Point:
    """Seconds, and mebibytes at the peak above the process's own."""

    seconds: float
    memory: float


def train(size: Size, epochs: int) -> None:
    """Train and evaluate one bank."""
    torch.manual_seed(0)
    pooling = {
        name: torch.randn(shape) / math.sqrt(shape[-1])
        for name, shape in (
            ("positional_embedding", (_TOKENS + 1, _WIDTH)),
            *((f"{part}_proj.weight", (_WIDTH, _WIDTH)) for part in "qkv"),
            *((f"{part}_proj.bias", (_WIDTH,)) for part in "qkv"),
            ("c_proj.weight", (_OUTPUT, _WIDTH)),
            ("c_proj.bias", (_OUTPUT,)),
        )
    }
    maps = torch.empty(size.samples, _VIEWS, _TOKENS, _WIDTH, dtype=torch.float16).normal_()
    labels = torch.arange(size.samples) % size.classes
    classifier = functional.normalize(torch.randn(size.classes, _OUTPUT), dim=-1)
    resident = ResidentMaps(maps, torch.device("cpu"))
    state = train_bank(
        [Member(1e-4, 0.01, epochs)] * size.heads,
        begin(pooling, size.heads),
        SupportShard(resident, labels, torch.arange(size.samples), size.samples),
        classifier,
        AttentionPool(_HEADS),
        100.0,
        LoopOptions(32, 0.1, 0, tuple(pooling)),
    )
    if any(member.failed or len(member.losses) != epochs for member in state.members):
        raise SystemExit("a head was not trained to its end")
    heads = [member.head for member in state.members]
    form = AttentionPool(_HEADS)
    tuned = pool_with_heads(heads, form, maps[:, 0], classifier.device)
    original = pool_with_heads([pooling], form, maps[:, 0], classifier.device)[0]
    sum_alpha_row(tuned, original, classifier, labels, 100.0, _ALPHAS)


def drive(size: Size, candidates: int, bank: int) -> None:
    """Do what the driver of a sweep of so many tasks does, without the training."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    generator = np.random.default_rng(0)
    # In memory where there is such a folder: the journal waits for the disk at each bank.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        searcher = made_up_search(Path(folder).resolve(), size.tasks, candidates, bank)
        trial = 0
        while not searcher.complete:
            job = BankJob.from_json(searcher.suggest(str(trial))["job"])
            made_up_outcome(job, generator).save(job.folder)
            searcher.on_trial_complete(str(trial))
            trial += 1
    if trial != size.tasks * -(-candidates // bank):
        raise SystemExit("the searcher lost a bank")


def made_up_search(sweep: Path, tasks: int, candidates: int, bank: int) -> BankSearcher:
    """Return the searcher of a sweep of so many tasks, which keeps the sweep's journal."""
    journal = Journal(sweep)

    def on_bank(_: BankJob, outcome: BankOutcome) -> None:
        journal.record(_SPACE, outcome)

    return BankSearcher(
        sweep,
        [Study.of(Task("made_up", 2, seed), _GROUP) for seed in range(1, tasks + 1)],
        SearchOptions(candidates, bank, 1, 0, 60.0),
        on_bank,
    )


def made_up_outcome(job: BankJob, generator: np.random.Generator) -> BankOutcome:
    """Return an outcome such as a bank leaves."""

    def figures() -> tuple[float, ...]:
        return tuple(generator.uniform(size=len(_ALPHAS)).tolist())

    def counts() -> tuple[int, ...]:
        return tuple(generator.integers(57, size=len(_ALPHAS)).tolist())

    def outcome(slot: int, candidate: Values) -> CandidateOutcome:
        row = KnobRow(_ALPHAS, figures(), figures(), figures(), counts(), counts(), figures())
        fit = Fit({"alpha": _ALPHAS[50]}, row.at(50), {"alpha": row}, "none")
        losses = (1.0,) * round(candidate["epochs"])
        return CandidateOutcome(slot, candidate, False, losses, {_SAFE.name: fit})

    candidates = tuple(outcome(*each) for each in enumerate(job.candidates))
    return BankOutcome(job.task_id, job.group, job.bank, 57, 1.0, candidates)


def _measure(work: Callable[[], None], answer: Connection) -> None:
    torch.set_num_threads(1)
    # What torch keeps from its first step on is no part of any point.
    train(Size(heads=1, samples=4, classes=2), epochs=1)
    # Linux starts the peak of a process's memory anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    answer.send((seconds, (kilobytes("VmHWM") - before) / 1024))


def kilobytes(field: str) -> int:
    """Return a figure of this process's memory, by its name in Linux's process table."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure(work: Callable[[], None]) -> Point:
    """Do the work in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(work, sender))
    process.start()
    sender.close()
    try:
        point = Point(*receiver.recv())
    except EOFError:
        raise SystemExit("a point could not be measured") from None
    process.join()
    return point


def best(points: Sequence[Point]) -> Point:
    """Return the least of each: disturbances only ever add."""
    return Point(min(p.seconds for p in points), min(p.memory for p in points))


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of the least-squares line through the logarithms."""
    if len(sizes) < 2:
        return 0.0
    logs = [max(value, _SMALLEST) for value in values]
    return float(np.polyfit(np.log(sizes), np.log(logs), 1)[0])


def draw(series: Mapping[str, Mapping[int, Point]], slopes: Mapping[str, Point]) -> None:
    """Write the figure."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, axes = pyplot.subplots(2, len(series), figsize=(12, 6), layout="constrained")
    rows = (("seconds", "time (s)", "#1f5fa8"), ("memory", "peak memory (MiB)", "#b5521b"))
    for column, (name, points) in enumerate(series.items()):
        sizes = list(points)
        for row, (field, label, colour) in enumerate(rows):
            plot = axes[row][column]
            values = [getattr(point, field) for point in points.values()]
            plot.loglog(sizes, values, "o-", color=colour, linewidth=2)
            line = [values[-1] * size / sizes[-1] for size in sizes]
            plot.loglog(sizes, line, "--", color="#888888", linewidth=1, label="in proportion")
            plot.set_xticks(sizes, [str(size) for size in sizes])
            plot.xaxis.set_minor_formatter(NullFormatter())
            plot.minorticks_off()
            low, high = min(*values, *line), max(*values, *line)
            plot.set_ylim(low / 1.5, high * 1.5)
            ticks = np.geomspace(low, high, 4)
            plot.set_yticks([float(f"{tick:.1g}") for tick in ticks])
            plot.yaxis.set_major_formatter(ScalarFormatter())
            slope_here = round(getattr(slopes[name], field), 2) + 0.0  # not -0.00
            plot.set_title(f"slope {slope_here:.2f}", fontsize=10)
            plot.grid(alpha=0.3)
            plot.spines[["top", "right"]].set_visible(False)
            if column == 0:
                plot.set_ylabel(label)
            if row == 1:
                plot.set_xlabel(name)
    axes[0][0].legend(frameon=False, fontsize=9)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    """Measure every point, fit the slopes, draw them."""
    quick = arguments(str(__doc__)).quick
    base = Size(heads=2, samples=8, classes=4) if quick else Size()
    epochs, repeats, candidates = (1, 1, 2) if quick else (4, 2, 4)
    axes = {
        "heads of a bank (K)": ("heads", (1, 2) if quick else (1, 2, 4, 8, 16)),
        "support samples": ("samples", (8, 16) if quick else (64, 128, 256, 512)),
        "classes": ("classes", (2, 4) if quick else (16, 32, 64, 128)),
        "tasks": ("tasks", (1, 2) if quick else (25, 50, 100, 200)),
    }
    work: dict[tuple[str, int], Callable[[], None]] = {}
    for name, (field, sizes) in axes.items():
        for size in sizes:
            at = replace(base, **{field: size})
            if field == "tasks":
                work[name, size] = lambda at=at: drive(at, candidates, candidates // 2)  # type: ignore[misc]
            else:
                work[name, size] = lambda at=at: train(at, epochs)  # type: ignore[misc]
    measured: dict[tuple[str, int], list[Point]] = {key: [] for key in work}
    for turn in range(repeats):
        for key, do in work.items():
            # The driver's work is seconds long.
            if turn == 0 or key[0] != "tasks":
                measured[key].append(measure(do))
    series = {
        name: {size: best(measured[name, size]) for size in sizes}
        for name, (_, sizes) in axes.items()
    }
    slopes: dict[str, Point] = {}
    for name, points in series.items():
        places = list(points)
        slopes[name] = Point(
            slope(places, [point.seconds for point in points.values()]),
            slope(places, [point.memory for point in points.values()]),
        )
        print(f"{name}: slope of time {slopes[name].seconds:.2f}, memory {slopes[name].memory:.2f}")
        for size, point in points.items():
            print(f"  {size:>5}  {point.seconds:8.3f} s  {point.memory:8.1f} MiB")
    tasks = series["tasks"]
    least, most = min(tasks), max(tasks)
    added = (tasks[most].memory - tasks[least].memory) / (most - least)
    seconds = (tasks[most].seconds - tasks[least].seconds) / (most - least)
    print(
        f"a task of {candidates} candidates takes {1e3 * seconds:.0f} ms of the driver, "
        f"which keeps {1024 * added:.0f} KiB of it"
    )
    if not quick:
        draw(series, slopes)
    finish(
        "growth",
        max(max(point.seconds, point.memory) for point in slopes.values()),
        1.1,
        at_most=True,
        slopes={
            name: {"time": round(point.seconds, 2), "memory": round(point.memory, 2)}
            for name, point in slopes.items()
        },
        driver_kib_a_task=round(1024 * added),
    )


if __name__ == "__main__":
    main()
