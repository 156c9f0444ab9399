"""SS-Text: class prototypes that a penalty ties to the text, in closed form and without validation.

With `f_i` the normalised feature of support sample i of N, `t_c` the text embedding of class c and
s the logit scale (tau = 1 / s), the minimiser of the support loss with the penalty
`lambda |w_c - t_c|^2` is

    w_c = t_c + (1 / N) (1 / lambda) (1 / tau) * sum of f_i of class c          lambda = 1 / N
    logit of c = s f w_c / |w_c|

A class without support samples keeps its text embedding. A feature is the mean of a sample's views.

Source: the solver "SS-Text" in `libs/solvers/sstext.py` and `runner.py` of
github.com/jusiro/SS-Text-U (Silva-Rodriguez and Konukoglu, "Semi-Supervised Few-Shot Adaptation of
Vision-Language Models"). With lambda = 1 / N the text weighs little against the images.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

KNOBS: tuple[str, ...] = ()


def prototypes(features: Tensor, labels: Tensor, classifier: Tensor, logit_scale: float) -> Tensor:
    """Return `[classes, D]`, normalised.

    Args:
        features: `[N, D]`, normalised.
        labels: `[N]`.
        classifier: `[classes, D]`, normalised.
        logit_scale: s.
    """
    # (1 / N) (1 / lambda) is 1.
    weights = classifier.clone().index_add_(0, labels, features, alpha=logit_scale)
    return nn.functional.normalize(weights, dim=-1)


def fit(
    views: Tensor, labels: Tensor, classifier: Tensor, logit_scale: float, moved: Tensor | None
) -> Callable[[Tensor, dict[str, float]], Tensor]:
    """Return what the images change of the logits; see `safe_ray.methods.adapted.Adapter`."""
    support = nn.functional.normalize(views.mean(1), dim=-1)
    change = prototypes(support, labels, classifier, logit_scale) - classifier

    def correction(features: Tensor, at: dict[str, float]) -> Tensor:
        return logit_scale * (features @ change.t())

    return correction
