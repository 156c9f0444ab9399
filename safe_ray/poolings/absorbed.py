"""One head's pooling with its derivative written out, for the fewest passes over memory.

It is the same function as `modified_resnet.pool_bank` with one candidate. On a CPU the stacked form
spends most of its time moving `[K, H, N, C]` intermediates; here one candidate is done at a time,
each intermediate is written once, into memory that is used again, in a layout that the next matrix
product takes as it is, and a gradient is handed over in blocks of rows that still lie in the cache.
With N samples, H attention heads of d = C / H rows, T = L + 1 tokens, x = tokens +
position, m = x[:, 0], and one product a line ("h" and "n" mark a product a head or a sample):

    forward                                       backward, from dO = the gradient of the output
    Q   = (m Wq^T + bq) / sqrt(d)   [N, C]        dV  = dO Wc              dWc   = dO^T V
    U_h = Q_h Wk_h                  [H, N, C]     dP_h = dV_h Wv_h         dWv_h = dV_h^T P_h
    S_n = U_n x_n^T                 [N, H, T]     dA_n = dP_n x_n^T
    A   = softmax(S)                [N, H, T]     dS  = A * (dA - sum_T(A * dA))
    P_n = A_n x_n                   [N, H, C]     dU_n = dS_n x_n
    V_h = P_h Wv_h^T + bv_h         [N, C]        dQ_h = dU_h Wk_h^T       dWk_h = Q_h^T dU_h
    O   = V Wc^T + bc               [N, D]        dm  = dQ Wq / sqrt(d)    dWq   = dQ^T m / sqrt(d)

The position's gradient is a sum over samples of x's, which need not be formed:
`dposition = sum_nh dS_nh^T U_nh + A_nh^T dP_nh`, one product `[T, 2 H N] x [2 H N, C]`, and its
first row has `(sum_n dQ_n) Wq / sqrt(d)` besides.

A small head's step is a hundred calls of some microseconds each, and threads that step side by
side wait for Python's lock between them: views are therefore made once (`Weights`, `Room`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safe_ray.heads.gradients import Gradients, Workspace, layers_of, shape_block

# The order in which `_PoolHeads` takes its tensors.
_NAMES = (
    "positional_embedding",
    "q_proj.weight",
    "q_proj.bias",
    "k_proj.weight",
    "k_proj.bias",
    "v_proj.weight",
    "v_proj.bias",
    "c_proj.weight",
    "c_proj.bias",
)


@dataclass(frozen=True)
class Weights:
    """One head's parameters, in the shapes in which products take them.

    Attributes:
        position: `[T, C]`.
        query: Wq, `[C, C]`.
        query_t: Wq^T.
        query_bias: bq, `[C]`.
        key: Wk, `[H, d, C]`.
        key_t: Wk_h^T, `[H, C, d]`.
        value: Wv, `[H, d, C]`.
        value_t: Wv_h^T, `[H, C, d]`.
        value_bias: bv, `[H, d]`.
        output: Wc, `[D, C]`.
        output_t: Wc^T.
        output_bias: bc, `[D]`.
    """

    position: Tensor
    query: Tensor
    query_t: Tensor
    query_bias: Tensor
    key: Tensor
    key_t: Tensor
    value: Tensor
    value_t: Tensor
    value_bias: Tensor
    output: Tensor
    output_t: Tensor
    output_bias: Tensor

    @classmethod
    def of(cls, head: Mapping[str, Tensor], num_heads: int) -> Weights:
        """View a head's tensors by `AttentionPool2d`'s names; the key bias has no part in it.

        Args:
            head: its tensors, of one dtype and device.
            num_heads: attention heads of the pooling; `C` must be a multiple of it.
        """
        width = head["q_proj.weight"].shape[-1]
        by_head = (num_heads, width // num_heads, width)
        key, value = head["k_proj.weight"].view(by_head), head["v_proj.weight"].view(by_head)
        return cls(
            position=head["positional_embedding"],
            query=head["q_proj.weight"],
            query_t=head["q_proj.weight"].t(),
            query_bias=head["q_proj.bias"],
            key=key,
            key_t=key.transpose(1, 2),
            value=value,
            value_t=value.transpose(1, 2),
            value_bias=head["v_proj.bias"].view(by_head[:2]),
            output=head["c_proj.weight"],
            output_t=head["c_proj.weight"].t(),
            output_bias=head["c_proj.bias"],
        )


class Room:
    """Memory for one head's passes over N samples, and its views (see the module for the letters).

    What the forward pass leaves in it is what the backward pass needs.

    Args:
        tokens: `[N, T, C]`, what will be pooled or the like of it.
        num_heads: attention heads of the pooling.
        workspace: where the memory is from; one that is shared is shared by turns.
    """

    def __init__(self, tokens: Tensor, num_heads: int, workspace: Workspace) -> None:
        samples, length, width = tokens.shape
        depth = width // num_heads
        self._like, self._workspace = tokens, workspace
        self.scale = 1.0 / math.sqrt(depth)

        self.x = self._take("x", samples, length, width)
        self.x_t = self.x.transpose(1, 2)
        self.m = self.x[:, 0]
        self.q = self._take("q", samples, width)
        self.q_h = _by_head(self.q, num_heads)
        # U and dP lie together, and so will dS and A.
        self.u_dp = self._take("u_dp", 2, num_heads, samples, width)
        self.u, self.dp = self.u_dp.unbind()
        self.u_n = self.u.transpose(0, 1)
        self.s = self._take("s", samples, num_heads, length)
        self.a = self._take("a", samples, num_heads, length)
        self.p = self._take("p", samples, num_heads, width)
        self.p_h = self.p.transpose(0, 1)
        self.v_h = self._take("v_h", num_heads, samples, depth)
        self.v_hn = self.v_h.transpose(0, 1)
        self.v_nhd = self._take("v", samples, num_heads, depth)
        self.v = self.v_nhd.view(samples, width)

        self.dv = self._take("dv", samples, width)
        self.dv_h = _by_head(self.dv, num_heads)
        self.dv_ht = self.dv_h.transpose(1, 2)
        self.dp_n = self.dp.transpose(0, 1)
        self.da = self._take("da", samples, num_heads, length)
        self.along = self._take("along", samples, num_heads, 1)
        # P has been used when dU is written, and V_h when dQ_h is.
        self.du, self.du_h = self.p, self.p_h
        self.dq_h, self.dq_hn = self.v_h, self.v_hn
        self.q_ht = self.q_h.transpose(1, 2)
        self.dq_nhd = self._take("dq", samples, num_heads, depth)
        self.dq = self.dq_nhd.view(samples, width)
        self.dq_t = self.dq.t()
        self.ds_a = self._take("ds_a", 2, num_heads, samples, length)
        self.ds_n, self.a_n = (half.transpose(0, 1) for half in self.ds_a.unbind())
        self.ds_a_t = self.ds_a.view(-1, length).t()
        self.u_dp_rows = self.u_dp.view(-1, width)
        self.dposition = self._take("dposition", length, width)
        self.dposition_0 = self.dposition[0]

    def _take(self, name: str, *shape: int) -> Tensor:
        return self._workspace.take(name, shape, self._like)


def pool_head(tokens: Tensor, weights: Weights, room: Room) -> Tensor:
    """Pool a batch of dense maps with one head; no graph is recorded.

    Args:
        tokens: `[N, T, C]`, the mean token first (see `modified_resnet.with_mean_token`).
        weights: of the tokens' dtype and device.
        room: for as many samples.

    Returns:
        `[N, D]` pooled features, not normalised.
    """
    torch.add(tokens, weights.position, out=room.x)
    torch.addmm(
        weights.query_bias, room.m, weights.query_t, beta=room.scale, alpha=room.scale, out=room.q
    )
    torch.bmm(room.q_h, weights.key, out=room.u)
    torch.bmm(room.u_n, room.x_t, out=room.s)
    torch.softmax(room.s, dim=-1, out=room.a)
    torch.bmm(room.a, room.x, out=room.p)
    torch.bmm(room.p_h, weights.value_t, out=room.v_h)
    torch.add(room.v_hn, weights.value_bias, out=room.v_nhd)
    return torch.addmm(weights.output_bias, room.v, weights.output_t)


def differentiate_head(
    gradient: Tensor, weights: Weights, room: Room, gradients: Gradients
) -> None:
    """Hand the gradients of one head's parameters to `gradients`.

    A weight is not read again once its gradient has been asked for, so that it may be updated then.

    Args:
        gradient: `[N, D]`, with respect to the pooled features.
        weights: as in the forward pass.
        room: as the forward pass left it; it is written over, so that it serves once.
        gradients: where they go; nothing is computed for what it does not want.
    """
    layers = gradients.layers

    torch.mm(gradient, weights.output, out=room.dv)
    for rows, memory in gradients.blocks("c_proj.weight"):
        torch.mm(_part(gradient.t(), rows), room.v, out=memory)
    for _, memory in gradients.blocks("c_proj.bias"):
        torch.sum(gradient, 0, out=memory)
    if layers <= {"c_proj"}:
        return

    deeper = not layers <= {"c_proj", "v_proj"}
    if deeper:
        torch.bmm(room.dv_h, weights.value, out=room.dp)
        torch.bmm(room.dp_n, room.x_t, out=room.da)
    _weight_gradients("v_proj.weight", room.dv_ht, room.p_h, gradients)
    for _, memory in gradients.blocks("v_proj.bias"):
        torch.sum(room.dv, 0, out=memory)
    if not deeper:
        return

    torch.mul(room.a, room.da, out=room.s)
    torch.sum(room.s, dim=-1, keepdim=True, out=room.along)
    ds = torch.addcmul(room.s, room.a, room.along, value=-1.0, out=room.s)
    torch.bmm(ds, room.x, out=room.du)
    torch.bmm(room.du_h, weights.key_t, out=room.dq_h)
    _weight_gradients("k_proj.weight", room.q_ht, room.du_h, gradients)

    torch.mul(room.dq_hn, room.scale, out=room.dq_nhd)
    total = torch.sum(room.dq, 0)
    for _, memory in gradients.blocks("q_proj.bias"):
        memory.copy_(total)
    if "positional_embedding" in layers:
        room.ds_n.copy_(ds)
        room.a_n.copy_(room.a)
        torch.mm(room.ds_a_t, room.u_dp_rows, out=room.dposition)
        room.dposition_0.addmv_(weights.query_t, total)
        for rows, memory in gradients.blocks("positional_embedding"):
            memory.copy_(_part(room.dposition, rows))
    for rows, memory in gradients.blocks("q_proj.weight"):
        torch.mm(_part(room.dq_t, rows), room.m, out=memory)


def _weight_gradients(name: str, left_t: Tensor, right: Tensor, gradients: Gradients) -> None:
    """Write `left_h^T right_h` of every attention head: `[H, d, N]` and `[H, N, C]`."""
    for heads, memory in gradients.blocks(name, unit=left_t.shape[1]):
        torch.bmm(_part(left_t, heads), _part(right, heads), out=memory)


def _part(tensor: Tensor, rows: slice) -> Tensor:
    """Slice the first axis, unless that changes nothing."""
    return tensor if rows.stop - rows.start == tensor.shape[0] else tensor[rows]


def _by_head(tensor: Tensor, num_heads: int) -> Tensor:
    """View `[N, C]` as `[H, N, d]`."""
    samples, width = tensor.shape
    return tensor.view(samples, num_heads, width // num_heads).transpose(0, 1)


class _WholeGradients:
    """Gradients that are wanted as a whole: one block a parameter."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.layers = layers_of(tensors)
        self._tensors = tensors

    def blocks(self, name: str, unit: int = 0) -> Iterator[tuple[slice, Tensor]]:
        if name in self._tensors:
            block = shape_block(self._tensors[name], unit)
            yield slice(0, len(block)), block


