"""One training step of a bank: the losses of a batch, their gradients, and the update.

`AutogradStep` goes through the graph: DDP hooks into it, and a GPU is kept busy by it. In a single
process on a CPU `FusedStep` does the same with each candidate's forward pass, backward pass and
update in turn. It updates a block of rows while its gradient is in the cache, so that gradients
cost the memory no traffic, and no candidate's intermediates push out another's.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from safe_ray.heads.bank import Bank
from safe_ray.heads.gradients import (
    BLOCK_BYTES,
    Gradients,
    Workspace,
    layers_of,
    row_blocks,
    shape_block,
)
from safe_ray.heads.optimiser import BankOptimiser

# Elements, so that every block begins with a cache line.
_ALIGNMENT = 16


class Step(Protocol):
    """A training step."""

    side_by_side: bool
    """Whether candidates are computed on one thread each (see `between_steps`)."""

    def __call__(
        self, tokens: Tensor, labels: Tensor, weights: Tensor, learning_rates: Sequence[float]
    ) -> Tensor:
        """Update every candidate of the bank once.

        Args:
            tokens: as the pooling's `prepare` returns them, for N samples.
            labels: `[N]` int64 class indices.
            weights: `[K, N]`, what each sample counts for each candidate (0 leaves it out).
            learning_rates: one a candidate.

        Returns:
            `[K]` losses in nats before the update, as `Bank.forward` gives them.
        """
        ...


class AutogradStep:
    """The step by way of the graph.

    Args:
        module: the bank, or what wraps it for several workers.
        optimiser: of the same bank.
    """

    side_by_side = False

    def __init__(self, module: nn.Module, optimiser: BankOptimiser) -> None:
        self._module = module
        self._optimiser = optimiser

    def __call__(
        self, tokens: Tensor, labels: Tensor, weights: Tensor, learning_rates: Sequence[float]
    ) -> Tensor:
        """See `Step`."""
        losses: Tensor = self._module(tokens, labels, weights)
        losses.sum().backward()
        self._optimiser.step(learning_rates)
        return losses.detach()


def compile_module(module: nn.Module, backend: str = "inductor") -> nn.Module:
    """Return the bank, or what wraps it, compiled: the products around each softmax are fused.

    Sizes that change (the last batch of an epoch, a bank that members have left) are compiled once
    as sizes that may change, rather than again for each.
    """
    # With dynamic unset, torch takes a size as variable from its second value on.
    return cast(nn.Module, torch.compile(module, backend=backend))


class SingleHead(Protocol):
    """A pooling of one head at a time, with its derivative written out.

    What `weights` and `room` return is the pooling's own affair.
    """

    def weights(self, head: Mapping[str, Tensor]) -> Any:
        """View a head's tensors as `pool` takes them; an update of the head shows in them."""
        ...

    def room(self, tokens: Tensor, workspace: Workspace) -> Any:
        """Return the memory of a pass over tokens of this shape."""
        ...

    def pool(self, tokens: Tensor, weights: Any, room: Any) -> Tensor:
        """Pool the tokens: `[N, D]`; what `differentiate` needs stays in the room."""
        ...

    def differentiate(
        self, gradient: Tensor, weights: Any, room: Any, gradients: Gradients
    ) -> None:
        """Hand over the parameters' gradients, given the one of what `pool` returned.

        A weight is not read again once its gradient has been asked for: it may be updated then.
        """
        ...


