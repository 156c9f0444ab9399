"""The training loop of a bank, in plain PyTorch.

The loop is the same for one process and for many: a `Parallel` says how to wrap the bank, and how
to add up a tensor over the workers. Every global batch is drawn from the whole support set by a
seed, and each worker computes the part of it that lies in its own shard, so that the gradients do
not depend on the number of workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from safe_ray.files import sha256_hex
from safe_ray.heads.bank import Bank
from safe_ray.heads.optimiser import BankOptimiser, Moments, PullToStart, Schedule
from safe_ray.heads.step import AutogradStep, Step, between_steps, compile_module
from safe_ray.poolings.base import HeadState, Pooling
from safe_ray.training.maps import MapSource
from safe_ray.training.members import Member, MemberState, TrainingState


@dataclass(frozen=True)
class LoopOptions:
    """What all members of a bank share.

    Attributes:
        batch_size: support samples a step, over all workers.
        warmup: share of a member's steps with a rising learning rate, 0 to 1.
        seed: draws the order and the view of every sample in every epoch.
        trained: parameter names (see `safe_ray.poolings.base.select_parameters`).
        precision: the pooling's arithmetic in a step (see `safe_ray.heads.bank.Bank`).
        compiled: whether torch compiles the step that goes through autograd.
        shared: what all heads have alike beside their own states (see `safe_ray.heads.bank.Bank`).
    """

    batch_size: int
    warmup: float
    seed: int
    trained: tuple[str, ...]
    precision: torch.dtype | None = None
    compiled: bool = False
    shared: HeadState = field(default_factory=dict)


@dataclass(frozen=True)
class SupportShard:
    """The part of the support set that one worker holds.

    Attributes:
        maps: where the dense maps come from, wherever they lie.
        labels: `[n]` int64, on the device to train on.
        positions: `[n]` int64, each sample's place in the whole support set.
        total: samples in the whole support set.
    """

    maps: MapSource
    labels: Tensor
    positions: Tensor
    total: int


@dataclass
class Found:
    """What an earlier attempt at a bank has left.

    Attributes:
        finished: the bank has its outcome, so that there is nothing to do.
        state: where to go on from; None to begin.
    """

    finished: bool
    state: TrainingState | None


class Parallel(Protocol):
    """How the loop runs on several workers."""

    world_size: int
    is_first: bool

    def share(self, find: Callable[[], Found], run: str) -> Found:
        """Return on every worker what `find` returned on the first; only there it is called.

        Args:
            find: looks for what earlier attempts have left.
            run: a digest of what this worker is about to train.

        Raises:
            RuntimeError: the workers are not about to train the same.
        """
        ...

    def wrap(self, bank: Bank) -> nn.Module:
        """Return a module whose backward pass averages the gradients over the workers."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor summed over the workers."""
        ...


