"""One bank of one task, from the files that describe it to the files that hold its result.

Everything a worker needs is on the sweep's storage: the task's folder (written once by the driver)
and the feature store. Everything it leaves is in the bank's folder, so that a worker, a trial or
the driver may die at any point and the next one goes on from the last checkpoint:

    tasks/<task>/task.json, classifier.safetensors     what the driver wrote
    banks/<task>/<bank>/checkpoint.safetensors         while it trains
    banks/<task>/<bank>/candidate-<slot>/head.*        the trained heads
    banks/<task>/<bank>/outcome.json                   last, when all else is in place
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_ray.errors import InputError
from safe_ray.features.store import FeatureStore, StoreKey
from safe_ray.files import digest_json, read_record, replacing, write_record
from safe_ray.heads.artifact import save_head
from safe_ray.heads.blending import alpha_row, sum_alpha_row
from safe_ray.heads.selection import ChooseBy, Rule, best_point
from safe_ray.heads.sums import KnobSums
from safe_ray.poolings import Pooling, from_json
from safe_ray.poolings.base import HeadState
from safe_ray.poolings.pooled import pool_with_heads
from safe_ray.specs import AlphaRow, HyperParameters, Metric, Task
from safe_ray.training.checkpoint import load_state, save_state
from safe_ray.training.loop import (
    Found,
    LoopOptions,
    Member,
    Parallel,
    SingleProcess,
    SupportShard,
    begin,
    train_bank,
)
from safe_ray.training.maps import MapSource, Pin, resident_maps

CLASSIFIER = "classifier.safetensors"
POOLING = "pooling.safetensors"
TASK = "task.json"
OUTCOME = "outcome.json"
CHECKPOINT = "checkpoint.safetensors"

# Validation maps in memory at once.
_VALIDATED_AT_ONCE = 512


@dataclass(frozen=True)
class TaskFacts:
    """A task as workers need it: plain values, stored as JSON in the task's folder.

    Attributes:
        task: data set, shots and seed.
        store_root: the folder of the feature stores, seen by all nodes.
        store_key: the fields of the `StoreKey`.
        tokens: tokens of a dense map (L).
        width: channels of a dense map (C).
        pooling: the pooling, as `safe_ray.poolings.to_json` describes it.
        logit_scale: the model's, already exponentiated.
        views: augmented views of each support sample; training draws from these and view 0.
        support: sample digests of the support set, in the episode's order.
        support_labels: class indices of the support set.
        validation: sample digests of the validation samples (empty in mode `cross`).
        validation_labels: class indices of the validation samples.
        mode: `coop` and `full` validate on the validation samples (a few a class, or the whole
            split), `cross` on folds of the support set.
        folds: folds of the support set in mode `cross`.
        metric: of the validation samples, that the person asks for.
        choose_by: how an alpha and a candidate are chosen (see `safe_ray.heads.selection.Rule`).
        alphas: the grid of alphas that every head is evaluated at.
        alpha_low: the smallest alpha that may be chosen.
        alpha_high: the largest alpha that may be chosen.
        batch_size: support samples a step.
        warmup: share of the steps with a rising learning rate.
        trained: names of the trained parameters.
        training_seed: draws the order and the views of the support samples.
        card: what `head.json` says of every head of the task.
        pin: where a worker keeps the support maps (see `safe_ray.training.maps`).
        map_budget: bytes of maps that a worker may have in memory when it streams them.
        precision: the pooling's arithmetic in a training step.
        compiled: whether a step on a GPU is compiled.
    """

    task: Task
    store_root: str
    store_key: Mapping[str, Any]
    tokens: int
    width: int
    pooling: Mapping[str, Any]
    logit_scale: float
    views: int
    support: tuple[str, ...]
    support_labels: tuple[int, ...]
    validation: tuple[str, ...]
    validation_labels: tuple[int, ...]
    mode: Literal["coop", "cross", "full"]
    folds: int
    metric: Metric
    choose_by: ChooseBy
    alphas: tuple[float, ...]
    alpha_low: float
    alpha_high: float
    batch_size: int
    warmup: float
    trained: tuple[str, ...]
    training_seed: int
    card: Mapping[str, Any]
    pin: Pin = "device"
    map_budget: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compiled: bool = False

    @property
    def validation_count(self) -> int:
        """How many samples the validation accuracy is over."""
        return len(self.support) if self.mode == "cross" else len(self.validation)

    @property
    def maps_in_memory(self) -> int:
        """How many support maps a single worker has in its device's memory at once."""
        if self.pin == "device":
            return len(self.support) * (self.views + 1)
        streamed = self.map_budget // (2 * self.tokens * self.width)
        return streamed if self.pin == "stream" else self.batch_size

    def save(self, folder: Path, classifier: Tensor) -> None:
        """Write the task's folder."""
        with replacing(folder / CLASSIFIER) as temporary:
            save_file({"classifier": classifier.float().contiguous().cpu()}, temporary)
        write_record(folder / TASK, asdict(self))

    @staticmethod
    def load(folder: Path) -> TaskFacts:
        """Read what `save` wrote.

        Raises:
            DamagedFileError: the file does not hold what was written.
            InputError: there is none.
        """
        facts = read_record(folder / TASK)
        if facts is None:
            raise InputError(f"{folder / TASK} is missing: give the same command again.")
        facts["task"] = Task(**facts["task"])
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in facts.items()
        }
        return TaskFacts(**values)

    def pool(self) -> Pooling:
        """Return the pooling that every head of the task is a state of."""
        return from_json(self.pooling)

    def store(self) -> FeatureStore:
        """Open the feature store that holds the task's dense maps."""
        key = StoreKey(**self.store_key)
        return FeatureStore(Path(self.store_root), key, self.tokens, self.width)