class FusedStep:
    """The step candidate by candidate, without a graph.

    Args:
        bank: the bank to train. Where its precision is `torch.bfloat16`, gradients are rounded as
            they are written; master weights, moments, and the loss stay float32.
        optimiser: of the same bank.
        single: the bank's pooling of one head.
    """

    def __init__(self, bank: Bank, optimiser: BankOptimiser, single: SingleHead) -> None:
        self._single = single
        precision = self._precision = bank.precision or torch.float32
        self._heads = [bank.head(candidate) for candidate in range(len(bank))]
        self._weights = [single.weights(head) for head in self._heads]
        # Candidates of one scale share their loss, which holds a scaled classifier.
        scales = [bank.logit_scale * temperature for temperature in bank.temperatures]
        of_scale = {scale: CrossEntropy(bank.classifier, scale) for scale in set(scales)}
        self._losses = [of_scale[scale] for scale in scales]
        threads = min(torch.get_num_threads(), len(bank))
        self.side_by_side = threads > 1
        self._lanes = [_Lane(bank, optimiser, single, precision) for _ in range(threads)]
        # The caller's thread is the first of them.
        self._others = single_threaded_workers(threads - 1) if self.side_by_side else None

    def __call__(
        self, tokens: Tensor, labels: Tensor, weights: Tensor, learning_rates: Sequence[float]
    ) -> Tensor:
        """See `Step`."""
        tokens = tokens.to(self._precision)
        targets = Targets.of(labels, weights)
        losses: dict[int, Tensor] = {}
        # Shared: each thread takes the next candidate that nobody has.
        waiting = iter(range(len(self._heads)))

        def work(lane: _Lane) -> None:
            for candidate in waiting:
                losses[candidate] = self._step(
                    lane, candidate, tokens, targets[candidate], learning_rates[candidate]
                )

        if self._others is None:
            work(self._lanes[0])
        else:
            started = [self._others.submit(work, lane) for lane in self._lanes[1:]]
            with single_threaded():
                work(self._lanes[0])
            for other in started:
                other.result()
        return torch.stack([losses[candidate] for candidate in range(len(losses))])

    @torch.no_grad()
    def _step(
        self, lane: _Lane, candidate: int, tokens: Tensor, targets: Targets, lr: float
    ) -> Tensor:
        """Update one candidate and return its loss."""
        weights, half = self._weights[candidate], self._precision != torch.float32
        if half:
            head = self._heads[candidate]
            rounded = {name: tensor.to(self._precision) for name, tensor in head.items()}
            weights = self._single.weights(rounded)
        room = lane.room(tokens)
        pooled = self._single.pool(tokens, weights, room)
        loss, gradient = self._losses[candidate](pooled.float() if half else pooled, targets)
        lane.begin(candidate, lr)
        rounded_gradient = gradient.to(self._precision) if half else gradient
        self._single.differentiate(rounded_gradient, weights, room, lane)
        lane.finish()
        return loss


def between_steps(step: Step) -> contextlib.AbstractContextManager[None]:
    """Return the context in which to compute what else there is to compute between steps.

    OpenMP's threads wait for more work by spinning. Where candidates have one thread each, the rest
    has one too: it would otherwise leave behind threads that take the cores from the candidates.
    """
    return single_threaded() if step.side_by_side else contextlib.nullcontext()


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch compute with one thread in the calling thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def single_threaded_workers(count: int) -> ThreadPoolExecutor:
    """Return `count` threads, in each of which torch computes with one thread.

    Candidates that run side by side need not wait for each other after every small product.
    """
    threads = torch.get_num_threads()
    barrier = threading.Barrier(count)

    def begin() -> None:
        torch.get_num_threads()  # A thread's first use of torch would undo what was set before it.
        torch.set_num_threads(1)
        barrier.wait()

    workers = ThreadPoolExecutor(count, thread_name_prefix="candidate")
    for started in [workers.submit(begin) for _ in range(count)]:
        started.result()
    # torch keeps the count for each thread, but new threads begin with the last one that was set.
    torch.set_num_threads(threads)
    return workers


@dataclass(frozen=True)
class Targets:
    """What one head should say of a batch.

    Attributes:
        labels: `[N, 1]` int64 class indices.
        weights: `[N, 1]`; what each sample counts.
        left_out: `[N, 1]`, where the weight is 0; None if it is so nowhere.
        minus_one: `[N, 1]`, -1 everywhere.
    """

    labels: Tensor
    weights: Tensor
    left_out: Tensor | None
    minus_one: Tensor

    @classmethod
    def of(cls, labels: Tensor, weights: Tensor) -> list[Targets]:
        """Return the targets of K heads, of labels `[N]` and weights `[K, N]`."""
        column, minus_one = labels.unsqueeze(1), weights.new_full((len(labels), 1), -1.0)
        weights = weights.unsqueeze(2)
        left_out = weights == 0
        masks = left_out.unbind() if left_out.any() else [None] * len(weights)
        return [
            cls(column, each, mask, minus_one)
            for each, mask in zip(weights.unbind(), masks, strict=True)
        ]


