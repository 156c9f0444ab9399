"""One head's pooling with its derivative written out, for the fewest passes over memory.

It is the same function as `safe_ray.heads.bank.pool_bank` with one candidate. On a CPU the stacked
form spends most of its time moving `[K, H, N, C]` intermediates; here one candidate is done at a
time, each intermediate is written once, into memory that is used again, in a layout that the next
matrix product takes as it is, and a gradient is handed over in blocks of rows that still lie in
the cache. With N samples, H attention heads of d = C / H rows, T = L + 1 tokens, x = tokens +
position, m = x[:, 0], and one product a line ("h" and "n" mark a product a head or a sample):

    forward                                       backward, from dO = the gradient of the output
    Q   = (m Wq^T + bq) / sqrt(d)   [N, C]        dV  = dO Wc              dWc   = dO^T V
    U_h = Q_h Wk_h                  [H, N, C]     dP_h = dV_h Wv_h         dWv_h = dV_h^T P_h
    S_n = U_n x_n^T                 [N, H, T]     dA_n = dP_n x_n^T
    A   = softmax(S)                [N, H, T]     dS  = A * (dA - sum_T(A * dA))
    P_n = A_n x_n                   [N, H, C]     dU_n = dS_n x_n
    V_h = P_h Wv_h^T                [N, C]        dQ_h = dU_h Wk_h^T       dWk_h = Q_h^T dU_h
    O   = (V + bv) Wc^T + bc        [N, D]        dm  = dQ Wq / sqrt(d)    dWq   = dQ^T m / sqrt(d)

The position's gradient is a sum over samples of x's, which need not be formed:
`dposition = sum_h (A_h^T dV_h) Wv_h + (dS_h^T Q_h) Wk_h`, where each sum over heads is one product
`[T, C] x [C, C]`, and its first row has `(sum_n dQ_n) Wq / sqrt(d)` besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from safe_ray.backbones.pooling import POOLING_PARAMETERS

# A block of gradients shares the last-level cache with the weights and both moments of its rows
# (four times as much in all), and is large enough for a product to run at full speed.
BLOCK_BYTES = 4 * 2**20


class Workspace:
    """Memory for intermediates that is used again at every step, by name."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(
        self, name: str, shape: tuple[int, ...], like: Tensor, start: int = 0, capacity: int = 0
    ) -> Tensor:
        """Return an uninitialised tensor of that shape; it is valid until `name` is taken again.

        Args:
            name: of the memory.
            shape: of the tensor.
            like: what has its dtype and device.
            start: the first element in the memory, for several tensors in one.
            capacity: how many elements the memory has at least.
        """
        end = start + math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < end or buffer.dtype != like.dtype:
            buffer = self._buffers[name] = like.new_empty(max(end, capacity))
        return buffer[start:end].view(shape)


