"""One bank of one task, from the files that describe it to the files that hold its result.

Everything a worker needs is on the sweep's storage: the task's folder (written once by the driver)
and the feature store. Everything it leaves is in the bank's folder, so that a worker, a trial or
the driver may die at any point and the next one goes on from the last checkpoint:

    tasks/<task>/task.json, classifier.safetensors             what the driver wrote
    banks/<task>/<group>/<bank>/checkpoint.safetensors         while it trains
    banks/<task>/<group>/<bank>/diary.json                     how far it has come
    banks/<task>/<group>/<bank>/candidate-<slot>-<method>/     what each fitted method keeps
    banks/<task>/<group>/<bank>/outcome.json                   last, when all else is in place

A group is the methods that are fitted to the same candidates (`safe_ray.specs.MethodGroup`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safe_ray.files import digest_json
from safe_ray.heads.artifact import save_head
from safe_ray.methods.base import how_to_load
from safe_ray.poolings import queries
from safe_ray.poolings.base import Pooling
from safe_ray.poolings.low_rank import LowRank, beginning, weights_of, with_factors
from safe_ray.specs import MethodGroup, MethodSpec, Values
from safe_ray.training.checkpoint import goes_on, load_state, save_state
from safe_ray.training.diary import DIARY, Keeper
from safe_ray.training.facts import TaskFacts, load_classifier, load_pooling
from safe_ray.training.folds import fold_of
from safe_ray.training.judging import Judged, judge_candidates
from safe_ray.training.loop import (
    Found,
    LoopOptions,
    Parallel,
    SingleProcess,
    SupportShard,
    begin,
    train_bank,
)
from safe_ray.training.maps import MapSource, resident_maps
from safe_ray.training.members import QUANTITIES, Member, MemberState, TrainingState
from safe_ray.training.outcome import OUTCOME, BankOutcome, CandidateOutcome, Fit
from safe_ray.training.streaming import StreamedMaps
from safe_ray.usage import Sampler, probe_of_machine

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class BankJob:
    """The candidates of one bank, and where the sweep is.

    Attributes:
        sweep: the sweep's folder, seen by all nodes.
        task_id: the task's id, which names its folders.
        group: the name of the methods' group.
        bank: 0 for the group's first bank.
        candidates: what the heads are trained with, or what methods without heads are fitted with.
        checkpoint_seconds: the least time between two checkpoints.
        measured: whether the load of the machine is sampled meanwhile.
    """

    sweep: str
    task_id: str
    group: str
    bank: int
    candidates: tuple[Values, ...]
    checkpoint_seconds: float = 60.0
    measured: bool = False

    @property
    def task_folder(self) -> Path:
        """Where the driver wrote the task."""
        return Path(self.sweep) / "tasks" / self.task_id

    @property
    def folder(self) -> Path:
        """Where the bank's checkpoint, heads and outcome go."""
        return Path(self.sweep) / "banks" / self.task_id / self.group / f"bank-{self.bank:03d}"

    @property
    def name(self) -> str:
        """What it is called among the sweep's banks."""
        return f"{self.task_id}-{self.group}-bank-{self.bank:03d}"

    @property
    def digest(self) -> str:
        """Tells one set of candidates from another: a checkpoint goes on only with its own."""
        candidates = [dict(values) for values in self.candidates]
        return digest_json([self.task_id, self.group, self.bank, candidates])

    def to_json(self) -> dict[str, Any]:
        """Return the job as plain values, for a trial's config."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> BankJob:
        """Read what `to_json` returned."""
        return BankJob(**{**value, "candidates": tuple(value["candidates"])})


def bank_members(facts: TaskFacts, candidates: Sequence[Values]) -> list[Member]:
    """Return the members to train: one a candidate, and in cross-validation one more a fold.

    The first `len(candidates)` members see the whole support set. In cross-validation they are
    followed, fold by fold, by members that leave that fold out.
    """

    def members(include: tuple[bool, ...] | None) -> list[Member]:
        # Methods of the group may have quantities that the training of a pooling knows nothing of.
        trained = [{n: v for n, v in values.items() if n in QUANTITIES} for values in candidates]
        return [Member.of(values, include) for values in trained]

    result = members(None)
    if facts.selection == "cross":
        folds = fold_of(facts.support_labels, facts.support, facts.folds)
        for fold in range(facts.folds):
            result += members(tuple(place != fold for place in folds))
    return result


def run_bank(
    job: BankJob,
    device: torch.device,
    shard: SupportShard | None = None,
    parallel: Parallel | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> None:
    """Train a bank, fit and judge the group's methods, and leave all of it in the bank's folder.

    Args:
        job: which bank.
        device: where to train.
        shard: this worker's part of the support set; None reads all of it from the store.
        parallel: how to run on several workers; None for one process.
        on_progress: called after each epoch with the share of the epochs that is done.

    Does nothing if the bank is already finished. Goes on from the bank's last checkpoint.

    Raises:
        RuntimeError: the workers were not given the same bank of the same task.
    """
    parallel = parallel or SingleProcess()
    began = time.monotonic()
    facts = TaskFacts.load(job.task_folder)
    group = facts.group(job.group)
    checkpoint = job.folder / CHECKPOINT

    def find() -> Found:
        if (job.folder / OUTCOME).exists():
            return Found(True, None)
        return Found(False, load_state(checkpoint, job.digest) if group.trained else None)

    # Storage may show one worker what another does not see yet.
    found = parallel.share(find, digest_json([job.digest, asdict(facts)]))
    if found.finished:
        return
    if not parallel.is_first:
        _train(job, facts, group, device, found.state, shard, parallel, on_progress)
        return
    keeper = Keeper.open(job.folder, job.digest)
    with Sampler(probe=probe_of_machine() if job.measured else None) as sampler:
        keeper.measure(sampler)
        outcomes = _trained_and_judged(
            job, facts, group, device, found.state, shard, parallel, on_progress, keeper
        )
        seconds = time.monotonic() - began
        BankOutcome(
            job.task_id,
            job.group,
            job.bank,
            facts.validation_count,
            seconds,
            tuple(outcomes),
            keeper.began,
            round(time.time(), 3),
            tuple(keeper.epochs),
            keeper.usage(),
        ).save(job.folder)
    checkpoint.unlink(missing_ok=True)
    (job.folder / DIARY).unlink(missing_ok=True)


def _trained_and_judged(
    job: BankJob,
    facts: TaskFacts,
    group: MethodGroup,
    device: torch.device,
    found: TrainingState | None,
    shard: SupportShard | None,
    parallel: Parallel,
    on_progress: Callable[[float], None] | None,
    keeper: Keeper,
) -> list[CandidateOutcome]:
    """Train a bank on its first worker, and return what became of its candidates."""
    keeper.write([])
    state = _train(job, facts, group, device, found, shard, parallel, on_progress, keeper)
    original = load_pooling(Path(job.sweep))
    pooling = facts.pool()
    heads = [queries.ended(pooling, original, member.head) for member in state.members]
    judged = judge_candidates(
        facts,
        group,
        job.candidates,
        [with_factors(original, head) for head in heads] if group.low_rank else heads,
        original,
        load_classifier(job.task_folder).to(device),
    )
    count = len(job.candidates)
    outcomes = []
    for slot, (values, methods) in enumerate(zip(job.candidates, judged, strict=True)):
        members = state.members[slot::count]
        losses = tuple(members[0].losses) if members else ()
        failed = any(member.failed for member in members)
        fits = {} if failed else _save(job, facts, slot, losses, methods, group.methods)
        outcomes.append(CandidateOutcome(slot, values, failed or not fits, losses, fits))
    return outcomes


def _train(
    job: BankJob,
    facts: TaskFacts,
    group: MethodGroup,
    device: torch.device,
    found: TrainingState | None,
    shard: SupportShard | None,
    parallel: Parallel,
    on_progress: Callable[[float], None] | None,
    keeper: Keeper | None = None,
) -> TrainingState:
    """Train the bank's heads, from what an earlier attempt has left.

    Nothing is trained for methods that tune no pooling.
    """
    if not group.trained:
        return TrainingState(0, [])
    original = load_pooling(Path(job.sweep))
    members = bank_members(facts, job.candidates)
    pooling: Pooling = facts.pool()
    trained = group.trained
    first, shared = queries.beginning(pooling, original, trained)
    start = begin(first, len(members))
    if group.low_rank:
        names = weights_of(trained, original)
        ranks = [round(values["rank"]) for values in job.candidates]
        states = beginning(original, names, ranks, facts.training_seed)
        # The members of a candidate begin alike, whichever fold they leave out.
        copies = len(members) // len(states)
        start = TrainingState(0, [MemberState(state) for state in states * copies])
        pooling = LowRank(pooling, names)
        trained, shared = pooling.trained, original
    longest = max(member.epochs for member in members)
    moving = [name for name in trained if name not in pooling.inert]
    if found is not None and not goes_on(found, start, moving):
        found = None

    count = len(job.candidates)
    if keeper is not None:
        keeper.begin((found or start).epoch)

    def tell(epoch: int) -> None:
        if keeper is not None:
            keeper.end_epoch()
        if on_progress is not None:
            on_progress(epoch / longest)

    def keep(state: TrainingState) -> None:
        save_state(job.folder / CHECKPOINT, state, job.digest)
        if keeper is not None:
            keeper.write([member.losses for member in state.members[:count]])

    return train_bank(
        members,
        found or start,
        shard or support_shard(job.task_folder, facts, device),
        load_classifier(job.task_folder).to(device),
        pooling,
        facts.logit_scale,
        LoopOptions(
            facts.batch_size,
            facts.warmup,
            facts.training_seed,
            trained,
            torch.bfloat16 if facts.precision == "bf16" else None,
            facts.compiled,
            shared,
        ),
        parallel,
        on_checkpoint=keep,
        checkpoint_seconds=job.checkpoint_seconds,
        on_epoch=tell,
        start={**original, **first} if any(member.is_held for member in members) else None,
    )


def _save(
    job: BankJob,
    facts: TaskFacts,
    slot: int,
    losses: Sequence[float],
    judged: Mapping[str, Judged],
    methods: Sequence[MethodSpec],
) -> dict[str, Fit]:
    """Write what each method keeps of a candidate; a tuned pooling that several keep is one file.

    Returns:
        What the outcome says of each method whose figures are finite.
    """
    fits: dict[str, Fit] = {}
    written: list[tuple[Mapping[str, Tensor], Path]] = []
    for spec in methods:
        one = judged.get(spec.name)
        if one is None:
            continue
        state = one.fitted.state()
        name = f"candidate-{slot:02d}-{spec.name}" if state else None
        if name is not None:
            save_head(
                job.folder / name,
                state,
                _card(facts, spec, job.candidates[slot], one, losses),
                how_to_load(spec.module, spec.options),
                next((folder for other, folder in written if other is state), None),
            )
            written.append((state, job.folder / name))
        solution = one.solution
        fits[spec.name] = Fit(solution.at, solution.point, one.rows(), name)
    return fits


def describe_method(spec: MethodSpec) -> dict[str, Any]:
    """Return what a head's card says of its method."""
    return {
        "name": spec.name,
        "title": spec.title,
        "module": spec.module,
        "options": dict(spec.options),
    }


