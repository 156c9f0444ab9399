"""One training step of a bank: the losses of a batch, their gradients, and the update.

`AutogradStep` goes through the graph: DDP hooks into it, and a GPU is kept busy by it. In a single
process on a CPU `FusedStep` does the same with each candidate's forward pass, backward pass and
update in turn. It updates a block of rows while its gradient is in the cache, so that gradients
cost the memory no traffic, and no candidate's intermediates push out another's.
"""

from __future__ import annotations

import functools
import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from safe_ray.heads.bank import Bank
from safe_ray.heads.optimiser import BankOptimiser
from safe_ray.heads.single import (
    BLOCK_BYTES,
    Workspace,
    differentiate_head,
    pool_head,
    row_blocks,
)

# Elements, so that every block begins with a cache line.
_ALIGNMENT = 16


class Step(Protocol):
    """A training step."""

    def __call__(
        self, tokens: Tensor, labels: Tensor, weights: Tensor, learning_rates: Sequence[float]
    ) -> Tensor:
        """Update every candidate of the bank once.

        Args:
            tokens: `[N, L + 1, C]`, the mean token first.
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


class FusedStep:
    """The step candidate by candidate, without a graph.

    Args:
        bank: the bank to train.
        optimiser: of the same bank.
        precision: the pooling's arithmetic. In `torch.bfloat16` weights are rounded for each pass
            and gradients as they are written; master weights, moments, and the loss stay float32.
    """

    def __init__(
        self, bank: Bank, optimiser: BankOptimiser, precision: torch.dtype = torch.float32
    ) -> None:
        self._bank = bank
        self._precision = precision
        self._heads = [bank.head(candidate) for candidate in range(len(bank))]
        self._updates = [
            _Updates(optimiser, candidate, head, precision)
            for candidate, head in enumerate(self._heads)
        ]
        workers = min(torch.get_num_threads(), len(bank))
        self._workers = single_threaded_workers(workers) if workers > 1 else None
        self._workspaces: queue.SimpleQueue[Workspace] = queue.SimpleQueue()
        for _ in range(workers):
            self._workspaces.put(Workspace())

    def __call__(
        self, tokens: Tensor, labels: Tensor, weights: Tensor, learning_rates: Sequence[float]
    ) -> Tensor:
        """See `Step`."""
        step = functools.partial(self._step, tokens.to(self._precision), labels)
        each = (range(len(self._heads)), weights, learning_rates)
        return torch.stack(
            list(self._workers.map(step, *each) if self._workers else map(step, *each))
        )

    @torch.no_grad()
    def _step(
        self, tokens: Tensor, labels: Tensor, candidate: int, weights: Tensor, lr: float
    ) -> Tensor:
        """Update one candidate and return its loss."""
        bank, updates = self._bank, self._updates[candidate]
        workspace = self._workspaces.get()
        head = {name: tensor.to(self._precision) for name, tensor in self._heads[candidate].items()}
        pooled, kept = pool_head(tokens, head, bank.num_heads, workspace)
        loss, gradient = loss_and_gradient(
            pooled.float(), labels, weights, bank.classifier, bank.logit_scale
        )
        updates.begin(lr, workspace)
        differentiate_head(
            gradient.to(self._precision), kept, head, bank.num_heads, updates, workspace
        )
        updates.finish()
        self._workspaces.put(workspace)
        return loss


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


def loss_and_gradient(
    pooled: Tensor, labels: Tensor, weights: Tensor, classifier: Tensor, logit_scale: float
) -> tuple[Tensor, Tensor]:
    """Return one head's loss and its gradient with respect to the pooled features.

    With o a sample's features, W the classifier, s the logit scale and w the sample's weight,

        z = s W o / |o|      g = s W^T (softmax(z) - onehot) w / |o|      do = g - o (o . g) / |o|^2

    Args:
        pooled: `[N, D]`, as the pooling returns them.
        labels: `[N]` int64 class indices.
        weights: `[N]`; what each sample counts. One with 0 has no part in the loss.
        classifier: `[classes, D]`, normalised rows.
        logit_scale: the model's, already exponentiated.

    Returns:
        The loss, a scalar in nats (see `Bank.forward`), and `[N, D]`.
    """
    norm = torch.linalg.vector_norm(pooled, dim=1, keepdim=True).clamp_min_(1e-12)
    factor = logit_scale / norm
    log_odds = torch.log_softmax((pooled @ classifier.t()).mul_(factor), dim=1)
    target = labels.unsqueeze(1)
    losses = log_odds.gather(1, target).squeeze(1)
    # As in the bank: a left-out sample must not pass on a NaN, which a product with zero would.
    losses.masked_fill_(weights == 0, 0.0)
    loss = -torch.dot(losses, weights)

    odds = log_odds.exp_()
    odds.scatter_add_(1, target, odds.new_full(target.shape, -1.0))
    odds.mul_(weights.unsqueeze(1))
    gradient = (odds @ classifier).mul_(factor)
    along = (pooled * gradient).sum(dim=1, keepdim=True).div_(norm.square_())
    return loss, gradient.addcmul_(pooled, along, value=-1.0)


class _Updates:
    """The gradients of one candidate, turned into updates as soon as a few blocks are written."""

    def __init__(
        self,
        optimiser: BankOptimiser,
        candidate: int,
        head: Mapping[str, Tensor],
        precision: torch.dtype,
    ) -> None:
        self.wanted = optimiser.names
        self._like = torch.empty(0, dtype=precision)
        self._optimiser = optimiser
        self._candidate = candidate
        self._head = head
        self._workspace = Workspace()
        self._lr = 0.0
        self._written: list[tuple[str, slice, Tensor]] = []
        self._used = 0

    def begin(self, lr: float, workspace: Workspace) -> None:
        self._lr, self._workspace = lr, workspace

    def blocks(self, name: str, unit: int = 1) -> Iterator[tuple[slice, Tensor]]:
        if name not in self.wanted:
            return
        parameter = self._head[name]
        for rows in row_blocks(parameter, unit):
            room = self._room(parameter, rows.stop - rows.start)
            yield rows, room
            self._written.append((name, rows, room))

    def finish(self) -> None:
        self._flush()
        self._optimiser.finish(self._candidate)

    def _room(self, parameter: Tensor, rows: int) -> Tensor:
        shape = (rows, *parameter.shape[1:])
        size = math.prod(shape)
        capacity = max(size, BLOCK_BYTES // parameter.element_size())
        if self._used + size > capacity:
            self._flush()
        room = self._workspace.take("gradients", shape, self._like, self._used, capacity)
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return room

    def _flush(self) -> None:
        if self._written:
            written = [(name, rows, room.float()) for name, rows, room in self._written]
            self._optimiser.update_rows(self._candidate, written, self._lr)
        self._written, self._used = [], 0