class SingleProcess:
    """The loop on one worker: nothing to wrap, nothing to add up."""

    world_size = 1
    is_first = True

    def share(self, find: Callable[[], Found], run: str) -> Found:
        """Return what there is."""
        return find()

    def wrap(self, bank: Bank) -> nn.Module:
        """Return the bank itself."""
        return bank

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself."""
        return tensor


def epoch_plan(seed: int, epoch: int, total: int, views: int) -> tuple[Tensor, Tensor]:
    """Draw the order of the support samples in an epoch, and the view of each.

    Returns:
        order: `[total]` int64, a permutation of the positions.
        view: `[total]` int64 in `[0, views)`, indexed by position.
    """
    generator = torch.Generator().manual_seed(int(sha256_hex(f"{seed}/{epoch}".encode())[:15], 16))
    order = torch.randperm(total, generator=generator)
    return order, torch.randint(views, (total,), generator=generator)


def begin(initial: HeadState, members: int) -> TrainingState:
    """Return the state before the first epoch: every member is the original pooling."""
    return TrainingState(0, [MemberState(head=initial) for _ in range(members)])


def train_bank(
    members: Sequence[Member],
    state: TrainingState,
    shard: SupportShard,
    classifier: Tensor,
    pooling: Pooling,
    logit_scale: float,
    options: LoopOptions,
    parallel: Parallel | None = None,
    on_checkpoint: Callable[[TrainingState], None] | None = None,
    checkpoint_seconds: float = 60.0,
    on_epoch: Callable[[int], None] | None = None,
    start: HeadState | None = None,
) -> TrainingState:
    """Train the members of a bank from `state` to the end of their schedules.

    Args:
        members: hyper-parameters, in the order of `state.members`.
        state: where to begin (`begin`) or to go on from (a checkpoint).
        shard: this worker's support samples.
        classifier: `[classes, D]` normalised text embeddings, on the same device.
        pooling: what the heads are states of.
        logit_scale: the model's, already exponentiated.
        options: what all members share.
        parallel: how to run on several workers; None for one process.
        on_checkpoint: called on the first worker at most every `checkpoint_seconds`, between two
            epochs, with the state to keep.
        checkpoint_seconds: see `on_checkpoint`.
        on_epoch: called after each epoch with the number of whole epochs so far.
        start: the original head, which a checkpoint no longer has; needed where a member is held
            near it.

    Returns:
        The final state. A member whose loss or weights stopped being finite is marked failed and
        left out from the next epoch on; the others are not touched by it.

    Raises:
        ValueError: a member is held near the start, and `start` is not given.
    """
    if start is None and any(member.is_held for member in members):
        raise ValueError("a head that is held near the start needs the original one: pass start")
    parallel = parallel or SingleProcess()
    device = shard.labels.device
    total = shard.total
    steps = -(-total // options.batch_size)
    include = torch.stack(
        [
            torch.ones(total) if member.include is None else torch.tensor(member.include).float()
            for member in members
        ]
    )
    schedules = [
        Schedule(m.lr, m.epochs * steps, round(options.warmup * m.epochs * steps)) for m in members
    ]
    last_checkpoint = time.monotonic()

    running = _Running.start(
        members, state, classifier, pooling, logit_scale, options, parallel, start
    )
    while running.active:
        epoch = state.epoch
        active = running.active
        epoch_loss = _train_epoch(
            running,
            _plan_epoch(shard, options, epoch),
            shard,
            include[active],
            [schedules[i] for i in active],
            epoch * steps,
            parallel.world_size,
        )

        seen = include[active].sum(dim=1).clamp_min(1.0).to(device)
        due = time.monotonic() - last_checkpoint >= checkpoint_seconds and parallel.is_first
        flag = torch.tensor([float(due)], dtype=torch.float64, device=device)
        summed = parallel.sum(torch.cat([epoch_loss, flag]))
        losses = (summed[:-1] / seen).tolist()
        for index, loss_value in zip(active, losses, strict=True):
            state.members[index].losses.append(loss_value)
            state.members[index].failed = not math.isfinite(loss_value)
        state.epoch += 1
        if on_epoch is not None:
            on_epoch(state.epoch)

        still = [i for i in active if _unfinished(members[i], state.members[i], state.epoch)]
        if still != active or summed[-1] > 0:
            running.store(state)
        if summed[-1] > 0:
            last_checkpoint = time.monotonic()
            if parallel.is_first and on_checkpoint is not None:
                on_checkpoint(state)
        if still != active:
            running = _Running.start(
                members, state, classifier, pooling, logit_scale, options, parallel, start
            )
    return state


@dataclass(frozen=True)
class _Batch:
    """One batch of an epoch, and this worker's part of it; all lie on the host.

    Attributes:
        positions: `[B]` int64, the samples of the whole batch.
        own: `[n]` int64, those that this worker holds.
        rows: `[n]` int64, their places in the worker's shard.
        views: `[n]` int64, the view of each.
    """

    positions: Tensor
    own: Tensor
    rows: Tensor
    views: Tensor


def _plan_epoch(shard: SupportShard, options: LoopOptions, epoch: int) -> list[_Batch]:
    """Return the batches of an epoch, in order."""
    local = torch.full((shard.total,), -1, dtype=torch.int64)
    local[shard.positions.cpu()] = torch.arange(len(shard.positions))
    order, view = epoch_plan(options.seed, epoch, shard.total, shard.maps.views)
    batches = []
    for positions in order.split(options.batch_size):
        own = positions[local[positions] >= 0]
        batches.append(_Batch(positions, own, local[own], view[own]))
    return batches


def _train_epoch(
    running: _Running,
    batches: Sequence[_Batch],
    shard: SupportShard,
    include: Tensor,
    schedules: Sequence[Schedule],
    first_step: int,
    world_size: int,
) -> Tensor:
    """Take every step of one epoch.

    Args:
        running: the bank of the K active members.
        batches: of the epoch.
        shard: this worker's support samples.
        include: `[K, total]` on the host, 1 where a member sees a support sample and 0 elsewhere.
        schedules: one a member.
        first_step: how many steps the earlier epochs took.
        world_size: how many workers there are.

    Returns:
        `[K]` float64 on the shard's device, each member's loss summed over the support set as this
        worker saw it.
    """
    device = shard.labels.device
    maps = shard.maps.epoch([(batch.rows, batch.views) for batch in batches])
    epoch_loss = torch.zeros(len(include), dtype=torch.float64, device=device)
    with between_steps(running.step):
        for step, (batch, batch_maps) in enumerate(zip(batches, maps, strict=True), first_step):
            counted = include[:, batch.positions]
            scale = world_size / counted.sum(dim=1, keepdim=True).clamp_min(1.0)
            loss = running.step(
                running.bank.pooling.prepare(batch_maps),
                shard.labels[batch.rows.to(device)],
                (include[:, batch.own] * scale).to(device),
                [schedule.at(step) for schedule in schedules],
            )
            # DDP averages over the workers, so the loss carries the world size: out with it.
            share = counted.sum(dim=1) / world_size
            epoch_loss += loss.double() * share.to(device)
    return epoch_loss


def _unfinished(member: Member, state: MemberState, epoch: int) -> bool:
    return member.epochs > epoch and not state.failed


@dataclass
class _Running:
    """The stacked bank of the members that are still training, and their places."""

    active: list[int]
    bank: Bank
    optimiser: BankOptimiser
    step: Step

    @staticmethod
    def start(
        members: Sequence[Member],
        state: TrainingState,
        classifier: Tensor,
        pooling: Pooling,
        logit_scale: float,
        options: LoopOptions,
        parallel: Parallel,
        start: HeadState | None = None,
    ) -> _Running:
        active = [
            index
            for index, member in enumerate(members)
            if _unfinished(member, state.members[index], state.epoch)
        ]
        heads = [state.members[index].head for index in active or range(1)]
        bank = Bank(
            heads,
            pooling,
            options.trained,
            classifier,
            logit_scale,
            options.precision,
            [members[index].temperature for index in active] or None,
            start,
            [members[index].logit_pull for index in active] or None,
            options.shared,
        )
        saved = [state.members[index].moments for index in active]
        known = [moments for moments in saved if moments is not None]
        if known and len(known) != len(saved):
            raise ValueError("some members of the bank have optimiser state and some have none")
        optimiser = BankOptimiser(
            bank,
            [members[index].weight_decay for index in active] or [0.0],
            known or None,
            None
            if start is None
            else PullToStart(
                start,
                [members[index].decay_to_start for index in active] or [0.0],
                [members[index].distance_penalty for index in active] or [0.0],
            ),
        )
        # Steps that are written by hand know nothing of the original head's logits.
        by_hand = parallel.world_size == 1 and not bank.is_pulled
        step = pooling.step(bank, optimiser) if by_hand else None
        if step is None:
            module = parallel.wrap(bank) if active else bank
            step = AutogradStep(compile_module(module) if options.compiled else module, optimiser)
        return _Running(active, bank, optimiser, step)

    def store(self, state: TrainingState) -> None:
        """Copy the active members' weights and optimiser state out of the stacked bank."""
        for place, (index, moments) in enumerate(
            zip(self.active, self.optimiser.moments(), strict=True)
        ):
            member = state.members[index]
            member.head = {k: v.clone().cpu() for k, v in self.bank.head(place).items()}
            member.moments = Moments(
                {k: v.clone().cpu() for k, v in moments.first.items()},
                {k: v.clone().cpu() for k, v in moments.second.items()},
                moments.updates,
            )
            if not all(bool(member.head[name].isfinite().all()) for name in self.bank.trained):
                member.failed = True
