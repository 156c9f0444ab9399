"""A linear probe: a classifier that begins as the text embeddings and is penalised towards them.

With f a normalised feature, `t_c` the text embedding of class c and s the logit scale, the logits
`s f w_c` are trained on the support samples with

    cross-entropy + mean over c of lambda_c |w_c - t_c|^2
    lambda_c = mean probability that zero-shot CLIP gives the right class, over the support samples
               of class c, in all views and with the original pooling

and the knob b blends the trained classifier with the text:

    logit of c = s f ((1 - b) t_c + b w_c)

With `text="mix"`, the trained classifier is `v_c + a_c t_c`, where v begins at 0 and the weight a_c
of each class's text at 1, and is trained as well; the penalty is then on v.

Sources: CLAP, Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large
Vision-Language Models", CVPR 2024 (github.com/jusiro/CLAP), for the penalty and its weights; LP++,
Huang et al., CVPR 2024 (github.com/FereshteShakeri/FewShot-CLIP-Strong-Baseline), for the mix.
Both train with steps of their own (SGD; steps that the data decide), this with AdamW, whose
learning rate is searched. CLAP normalises `w_c` in its logits and begins at embeddings that are not
normalised; here they begin normalised, and their length is trained as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from safe_ray.heads.bank import tuned_logits
from safe_ray.methods.base import At, Fitted, Recipe, TaskData, Values
from safe_ray.methods.feature_training import Stacked, train_on_features
from safe_ray.methods.features import Features
from safe_ray.methods.knobs import Grid, KnobSums, sums_of_logits
from safe_ray.methods.linear import Linear
from safe_ray.poolings.base import HeadState

# What the probe keeps, beside the head's parameters under the tower's own names.
_WEIGHTS = "adapter.weights"


@dataclass(frozen=True)
class Probe:
    """A linear probe.

    Attributes:
        features: whose: the `original` pooling's, or `safe`'s blended ones.
        text: `start`, or `mix` (see the module).
        penalised: whether the classifier is penalised towards the text.
        train_alpha: the alpha of the features that `safe`'s probe is trained on.
        parameters: which parts of the pooling are trained: "all", or some of its groups.
    """

    features: Literal["original", "safe"] = "original"
    text: Literal["start", "mix"] = "start"
    penalised: bool = True
    train_alpha: float = 0.5
    parameters: str | Sequence[str] = "all"

    QUANTITIES: ClassVar[Mapping[str, tuple[str, str]]] = {
        "original": ("lr", "epochs"),
        "safe": ("probe_lr", "probe_epochs"),
    }

    def __post_init__(self) -> None:
        """Refuse options that make no method."""
        if self.features not in self.QUANTITIES:
            raise ValueError(f"features is {self.features!r}, and must be original or safe")
        if self.text not in ("start", "mix"):
            raise ValueError(f"text is {self.text!r}, and must be start or mix")

    @property
    def quantities(self) -> tuple[str, ...]:
        """See `Method`."""
        return self.QUANTITIES[self.features]

    @property
    def knobs(self) -> tuple[tuple[str, ...], ...]:
        """See `Method`."""
        return (("alpha",), ("blend",)) if self.features == "safe" else (("blend",),)

    @property
    def recipe(self) -> Recipe | None:
        """See `Method`."""
        if self.features == "original":
            return None
        return Recipe.of(self.parameters)

    def fit(self, task: TaskData, candidates: Sequence[Values]) -> Sequence[Fitted]:
        """See `Method`."""
        seen = task.features.original.unsqueeze(0)
        if self.features == "safe":
            tuned = task.features.pooled(task.heads)
            seen = self.train_alpha * tuned + (1.0 - self.train_alpha) * seen
        seen = nn.functional.normalize(seen, dim=-1).expand(len(candidates), -1, -1, -1)
        heads: Sequence[HeadState | None] = task.heads or [None] * len(candidates)
        weights = self._train(task, seen, candidates)
        return [ProbedTask(task, own, head) for own, head in zip(weights, heads, strict=True)]

    def load(self, state: Mapping[str, Tensor], task: TaskData) -> Fitted:
        """See `Method`."""
        head = {name: tensor for name, tensor in state.items() if name != _WEIGHTS}
        return ProbedTask(task, state[_WEIGHTS].to(task.classifier), head or None)

    def _train(self, task: TaskData, seen: Tensor, candidates: Sequence[Values]) -> Tensor:
        """Return the trained classifiers, `[K, classes, D]`."""
        text, scale = task.classifier, task.logit_scale
        labels = task.labels.to(text.device)
        mixed = self.text == "mix"
        start = [torch.zeros_like(text) if mixed else text]
        start += [text.new_ones(len(text), 1)] * mixed
        strength = class_weights(task.features.original, labels, text, scale)

        def weights(parameters: Stacked) -> Tensor:
            return parameters[0] + parameters[1] * text if mixed else parameters[0]

        def logits(parameters: Stacked, features: Tensor) -> Tensor:
            return scale * (features @ weights(parameters).transpose(1, 2))

        def penalty(parameters: Stacked) -> Tensor:
            away = (parameters[0] - start[0]).square().sum(-1)
            return (away * strength).mean(-1)

        lr, epochs = self.quantities
        trained = train_on_features(
            seen,
            labels,
            [each.expand(len(candidates), *each.shape) for each in start],
            logits,
            [float(values[lr]) for values in candidates],
            [round(values[epochs]) for values in candidates],
            task.seed,
            penalty if self.penalised else None,
        )
        return weights(trained)


METHOD = Probe


def class_weights(features: Tensor, labels: Tensor, text: Tensor, logit_scale: float) -> Tensor:
    """Return CLAP's weight of each class, `[classes]`; 1 for a class without support samples.

    Args:
        features: `[S, V, D]` of the original pooling; each view counts.
        labels: `[S]`.
        text: `[classes, D]`, normalised.
        logit_scale: s.
    """
    right = text.new_zeros(len(labels))
    # One view at a time: with many classes the probabilities outgrow the features.
    for view in features.unbind(1):
        odds = tuned_logits(view, text, logit_scale).softmax(-1)
        right += odds.gather(1, labels.unsqueeze(1)).squeeze(1) / features.shape[1]
    counts = torch.bincount(labels, minlength=len(text))
    sums = text.new_zeros(len(text)).index_add_(0, labels, right)
    return torch.where(counts > 0, sums / counts.clamp_min(1), 1.0)


@dataclass(frozen=True)
class ProbedTask:
    """A probe that is fitted to a task.

    Attributes:
        task: the classifier and the scale are taken from it.
        weights: `[classes, D]`.
        head: the tuned pooling, for `safe` features.
    """

    task: TaskData
    weights: Tensor
    head: HeadState | None = None

    def logits(self, features: Features, at: At) -> Tensor:
        """See `Fitted`."""
        return self._logits(features.original[:, 0], self._tuned(features), at)

    def linear(self, at: At) -> Linear:
        """See `safe_ray.methods.linear.HasLinear`."""
        alpha = 0.0 if self.head is None else at["alpha"]
        weights, tuned = self._classifier(at), self.head is not None
        return Linear(weights, self.task.logit_scale, self.head, alpha, open=tuned)

    def sums(self, features: Features, labels: Tensor, grid: Grid, at: At) -> KnobSums:
        """See `Fitted`."""
        task = self.task
        original, tuned = features.original[:, 0], self._tuned(features)
        zero_shot = tuned_logits(original, task.classifier, task.logit_scale)
        labels = labels.to(zero_shot.device)
        return sums_of_logits(
            lambda a: self._logits(original, tuned, a), zero_shot, labels, grid, at
        )

    def state(self) -> Mapping[str, Tensor]:
        """See `Fitted`."""
        return {**(self.head or {}), _WEIGHTS: self.weights}

    def _tuned(self, features: Features) -> Tensor | None:
        """Return what the tuned pooling gives of view 0, `[N, D]`; None without one."""
        return None if self.head is None else features.pooled([self.head])[0, :, 0]

    def _logits(self, original: Tensor, tuned: Tensor | None, at: At) -> Tensor:
        seen = original
        if tuned is not None:
            seen = at["alpha"] * tuned + (1.0 - at["alpha"]) * original
        return tuned_logits(seen, self._classifier(at), self.task.logit_scale)

    def _classifier(self, at: At) -> Tensor:
        blend = at["blend"]
        return (1.0 - blend) * self.task.classifier + blend * self.weights