class _PoolHeads(torch.autograd.Function):
    """`pool_head` and `differentiate_head` of K stacked heads, as one node of a graph."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, num_heads: int, *stacked: Tensor) -> Tensor:
        rooms = [Room(tokens, num_heads, Workspace()) for _ in stacked[0]]
        pooled = [
            pool_head(tokens, weights, room)
            for weights, room in zip(_each(stacked, num_heads), rooms, strict=True)
        ]
        ctx.rooms, ctx.num_heads = rooms, num_heads
        ctx.save_for_backward(*stacked)
        return torch.stack(pooled)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rooms, ctx.rooms = ctx.rooms, None
        if rooms is None:
            raise RuntimeError("a bank's graph serves one backward pass: run the bank again")
        stacked = dict(zip(_NAMES, ctx.saved_tensors, strict=True))
        needed = dict(zip(_NAMES, ctx.needs_input_grad[2:], strict=True))
        results = {
            # Only the key bias is never written: it cancels in the softmax.
            name: torch.zeros_like(stacked[name])
            if name == "k_proj.bias"
            else torch.empty_like(stacked[name])
            for name in _NAMES
            if needed[name]
        }
        each = zip(gradients[0], _each(ctx.saved_tensors, ctx.num_heads), rooms, strict=True)
        for index, (gradient, weights, room) in enumerate(each):
            mine = {name: tensor[index] for name, tensor in results.items()}
            differentiate_head(gradient.contiguous(), weights, room, _WholeGradients(mine))
        return None, None, *(results.get(name) for name in _NAMES)


def _each(stacked: Sequence[Tensor], num_heads: int) -> list[Weights]:
    """Return the weights of each of K stacked heads, given in the order of their names."""
    return [
        Weights.of(dict(zip(_NAMES, head, strict=True)), num_heads)
        for head in zip(*stacked, strict=True)
    ]


def pool_heads(tokens: Tensor, state: Mapping[str, Tensor], num_heads: int) -> Tensor:
    """Pool a batch with K stacked heads, one after another; the parameters may require gradients.

    Args:
        tokens: `[N, T, C]`, the mean token first; they get no gradient.
        state: the stacked parameters by `AttentionPool2d`'s names, with a leading axis of K.
        num_heads: attention heads of the pooling.

    Returns:
        `[K, N, D]` pooled features: `modified_resnet.pool_bank` with other rounding.
    """
    stacked = [state[name] for name in _NAMES]
    if torch.is_grad_enabled():
        pooled: Tensor = _PoolHeads.apply(tokens, num_heads, *stacked)
        return pooled
    room = Room(tokens, num_heads, Workspace())
    return torch.stack([pool_head(tokens, each, room) for each in _each(stacked, num_heads)])


@dataclass(frozen=True)
class AbsorbedHead:
    """The parts above as a `safe_ray.heads.step.SingleHead`.

    Attributes:
        num_heads: attention heads of the pooling.
    """

    num_heads: int

    def weights(self, head: Mapping[str, Tensor]) -> Weights:
        """View a head's tensors in the shapes of the products."""
        return Weights.of(head, self.num_heads)

    def room(self, tokens: Tensor, workspace: Workspace) -> Room:
        """Return the memory of a pass over tokens of this shape."""
        return Room(tokens, self.num_heads, workspace)

    def pool(self, tokens: Tensor, weights: Weights, room: Room) -> Tensor:
        """Pool the tokens: `[N, D]`."""
        return pool_head(tokens, weights, room)

    def differentiate(
        self, gradient: Tensor, weights: Weights, room: Room, gradients: Gradients
    ) -> None:
        """Hand over the gradients of the pass that `room` has."""
        differentiate_head(gradient, weights, room, gradients)
