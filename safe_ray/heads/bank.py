"""A bank: K heads of one task that share every batch of dense maps.

What a head computes is its pooling's business (`safe_ray.poolings`); a bank stacks the parameters
of K of them, and knows the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safe_ray.poolings.base import HeadState, Pooling


def tuned_logits(pooled: Tensor, classifier: Tensor, logit_scale: float | Tensor) -> Tensor:
    """Class logits of pooled features: `[..., N, D]` x `[classes, D]` -> `[..., N, classes]`.

    The features are normalised here; the classifier's rows already are.
    """
    features = nn.functional.normalize(pooled, dim=-1)
    return logit_scale * (features @ classifier.t())


class Bank(nn.Module):
    """K candidate heads of one task, as stacked fp32 master weights.

    Args:
        heads: the states of the K heads, with the tower's own parameter names.
        pooling: what they are states of.
        trained: the parameter names that require a gradient (see `select_parameters`).
        classifier: `[classes, D]` normalised text embeddings, on the device of the bank.
        logit_scale: the model's, already exponentiated.
        precision: the pooling's arithmetic: weights and tokens are rounded to it for each pass.
            None is that of the weights; the loss is that in any case.
        temperatures: one a head, with which the loss multiplies the logit scale; None is 1 for all.
        anchor: the original head, for `logit_pulls`.
        logit_pulls: one a head, the weight in the loss of the mean absolute difference, over the
            classes, of its logits to the original head's, both at the model's own scale. None is 0
            for all.
        shared: what all heads have alike beside their own states, and nobody trains. It is held
            once; the pooling sees it with a leading axis of K, whose entries are the same memory.
    """

    classifier: Tensor
    _pulls: Tensor
    _scales: Tensor

    def __init__(
        self,
        heads: Sequence[HeadState],
        pooling: Pooling,
        trained: Sequence[str],
        classifier: Tensor,
        logit_scale: float,
        precision: torch.dtype | None = None,
        temperatures: Sequence[float] | None = None,
        anchor: HeadState | None = None,
        logit_pulls: Sequence[float] | None = None,
        shared: HeadState | None = None,
    ) -> None:
        super().__init__()
        self.precision = precision
        self.pooling = pooling
        self.logit_scale = logit_scale
        self.trained = tuple(name for name in heads[0] if name in trained)
        # A module cannot register names with dots.
        self._attributes = {name: name.replace(".", "_") for name in heads[0]}
        for name, attribute in self._attributes.items():
            stacked = torch.stack([head[name].detach().float() for head in heads])
            stacked = stacked.to(classifier.device)
            if name in self.trained and name not in pooling.inert:
                self.register_parameter(attribute, nn.Parameter(stacked))
            else:
                self.register_buffer(attribute, stacked)
        self._shared = {
            name: tensor.detach().to(classifier.device, precision or torch.float32)
            for name, tensor in (shared or {}).items()
        }
        self.register_buffer("classifier", classifier.float())
        self._size = len(heads)
        self.temperatures = tuple(temperatures or (1.0,) * len(heads))
        scales = torch.tensor([logit_scale * value for value in self.temperatures])
        self.register_buffer("_scales", scales.view(-1, 1, 1).to(self.classifier))
        self.is_pulled = anchor is not None and any(logit_pulls or ())
        self.register_buffer("_pulls", torch.tensor(logit_pulls or [0.0]).to(self.classifier))
        # One head for all candidates; its gradient is never asked for.
        self._anchor = {
            name: tensor.detach().float().to(classifier.device).unsqueeze(0)
            for name, tensor in (anchor or {}).items()
            if self.is_pulled
        }

    def __len__(self) -> int:
        return self._size

    def stacked(self, name: str) -> Tensor:
        """Return the parameter of that name for all candidates, `[K, ...]`."""
        tensor: Tensor = getattr(self, self._attributes[name])
        return tensor

    def head(self, index: int) -> dict[str, Tensor]:
        """Return views of candidate `index`'s parameters, with the tower's own names."""
        return {name: self.stacked(name).detach()[index] for name in self._attributes}

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool tokens that the pooling has prepared with every head: `[K, N, D]`."""
        state = {name: self.stacked(name) for name in self._attributes}
        if self.precision is not None:
            state = {name: tensor.to(self.precision) for name, tensor in state.items()}
            tokens = tokens.to(self.precision)
        for name, tensor in self._shared.items():
            state[name] = tensor.expand(self._size, *tensor.shape)
        return self.pooling.pool(tokens, state).to(self.classifier.dtype)

    def forward(self, tokens: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of each candidate's cross-entropy over the batch.

        Args:
            tokens: as the pooling's `prepare` returns them, for N samples.
            labels: `[N]` int64 class indices.
            weights: `[K, N]`, what each sample counts for each candidate (0 leaves it out).

        Returns:
            `[K]` losses in nats. Their sum may be differentiated at once: no candidate's loss
            depends on another's parameters.
        """
        return self.losses(self.pool(tokens), labels, weights, self._anchored(tokens))

    @torch.no_grad()
    def _anchored(self, tokens: Tensor) -> Tensor | None:
        """Return the original head's logits `[1, N, classes]`, if any head is pulled to them."""
        if not self.is_pulled:
            return None
        pooled = self.pooling.pool(tokens, self._anchor).to(self.classifier.dtype)
        return tuned_logits(pooled, self.classifier, self.logit_scale)

    def losses(
        self, pooled: Tensor, labels: Tensor, weights: Tensor, anchored: Tensor | None = None
    ) -> Tensor:
        """Return what `forward` does, from features `[K, N, D]` as the pooling returns them.

        `anchored` are the original head's logits, for heads that are pulled to them.
        """
        logits = tuned_logits(pooled, self.classifier, self._scales)
        candidates, samples, classes = logits.shape
        losses = nn.functional.cross_entropy(
            logits.reshape(candidates * samples, classes),
            labels.repeat(candidates),
            reduction="none",
        )
        # A left-out sample must not pass on a NaN, which a product with zero would.
        losses = losses.view(candidates, samples)
        if anchored is not None:
            # What is compared is at the model's own scale, whatever the temperature.
            own = tuned_logits(pooled, self.classifier, self.logit_scale)
            losses = losses + self._pulls.unsqueeze(1) * (own - anchored).abs().mean(-1)
        losses = losses.masked_fill(weights == 0, 0.0)
        return (losses * weights).sum(dim=1)
