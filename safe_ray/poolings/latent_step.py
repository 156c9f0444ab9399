"""One head's pooling by a latent, its derivative written out, for the fewest passes over memory.

It is the same function as `LatentAttention.pool` with one head. By autograd a bank's gradients are
written whole, and read again by the optimiser; here each is handed over in blocks of rows that
still lie in the cache. With N samples of tokens x `[L, C]`, H heads of attention of d = C / H rows,
and one product a line ("h" and "n" mark a product a head of attention or a sample):

    forward                                      backward, from dE = the gradient of the embedding
    q   = Wq latent + bq            [C]          dO  = dE Wh               dWh   = dE^T O
    U_h = Wk_h^T q_h / sqrt(d)      [H, C]       dG  = dO W2               dW2   = dO^T G
    S   = x U^T                     [N, H, L]    dZ  = dF W1               dW1   = dF^T Z
    A   = softmax(S)                [N, H, L]    dY  = dO + norm'(dZ)
    P_n = A_n x_n                   [N, H, C]    dV  = dY Wp               dWp   = dY^T V
    V_h = P_h Wv_h^T + bv_h         [N, C]       dP_h = dV_h Wv_h          dWv_h = dV_h^T P_h
    Y   = V Wp^T + bp               [N, C]       dA_n = dP_n x_n^T
    Z   = norm(Y)                   [N, C]       dS  = A * (dA - sum_L(A * dA))
    F   = Z W1^T + b1               [N, M]       dU  = sum_n dS_n x_n
    G   = act(F)                    [N, M]       dq_h = dU_h Wk_h^T / sqrt(d)
    O   = Y + G W2^T + b2           [N, C]       dWk_h = q_h^T dU_h / sqrt(d)
    E   = O Wh^T + bh               [N, D]       dlatent = dq Wq           dWq   = dq^T latent

Without a head, E is O.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safe_ray.heads.gradients import Gradients, Workspace
from safe_ray.poolings.layers import ACTIVATIONS, differentiate_activation

POOL = "attn_pool."
_HEAD = frozenset({"head"})


@dataclass(frozen=True)
class Room:
    """What the forward pass leaves for the backward pass, by the letters of the module."""

    tokens: Tensor
    kept: dict[str, Tensor]


@dataclass(frozen=True)
class LatentHead:
    """The parts above as a `safe_ray.heads.step.SingleHead`.

    Attributes:
        num_heads: attention heads; C is a multiple of it.
        activation: of the MLP.
        epsilon: of the norm.
    """

    num_heads: int
    activation: str
    epsilon: float

    def weights(self, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """View a head's tensors by the names that the passes have for them."""
        named = {name.removeprefix(POOL): tensor for name, tensor in head.items()}
        width = named["kv.weight"].shape[1]
        by_head = (2, self.num_heads, width // self.num_heads, width)
        key, value = named["kv.weight"].view(by_head).unbind()
        named |= {"key": key, "value": value, "value.bias": named["kv.bias"][width:]}
        named["latent_row"] = named["latent"].view(1, width)
        return named

    def room(self, tokens: Tensor, workspace: Workspace) -> Room:
        """Return a place for what a pass over tokens of this shape leaves."""
        return Room(tokens, {})

    def pool(self, tokens: Tensor, weights: Mapping[str, Tensor], room: Room) -> Tensor:
        """Pool the tokens: `[N, D]`."""
        w, kept = weights, room.kept
        samples, length, width = tokens.shape
        heads, depth = self.num_heads, width // self.num_heads
        query = torch.addmm(w["q.bias"], w["latent_row"], w["q.weight"].t())
        query = query.view(heads, 1, depth) * (1.0 / math.sqrt(depth))
        absorbed = torch.bmm(query, w["key"]).squeeze(1)
        scores = (tokens.view(-1, width) @ absorbed.t()).view(samples, length, heads)
        attention = torch.softmax(scores.transpose(1, 2).contiguous(), dim=-1)
        pooled = torch.bmm(attention, tokens)
        value = torch.bmm(pooled.transpose(0, 1), w["value"].transpose(1, 2))
        value = value.transpose(0, 1).reshape(samples, width) + w["value.bias"]
        output = torch.addmm(w["proj.bias"], value, w["proj.weight"].t())
        normal, mean, deviation = torch.native_layer_norm(
            output, (width,), w["norm.weight"], w["norm.bias"], self.epsilon
        )
        before = torch.addmm(w["mlp.fc1.bias"], normal, w["mlp.fc1.weight"].t())
        hidden = ACTIVATIONS[self.activation](before)
        whole = torch.addmm(w["mlp.fc2.bias"], hidden, w["mlp.fc2.weight"].t()).add_(output)
        kept.update(
            tokens=tokens,
            query=query,
            attention=attention,
            pooled=pooled,
            value=value,
            output=output,
            mean=mean,
            deviation=deviation,
            normal=normal,
            before=before,
            hidden=hidden,
            whole=whole,
        )
        if "head.weight" not in w:
            return whole
        return nn.functional.linear(whole, w["head.weight"], w.get("head.bias"))

    def differentiate(
        self, gradient: Tensor, weights: Mapping[str, Tensor], room: Room, gradients: Gradients
    ) -> None:
        """Hand over the gradients of the pass that `room` has."""
        w, kept = weights, room.kept
        along = gradient
        if "head.weight" in w:
            along = gradient @ w["head.weight"]
            _linear("head", gradient, kept["whole"], gradients)
            if gradients.layers <= _HEAD:
                return
        # A weight is read for the last time before its gradient is asked for.
        hidden = along @ w["mlp.fc2.weight"]
        _linear(POOL + "mlp.fc2", along, kept["hidden"], gradients)
        before = differentiate_activation(self.activation, hidden, kept["before"])
        normal = before @ w["mlp.fc1.weight"]
        _linear(POOL + "mlp.fc1", before, kept["normal"], gradients)
        output, scale, shift = torch.ops.aten.native_layer_norm_backward(
            normal,
            kept["output"],
            [along.shape[1]],
            kept["mean"],
            kept["deviation"],
            w["norm.weight"],
            w["norm.bias"],
            [True, True, True],
        )
        for name, found in (("weight", scale), ("bias", shift)):
            for _, memory in gradients.blocks(f"{POOL}norm.{name}"):
                memory.copy_(found)
        output = output.add_(along)
        value = output @ w["proj.weight"]
        _linear(POOL + "proj", output, kept["value"], gradients)
        self._attention(value, w, kept, gradients)

    def _attention(
        self, value: Tensor, w: Mapping[str, Tensor], kept: dict[str, Any], gradients: Gradients
    ) -> None:
        """Go on from the gradient of the values, `[N, C]`."""
        tokens, attention, query = kept["tokens"], kept["attention"], kept["query"]
        samples, length, width = tokens.shape
        heads, depth = self.num_heads, width // self.num_heads
        by_head = value.view(samples, heads, depth).transpose(0, 1)
        pooled = torch.bmm(by_head, w["value"]).transpose(0, 1)
        scores = torch.bmm(pooled, tokens.transpose(1, 2)).mul_(attention)
        scores.addcmul_(attention, scores.sum(-1, keepdim=True), value=-1.0)
        rows = scores.transpose(0, 1).reshape(heads, samples * length)
        absorbed = (rows @ tokens.view(-1, width)).unsqueeze(1)
        asked = torch.bmm(absorbed, w["key"].transpose(1, 2)) * (1.0 / math.sqrt(depth))
        asked = asked.view(1, width)
        latent = asked @ w["q.weight"]

        # The keys' half comes first.
        for part, memory in gradients.blocks(POOL + "kv.weight", unit=depth):
            middle = min(max(part.start, heads), part.stop)
            keys, values = slice(part.start, middle), slice(middle - heads, part.stop - heads)
            count = middle - part.start
            if count:
                torch.bmm(query[keys].transpose(1, 2), absorbed[keys], out=memory[:count])
            if part.stop > middle:
                left = by_head[values].transpose(1, 2)
                torch.bmm(left, kept["pooled"].transpose(0, 1)[values], out=memory[count:])
        for _, memory in gradients.blocks(POOL + "kv.bias"):
            # What it adds to the scores of a sample is the same for all tokens.
            memory[:width].zero_()
            torch.sum(value, 0, out=memory[width:])
        for rows_of, memory in gradients.blocks(POOL + "q.weight"):
            torch.mm(asked[:, rows_of].t(), w["latent_row"], out=memory)
        for _, memory in gradients.blocks(POOL + "q.bias"):
            memory.copy_(asked[0])
        for _, memory in gradients.blocks(POOL + "latent"):
            memory.copy_(latent.view_as(memory))


def _linear(name: str, gradient: Tensor, inputs: Tensor, gradients: Gradients) -> None:
    """Write the gradients of a linear layer, from that of what it returned."""
    for rows, memory in gradients.blocks(f"{name}.weight"):
        torch.mm(gradient[:, rows].t(), inputs, out=memory)
    for _, memory in gradients.blocks(f"{name}.bias"):
        torch.sum(gradient, 0, out=memory)