class Gradients(Protocol):
    """Where a backward pass puts the gradients of one head."""

    wanted: frozenset[str]

    def blocks(self, name: str, unit: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of a parameter in blocks, each with the memory to write its gradient to.

        A block counts as written when the next one is asked for. A parameter that is not wanted
        has no blocks.

        Args:
            name: one of `POOLING_PARAMETERS`.
            unit: rows that must stay together; a block is a multiple of it.
        """
        ...


def row_blocks(parameter: Tensor, unit: int) -> list[slice]:
    """Cut the rows of a parameter into blocks, multiples of `unit`, of about `BLOCK_BYTES`.

    A bias is one block.
    """
    rows = len(parameter)
    if parameter.ndim == 1:
        return [slice(0, rows)]
    unit_bytes = parameter.numel() * parameter.element_size() // rows * unit
    size = max(1, BLOCK_BYTES // unit_bytes) * unit
    return [slice(start, min(rows, start + size)) for start in range(0, rows, size)]


@dataclass(frozen=True)
class Kept:
    """What the backward pass needs of the forward pass (see the module for the letters)."""

    positioned: Tensor
    query: Tensor
    attention: Tensor
    summed: Tensor
    value: Tensor


def pool_head(
    tokens: Tensor, head: Mapping[str, Tensor], num_heads: int, workspace: Workspace
) -> tuple[Tensor, Kept]:
    """Pool a batch of dense maps with one head; no graph is recorded.

    Args:
        tokens: `[N, T, C]`, the mean token first (see `safe_ray.heads.bank.with_mean_token`).
        head: `POOLING_PARAMETERS` with their tensors, of the tokens' dtype and device.
        num_heads: attention heads of the pooling; `C` must be a multiple of it.
        workspace: what is kept lies in it, until the next call with the same one.

    Returns:
        `[N, D]` pooled features, not normalised, and what `differentiate_head` needs.
    """
    samples, _, width = tokens.shape
    depth = width // num_heads
    per_head = (num_heads, depth, width)

    positioned = workspace.take("positioned", tuple(tokens.shape), tokens)
    torch.add(tokens, head["positional_embedding"], out=positioned)
    query = torch.addmm(head["q_proj.bias"], positioned[:, 0], head["q_proj.weight"].t())
    query.mul_(1.0 / math.sqrt(depth))
    absorbed = workspace.take("wide", (num_heads, samples, width), tokens)
    torch.bmm(_by_head(query, num_heads), head["k_proj.weight"].view(per_head), out=absorbed)
    scores = torch.bmm(absorbed.transpose(0, 1), positioned.transpose(1, 2))
    attention = torch.softmax(scores, dim=-1)
    summed = workspace.take("summed", (samples, num_heads, width), tokens)
    torch.bmm(attention, positioned, out=summed)
    value = torch.bmm(summed.transpose(0, 1), head["v_proj.weight"].view(per_head).transpose(1, 2))
    value = _by_sample(value).add_(head["v_proj.bias"])
    pooled = torch.addmm(head["c_proj.bias"], value, head["c_proj.weight"].t())
    return pooled, Kept(positioned, query, attention, summed, value)


def differentiate_head(
    gradient: Tensor,
    kept: Kept,
    head: Mapping[str, Tensor],
    num_heads: int,
    gradients: Gradients,
    workspace: Workspace,
) -> None:
    """Hand the gradients of one head's parameters to `gradients`.

    A weight is not read again once its gradient has been asked for, so that it may be updated then.

    Args:
        gradient: `[N, D]`, with respect to the pooled features.
        kept: of the forward pass, with the same workspace.
        head: as in the forward pass.
        num_heads: as in the forward pass.
        gradients: where they go; nothing is computed for what it does not want.
        workspace: of the forward pass, or another one.
    """
    positioned, query, attention = kept.positioned, kept.query, kept.attention
    samples, _, width = positioned.shape
    per_head = (num_heads, width // num_heads, width)
    layers = {name.split(".")[0] for name in gradients.wanted}

    grad_value = gradient @ head["c_proj.weight"]
    for rows, room in gradients.blocks("c_proj.weight"):
        torch.mm(gradient[:, rows].t(), kept.value, out=room)
    for _, room in gradients.blocks("c_proj.bias"):
        torch.sum(gradient, 0, out=room)
    if layers <= {"c_proj"}:
        return

    of_heads = _by_head(grad_value, num_heads)
    grad_position = None
    if not layers <= {"c_proj", "v_proj"}:
        grad_summed = workspace.take("wide", (num_heads, samples, width), gradient)
        torch.bmm(of_heads, head["v_proj.weight"].view(per_head), out=grad_summed)
        grad_attention = torch.bmm(grad_summed.transpose(0, 1), positioned.transpose(1, 2))
    if "positional_embedding" in layers:
        grad_position = _by_sample(attention.permute(1, 2, 0) @ of_heads) @ head["v_proj.weight"]
    _weight_gradients("v_proj.weight", of_heads, kept.summed.transpose(0, 1), gradients)
    for _, room in gradients.blocks("v_proj.bias"):
        torch.sum(grad_value, 0, out=room)
    if layers <= {"c_proj", "v_proj"}:
        return

    grad_attention.mul_(attention)
    grad_scores = grad_attention.addcmul_(
        attention, grad_attention.sum(dim=-1, keepdim=True), value=-1.0
    )
    absorbed = workspace.take("wide", (samples, num_heads, width), gradient)
    grad_absorbed = torch.bmm(grad_scores, positioned, out=absorbed).transpose(0, 1)
    grad_query = torch.bmm(grad_absorbed, head["k_proj.weight"].view(per_head).transpose(1, 2))
    if grad_position is not None:
        grad_position.addmm_(
            _by_sample(grad_scores.permute(1, 2, 0) @ _by_head(query, num_heads)),
            head["k_proj.weight"],
        )
    _weight_gradients("k_proj.weight", _by_head(query, num_heads), grad_absorbed, gradients)

    grad_projected = _by_sample(grad_query).mul_(1.0 / math.sqrt(per_head[1]))
    total = grad_projected.sum(0)
    for _, room in gradients.blocks("q_proj.bias"):
        room.copy_(total)
    if grad_position is not None:
        grad_position[0] += total @ head["q_proj.weight"]
        for rows, room in gradients.blocks("positional_embedding"):
            room.copy_(grad_position[rows])
    for rows, room in gradients.blocks("q_proj.weight"):
        torch.mm(grad_projected[:, rows].t(), positioned[:, 0], out=room)


def _weight_gradients(name: str, left: Tensor, right: Tensor, gradients: Gradients) -> None:
    """Write `left_h^T right_h` of every attention head: `[H, N, d]` x `[H, N, C]` -> `[C, C]`."""
    _, _, depth = left.shape
    for rows, room in gradients.blocks(name, unit=depth):
        heads = slice(rows.start // depth, rows.stop // depth)
        torch.bmm(
            left[heads].transpose(1, 2), right[heads], out=room.view(-1, depth, right.shape[-1])
        )


def _by_head(tensor: Tensor, num_heads: int) -> Tensor:
    """View `[N, C]` as `[H, N, d]`."""
    samples, width = tensor.shape
    return tensor.view(samples, num_heads, width // num_heads).transpose(0, 1)


def _by_sample(tensor: Tensor) -> Tensor:
    """Copy `[H, N, d]` to `[N, C]`."""
    num_heads, samples, depth = tensor.shape
    return tensor.transpose(0, 1).reshape(samples, num_heads * depth)


class _WholeGradients:
    """Gradients that are wanted as a whole: one block a parameter."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.wanted = frozenset(tensors)
        self._tensors = tensors

    def blocks(self, name: str, unit: int = 1) -> Iterator[tuple[slice, Tensor]]:
        if name in self.wanted:
            tensor = self._tensors[name]
            yield slice(0, len(tensor)), tensor


class _PoolHeads(torch.autograd.Function):
    """`pool_head` and `differentiate_head` of K stacked heads, as one node of a graph."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, num_heads: int, *stacked: Tensor) -> Tensor:
        kept, pooled = [], []
        for index in range(len(stacked[0])):
            head = {
                name: tensor[index]
                for name, tensor in zip(POOLING_PARAMETERS, stacked, strict=True)
            }
            features, needed = pool_head(tokens, head, num_heads, Workspace())
            pooled.append(features)
            kept.append(needed)
        ctx.kept, ctx.num_heads = kept, num_heads
        ctx.save_for_backward(*stacked)
        return torch.stack(pooled)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        stacked = dict(zip(POOLING_PARAMETERS, ctx.saved_tensors, strict=True))
        needed = dict(zip(POOLING_PARAMETERS, ctx.needs_input_grad[2:], strict=True))
        results = {
            # Only the key bias is never written: it cancels in the softmax.
            name: torch.zeros_like(stacked[name])
            if name == "k_proj.bias"
            else torch.empty_like(stacked[name])
            for name in POOLING_PARAMETERS
            if needed[name]
        }
        workspace = Workspace()
        for index, kept in enumerate(ctx.kept):
            differentiate_head(
                gradients[0][index].contiguous(),
                kept,
                {name: tensor[index] for name, tensor in stacked.items()},
                ctx.num_heads,
                _WholeGradients({name: tensor[index] for name, tensor in results.items()}),
                workspace,
            )
        return None, None, *(results.get(name) for name in POOLING_PARAMETERS)


def pool_heads(tokens: Tensor, state: Mapping[str, Tensor], num_heads: int) -> Tensor:
    """Pool a batch with K stacked heads, one after another; the parameters may require gradients.

    Args:
        tokens: `[N, T, C]`, the mean token first; they get no gradient.
        state: the stacked parameters, each of `POOLING_PARAMETERS` with a leading axis of K.
        num_heads: attention heads of the pooling.

    Returns:
        `[K, N, D]` pooled features: `safe_ray.heads.bank.pool_bank` with other rounding.
    """
    if torch.is_grad_enabled():
        pooled: Tensor = _PoolHeads.apply(
            tokens, num_heads, *(state[name] for name in POOLING_PARAMETERS)
        )
        return pooled
    workspace = Workspace()
    return torch.stack(
        [
            pool_head(tokens, {name: state[name][index] for name in state}, num_heads, workspace)[0]
            for index in range(len(state["positional_embedding"]))
        ]
    )
