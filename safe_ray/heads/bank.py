"""A bank: K attention-pooling heads that share every batch of dense maps.

The pooling has a single query, the mean token, so keys and values need never be formed for the
tokens. With `q = W_q t_0 + b_q` and, per attention head, `u = W_k^T q / sqrt(d)`, the scores are
`u . t_i` (the key bias adds the same constant to every score and cancels in the softmax), and
`W_v` is applied once, after the weighted sum of the tokens. The result is the same function as
`open_clip.modified_resnet.AttentionPool2d`, for a small part of its multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from safe_ray.backbones.pooling import POOLING_PARAMETERS
from safe_ray.heads.single import pool_heads

TRAINABLE_GROUPS = ("positional_embedding", "q_proj", "k_proj", "v_proj", "c_proj")
"""What a choice of trained parameters may name: a layer stands for its weight and its bias."""

HeadState = Mapping[str, Tensor]
"""One head: every name of `POOLING_PARAMETERS` with its tensor."""


def select_parameters(groups: Sequence[str] | str) -> tuple[str, ...]:
    """Return the parameter names that `groups` ("all", or names of layers) stand for.

    Raises:
        ValueError: a name is not in `TRAINABLE_GROUPS`, or none is given.
    """
    chosen = TRAINABLE_GROUPS if groups == "all" else tuple(groups)
    unknown = [group for group in chosen if group not in TRAINABLE_GROUPS]
    if unknown or not chosen:
        raise ValueError(f"trained parameters {chosen} are not among {TRAINABLE_GROUPS}")
    return tuple(name for name in POOLING_PARAMETERS if name.split(".")[0] in chosen)


def with_mean_token(maps: Tensor) -> Tensor:
    """Put each map's mean token in front of its tokens: `[N, L, C]` -> `[N, L + 1, C]` float32."""
    samples, length, width = maps.shape
    tokens = torch.empty(samples, length + 1, width, device=maps.device)
    tokens[:, 1:] = maps
    torch.mean(tokens[:, 1:], dim=1, out=tokens[:, 0])
    return tokens


def pool_bank(tokens: Tensor, state: Mapping[str, Tensor], num_heads: int) -> Tensor:
    """Pool a batch of dense maps with every head of a bank.

    Args:
        tokens: `[N, L + 1, C]`, the mean token first (see `with_mean_token`).
        state: the stacked parameters, each of `POOLING_PARAMETERS` with a leading axis of K.
        num_heads: attention heads of the pooling; `C` must be a multiple of it.

    Returns:
        `[K, N, D]` pooled features, as the pooling returns them (not normalised).
    """
    position = state["positional_embedding"]
    candidates, length, width = position.shape
    samples = tokens.shape[0]
    depth = width // num_heads
    rows = num_heads * samples

    mean_token = tokens[:, 0] + position[:, :1]  # [K, N, C]
    query = torch.baddbmm(
        state["q_proj.bias"].unsqueeze(1), mean_token, state["q_proj.weight"].transpose(1, 2)
    )
    query = query * (1.0 / math.sqrt(depth))
    query = query.view(candidates, samples, num_heads, depth).transpose(1, 2)
    key_weight = state["k_proj.weight"].view(candidates, num_heads, depth, width)
    absorbed = query @ key_weight  # [K, H, N, C]

    # Token scores are one product a sample over all candidates and heads; the positional part is
    # the same for every sample, so it is one product a candidate.
    per_sample = absorbed.permute(2, 0, 1, 3).reshape(samples, candidates * num_heads, width)
    token_scores = torch.bmm(per_sample, tokens.transpose(1, 2))
    token_scores = token_scores.view(samples, candidates, num_heads, length).permute(1, 2, 0, 3)
    position_scores = torch.bmm(
        absorbed.reshape(candidates, rows, width), position.transpose(1, 2)
    ).view(candidates, num_heads, samples, length)
    attention = torch.softmax(token_scores + position_scores, dim=-1)  # [K, H, N, L + 1]

    per_sample = attention.permute(2, 0, 1, 3).reshape(samples, candidates * num_heads, length)
    pooled = torch.bmm(per_sample, tokens)
    pooled = pooled.view(samples, candidates, num_heads, width).permute(1, 2, 0, 3)
    pooled = pooled + torch.bmm(attention.reshape(candidates, rows, length), position).view(
        candidates, num_heads, samples, width
    )

    value_weight = state["v_proj.weight"].view(candidates, num_heads, depth, width)
    value = pooled @ value_weight.transpose(2, 3)  # [K, H, N, d]
    value = value.transpose(1, 2).reshape(candidates, samples, width)
    value = value + state["v_proj.bias"].unsqueeze(1)
    return torch.baddbmm(
        state["c_proj.bias"].unsqueeze(1), value, state["c_proj.weight"].transpose(1, 2)
    )