def _card(
    facts: TaskFacts,
    spec: MethodSpec,
    values: Values,
    judged: Judged,
    losses: Sequence[float],
) -> dict[str, Any]:
    at, point = judged.solution.at, judged.solution.point
    # A winner that is trained again has seen the validation samples, which then say nothing of it.
    metrics = (
        {}
        if facts.card.get("refit")
        else {
            "validation_accuracy": point.accuracy,
            "validation_mean_per_class": point.mean_per_class,
            "validation_nll": point.nll,
            "validation_gained": point.gained,
            "validation_lost": point.lost,
            "validation_samples": facts.validation_count,
        }
    )
    return {
        **facts.card,
        "method": describe_method(spec),
        # Where there is an alpha, readers of a head look for it here.
        **({"alpha": at["alpha"]} if "alpha" in at else {}),
        "knobs": dict(at),
        "hyper_parameters": dict(values),
        "metrics": {**metrics, **({"train_loss": losses[-1]} if losses else {})},
        # As above: what has been trained on says nothing of how sure to be.
        **({} if facts.card.get("refit") else {"calibration": {"temperature": judged.temperature}}),
    }


def support_shard(
    task_folder: Path, facts: TaskFacts, device: torch.device, rows: range | None = None
) -> SupportShard:
    """Return some of the support set, its maps read from the store now or batch by batch.

    Args:
        task_folder: of the task.
        facts: the task.
        device: to train on.
        rows: a run of support samples; None for all of them.
    """
    rows = range(len(facts.support)) if rows is None else rows
    samples = [facts.support[row] for row in rows]
    maps: MapSource
    if facts.pin == "stream":
        maps = StreamedMaps(task_folder, samples, device, facts.map_budget)
    else:
        read = facts.store().read(samples, range(facts.views + 1))
        maps = resident_maps(read, facts.pin, device)
    return SupportShard(
        maps,
        torch.tensor([facts.support_labels[row] for row in rows], device=device),
        torch.arange(rows.start, rows.stop, device=device),
        len(facts.support),
    )