@dataclass(frozen=True)
class BankJob:
    """The candidates of one bank, and where the sweep is.

    Attributes:
        sweep: the sweep's folder, seen by all nodes.
        task_id: the task's id, which names its folders.
        bank: 0 for the task's first bank.
        candidates: the hyper-parameters of the bank's heads.
        checkpoint_seconds: the least time between two checkpoints.
    """

    sweep: str
    task_id: str
    bank: int
    candidates: tuple[HyperParameters, ...]
    checkpoint_seconds: float = 60.0

    @property
    def task_folder(self) -> Path:
        """Where the driver wrote the task."""
        return Path(self.sweep) / "tasks" / self.task_id

    @property
    def folder(self) -> Path:
        """Where the bank's checkpoint, heads and outcome go."""
        return Path(self.sweep) / "banks" / self.task_id / f"bank-{self.bank:03d}"

    @property
    def digest(self) -> str:
        """Tells one set of candidates from another: a checkpoint goes on only with its own."""
        return digest_json([self.task_id, self.bank, [asdict(c) for c in self.candidates]])

    def to_json(self) -> dict[str, Any]:
        """Return the job as plain values, for a trial's config."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> BankJob:
        """Read what `to_json` returned."""
        candidates = tuple(HyperParameters(**c) for c in value["candidates"])
        return BankJob(**{**value, "candidates": candidates})


@dataclass(frozen=True)
class CandidateOutcome:
    """What became of one candidate.

    Attributes:
        slot: its place in the bank.
        hyper_parameters: as suggested; `alpha` is the searcher's suggestion.
        failed: its loss or its weights stopped being finite.
        losses: mean training loss of each epoch, in nats.
        row: its validation figures at every alpha, or None if it failed.
        best: the index of its best alpha in the row, or None if it failed.
        head: the folder of its head, relative to the bank's folder, or None if it failed.
    """

    slot: int
    hyper_parameters: HyperParameters
    failed: bool
    losses: tuple[float, ...]
    row: AlphaRow | None
    best: int | None
    head: str | None


@dataclass(frozen=True)
class BankOutcome:
    """What a finished bank tells the search: `outcome.json`."""

    task_id: str
    bank: int
    samples: int
    seconds: float
    candidates: tuple[CandidateOutcome, ...]

    def save(self, folder: Path) -> None:
        """Write `outcome.json`; a loss that is not finite becomes null."""
        value = asdict(self)
        for candidate in value["candidates"]:
            losses = candidate["losses"]
            candidate["losses"] = [loss if math.isfinite(loss) else None for loss in losses]
        write_record(folder / OUTCOME, value)

    @staticmethod
    def load(folder: Path) -> BankOutcome | None:
        """Read the outcome of a finished bank, or return None if the bank is not finished.

        Raises:
            DamagedFileError: the file does not hold what was written.
        """
        value = read_record(folder / OUTCOME)
        if value is None:
            return None
        candidates = tuple(
            CandidateOutcome(
                slot=c["slot"],
                hyper_parameters=HyperParameters(**c["hyper_parameters"]),
                failed=c["failed"],
                losses=tuple(math.nan if loss is None else loss for loss in c["losses"]),
                row=_read_row(c["row"]),
                best=c["best"],
                head=c["head"],
            )
            for c in value["candidates"]
        )
        return BankOutcome(**{**value, "candidates": candidates})


def _read_row(value: Mapping[str, list[Any]] | None) -> AlphaRow | None:
    if value is None:
        return None
    return AlphaRow(**{name: tuple(column) for name, column in value.items()})


def fold_of(labels: Sequence[int], samples: Sequence[str], folds: int) -> tuple[int, ...]:
    """Assign each support sample to a fold, so that each class is spread over the folds.

    A sample that occurs several times is always in the same fold, so that nothing is validated on
    what it was trained on. With one shot a class, a fold leaves out whole classes from training:
    their text embeddings still classify them, which is what the blend is asked to keep.
    """
    seen: dict[int, int] = {}
    fold: dict[str, int] = {}
    for label, sample in zip(labels, samples, strict=True):
        if sample not in fold:
            place = seen.get(label, 0)
            seen[label] = place + 1
            fold[sample] = (place + label) % folds
    return tuple(fold[sample] for sample in samples)


def bank_members(facts: TaskFacts, candidates: Sequence[HyperParameters]) -> list[Member]:
    """Return the members to train: one a candidate, and in mode `cross` one more a fold.

    The first `len(candidates)` members see the whole support set. In mode `cross` they are
    followed, fold by fold, by members that leave that fold out.
    """

    def members(include: tuple[bool, ...] | None) -> list[Member]:
        return [Member(c.lr, c.weight_decay, c.epochs, include) for c in candidates]

    result = members(None)
    if facts.mode == "cross":
        folds = fold_of(facts.support_labels, facts.support, facts.folds)
        for fold in range(facts.folds):
            result += members(tuple(place != fold for place in folds))
    return result


def load_pooling(sweep: Path) -> dict[str, Tensor]:
    """Read the original pooling that every head of a sweep starts from."""
    return load_file(sweep / POOLING)


def run_bank(
    job: BankJob,
    device: torch.device,
    shard: SupportShard | None = None,
    parallel: Parallel | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> None:
    """Train and validate a bank, and leave its heads and its outcome in its folder.

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
    checkpoint = job.folder / CHECKPOINT

    def find() -> Found:
        if (job.folder / OUTCOME).exists():
            return Found(True, None)
        return Found(False, load_state(checkpoint, job.digest))

    # Storage may show one worker what another does not see yet.
    found = parallel.share(find, digest_json([job.digest, asdict(facts)]))
    if found.finished:
        return
    original = load_pooling(Path(job.sweep))
    classifier = load_file(job.task_folder / CLASSIFIER)["classifier"].to(device)
    store = facts.store()
    shard = shard or support_shard(job.task_folder, facts, device)
    members = bank_members(facts, job.candidates)
    longest = max(member.epochs for member in members)

    def tell(epoch: int) -> None:
        if on_progress is not None:
            on_progress(epoch / longest)

    state = train_bank(
        members,
        found.state or begin(original, len(members)),
        shard,
        classifier,
        facts.pool(),
        facts.logit_scale,
        LoopOptions(
            facts.batch_size,
            facts.warmup,
            facts.training_seed,
            facts.trained,
            torch.bfloat16 if facts.precision == "bf16" else None,
            facts.compiled,
        ),
        parallel,
        on_checkpoint=lambda kept: save_state(checkpoint, kept, job.digest),
        checkpoint_seconds=job.checkpoint_seconds,
        on_epoch=tell,
    )
    if not parallel.is_first:
        return
    heads = [member.head for member in state.members]
    sums = _validate(facts, store, heads, original, classifier, len(job.candidates))
    rule = Rule(facts.metric, facts.choose_by)
    outcomes = []
    for slot, hyper_parameters in enumerate(job.candidates):
        group = state.members[slot :: len(job.candidates)]
        losses = tuple(state.members[slot].losses)
        row = alpha_row(sums[slot], facts.alphas, rule)
        if any(m.failed for m in group) or not all(map(math.isfinite, (*row.accuracy, *row.nll))):
            outcomes.append(
                CandidateOutcome(slot, hyper_parameters, True, losses, None, None, None)
            )
            continue
        best = best_point(row, facts.alpha_low, facts.alpha_high)
        name = f"candidate-{slot:02d}"
        card = {
            **facts.card,
            "alpha": row.alphas[best],
            "hyper_parameters": {
                "lr": hyper_parameters.lr,
                "weight_decay": hyper_parameters.weight_decay,
                "epochs": hyper_parameters.epochs,
            },
            "metrics": {
                "validation_accuracy": row.accuracy[best],
                "validation_mean_per_class": row.mean_per_class[best],
                "validation_nll": row.nll[best],
                "validation_gained": row.gained[best],
                "validation_lost": row.lost[best],
                "validation_samples": sums[0].samples,
                "train_loss": losses[-1],
            },
        }
        save_head(job.folder / name, heads[slot], card)
        outcomes.append(CandidateOutcome(slot, hyper_parameters, False, losses, row, best, name))
    seconds = time.monotonic() - began
    BankOutcome(job.task_id, job.bank, sums[0].samples, seconds, tuple(outcomes)).save(job.folder)
    checkpoint.unlink(missing_ok=True)


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
        from safe_ray.training.streaming import StreamedMaps

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