class CrossEntropy:
    """A head's loss and its gradient with respect to the pooled features.

    With o a sample's features, u = o / |o|, W the classifier, s the logit scale and w the sample's
    weight,

        z = s W u        g = s W^T (softmax(z) - onehot) w        do = (g - u (u . g)) / |o|

    Args:
        classifier: `[classes, D]`, normalised rows.
        logit_scale: the model's, already exponentiated.
    """

    def __init__(self, classifier: Tensor, logit_scale: float) -> None:
        self._scaled = classifier * logit_scale
        self._scaled_t = self._scaled.t()

    def __call__(self, pooled: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar in nats (see `Bank.forward`), and its gradient `[N, D]`.

        Args:
            pooled: `[N, D]`, as the pooling returns them.
            targets: one with a weight of 0 has no part in the loss.
        """
        norm = torch.linalg.vector_norm(pooled, dim=1, keepdim=True).clamp_min_(1e-12)
        unit = pooled / norm
        log_odds = torch.log_softmax(unit @ self._scaled_t, dim=1)
        losses = log_odds.gather(1, targets.labels)
        if targets.left_out is not None:
            # As in the bank: such a sample must not pass on a NaN, which a product with zero would.
            losses.masked_fill_(targets.left_out, 0.0)
        loss = losses.mul_(targets.weights).sum().neg_()

        odds = log_odds.exp_().scatter_add_(1, targets.labels, targets.minus_one)
        gradient = odds.mul_(targets.weights) @ self._scaled
        along = (unit * gradient).sum(dim=1, keepdim=True)
        return loss, gradient.addcmul_(unit, along, value=-1.0).div_(norm)


@dataclass(frozen=True)
class _Block:
    """Rows of a parameter, and the memory for their gradient.

    Attributes:
        rows: of the parameter.
        memory: for their gradient.
        units: the rows, as the backward pass counts them.
        shaped: the memory, as the backward pass writes to it.
        again: whether it has been given out since the last update.
    """

    rows: slice
    memory: Tensor
    units: slice
    shaped: Tensor
    again: bool


class _Lane:
    """What one thread keeps from step to step: the memory of its passes and of its gradients.

    Candidates have the same shapes, so what a block of gradients is and where it lies is found
    once. A few blocks are gathered before they are turned into updates.
    """

    def __init__(
        self, bank: Bank, optimiser: BankOptimiser, single: SingleHead, precision: torch.dtype
    ) -> None:
        self.layers = layers_of(optimiser.names)
        self._optimiser = optimiser
        self._single = single
        self._wanted = {n: t for n, t in bank.head(0).items() if n in optimiser.names}
        self._precision = precision
        self._workspace = Workspace()
        self._rooms: dict[int, Any] = {}
        self._layout: dict[str, list[_Block]] = {}
        self._used = 0
        self._candidate, self._lr = 0, 0.0
        self._written: list[tuple[str, slice, Tensor]] = []

    def room(self, tokens: Tensor) -> Any:
        """Return the memory of a pass over these tokens."""
        room = self._rooms.get(len(tokens))
        if room is None:
            room = self._rooms[len(tokens)] = self._single.room(tokens, self._workspace)
        return room

    def begin(self, candidate: int, lr: float) -> None:
        """Take up a candidate."""
        self._candidate, self._lr = candidate, lr

    def blocks(self, name: str, unit: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """See `safe_ray.heads.gradients.Gradients`."""
        if name not in self._wanted:
            return
        if name not in self._layout:
            self._layout[name] = list(self._lay_out(self._wanted[name], unit))
        for block in self._layout[name]:
            if block.again:
                self._flush()
            yield block.units, block.shaped
            self._written.append((name, block.rows, block.memory))

    def finish(self) -> None:
        """End the candidate's step."""
        self._flush()
        self._optimiser.finish(self._candidate)

    def _lay_out(self, parameter: Tensor, unit: int) -> Iterator[_Block]:
        like = torch.empty(0, dtype=self._precision, device=parameter.device)
        for rows in row_blocks(parameter, unit):
            shape = (rows.stop - rows.start, *parameter.shape[1:])
            size = math.prod(shape)
            capacity = max(size, BLOCK_BYTES // parameter.element_size())
            again = self._used + size > capacity
            if again:
                self._used = 0
            memory = self._workspace.take("gradients", shape, like, self._used, capacity)
            self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
            units = slice(rows.start // unit, rows.stop // unit) if unit else rows
            yield _Block(rows, memory, units, shape_block(memory, unit), again)

    def _flush(self) -> None:
        if self._written:
            written = self._written
            if self._precision != torch.float32:
                written = [(name, rows, memory.float()) for name, rows, memory in written]
            self._optimiser.update_rows(self._candidate, written, self._lr)
        self._written = []