def tuned_logits(pooled: Tensor, classifier: Tensor, logit_scale: float) -> Tensor:
    """Class logits of pooled features: `[..., N, D]` x `[classes, D]` -> `[..., N, classes]`.

    The features are normalised here; the classifier's rows already are.
    """
    features = nn.functional.normalize(pooled, dim=-1)
    return logit_scale * (features @ classifier.t())


class Bank(nn.Module):
    """K candidate heads of one task, as stacked fp32 master weights.

    Args:
        heads: the states of the K heads, with open_clip's parameter names.
        num_heads: attention heads of the pooling.
        trained: the parameter names that require a gradient (see `select_parameters`).
        classifier: `[classes, D]` normalised text embeddings, on the device of the bank.
        logit_scale: the model's, already exponentiated.
        precision: the pooling's arithmetic: weights and tokens are rounded to it for each pass.
            None is that of the weights; the loss is that in any case.
    """

    classifier: Tensor

    def __init__(
        self,
        heads: Sequence[HeadState],
        num_heads: int,
        trained: Sequence[str],
        classifier: Tensor,
        logit_scale: float,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.precision = precision
        self.num_heads = num_heads
        self.logit_scale = logit_scale
        self.trained = tuple(name for name in POOLING_PARAMETERS if name in trained)
        # A module cannot register names with dots.
        self._attributes = {name: name.replace(".", "_") for name in POOLING_PARAMETERS}
        for name, attribute in self._attributes.items():
            stacked = torch.stack([head[name].detach().float() for head in heads])
            stacked = stacked.to(classifier.device)
            # The key bias cancels in the softmax, so that its gradient is exactly zero.
            has_gradient = name in self.trained and name != "k_proj.bias"
            if has_gradient:
                self.register_parameter(attribute, nn.Parameter(stacked))
            else:
                self.register_buffer(attribute, stacked)
        self.register_buffer("classifier", classifier.float())

    def __len__(self) -> int:
        return int(self.stacked("positional_embedding").shape[0])

    def stacked(self, name: str) -> Tensor:
        """Return the parameter of that name for all candidates, `[K, ...]`."""
        tensor: Tensor = getattr(self, self._attributes[name])
        return tensor

    def head(self, index: int) -> dict[str, Tensor]:
        """Return views of candidate `index`'s parameters, with open_clip's names."""
        return {name: self.stacked(name).detach()[index] for name in POOLING_PARAMETERS}

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool `[N, L + 1, C]` tokens (mean token first) with every head: `[K, N, D]`."""
        state = {name: self.stacked(name) for name in POOLING_PARAMETERS}
        if self.precision is not None:
            state = {name: tensor.to(self.precision) for name, tensor in state.items()}
            tokens = tokens.to(self.precision)
        pool = self.pooling_on(tokens.device)
        return pool(tokens, state, self.num_heads).to(self.classifier.dtype)

    @staticmethod
    def pooling_on(device: torch.device) -> Callable[[Tensor, HeadState, int], Tensor]:
        """Return the form of the pooling that is the faster one on a device."""
        # A GPU is kept busy by the stacked form; a CPU's caches are too small for it.
        return pool_heads if device.type == "cpu" else pool_bank

    def forward(self, tokens: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of each candidate's cross-entropy over the batch.

        Args:
            tokens: `[N, L + 1, C]`, the mean token first.
            labels: `[N]` int64 class indices.
            weights: `[K, N]`, what each sample counts for each candidate (0 leaves it out).

        Returns:
            `[K]` losses in nats. Their sum may be differentiated at once: no candidate's loss
            depends on another's parameters.
        """
        return self.losses(self.pool(tokens), labels, weights)

    def losses(self, pooled: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return what `forward` does, from features `[K, N, D]` as the pooling returns them."""
        logits = tuned_logits(pooled, self.classifier, self.logit_scale)
        candidates, samples, classes = logits.shape
        losses = nn.functional.cross_entropy(
            logits.reshape(candidates * samples, classes),
            labels.repeat(candidates),
            reduction="none",
        )
        # A left-out sample must not pass on a NaN, which a product with zero would.
        losses = losses.view(candidates, samples).masked_fill(weights == 0, 0.0)
        return (losses * weights).sum(dim=1)