def _validate(
    facts: TaskFacts,
    store: FeatureStore,
    heads: Sequence[HeadState],
    original: HeadState,
    classifier: Tensor,
    candidates: int,
) -> list[KnobSums]:
    """Return each candidate's sums at every alpha, over the validation samples or the folds."""
    pooling, device = facts.pool(), classifier.device

    def evaluate(
        group: Sequence[HeadState], samples: Sequence[str], labels: Tensor
    ) -> list[KnobSums]:
        total: list[KnobSums] = []
        for first in range(0, len(samples), _VALIDATED_AT_ONCE):
            part = slice(first, first + _VALIDATED_AT_ONCE)
            maps = torch.from_numpy(store.read(samples[part], (0,)))[:, 0]
            sums = sum_alpha_row(
                pool_with_heads(group, pooling, maps, device),
                pool_with_heads([original], pooling, maps, device)[0],
                classifier,
                labels[part].to(device),
                facts.logit_scale,
                facts.alphas,
            )
            total = _added(total, sums)
        if not total:
            raise ValueError(f"{facts.task.id} has nothing to validate on")
        return total

    if facts.mode != "cross":
        return evaluate(heads, facts.validation, torch.tensor(facts.validation_labels))
    folds = torch.tensor(fold_of(facts.support_labels, facts.support, facts.folds))
    labels = torch.tensor(facts.support_labels)
    total: list[KnobSums] = []
    for fold in range(facts.folds):
        held_out = (folds == fold).nonzero().flatten().tolist()
        if not held_out:
            continue
        group = heads[(fold + 1) * candidates : (fold + 2) * candidates]
        sums = evaluate(group, [facts.support[i] for i in held_out], labels[held_out])
        total = _added(total, sums)
    if not total:
        raise ValueError(f"{facts.task.id} has no support samples to validate on")
    return total


def _added(some: Sequence[KnobSums], more: Sequence[KnobSums]) -> list[KnobSums]:
    """Add up the sums of each head; there may be none yet."""
    return [a + b for a, b in zip(some, more, strict=True)] if some else list(more)
