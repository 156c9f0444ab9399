"""The small immutable values that travel between the modules, and to remote workers as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Metric = Literal["accuracy", "mean_per_class"]
"""Accuracy over all samples, or the mean over the classes of the accuracy in each."""

Values = Mapping[str, float]
"""A candidate: what is searched (`lr`, `epochs`, ...), by name."""


@dataclass(frozen=True)
class BackboneSpec:
    """Which open_clip model to use, and where its weights are.

    Attributes:
        name: what the project calls it, such as `rn50`.
        model: open_clip's name of the architecture, such as `RN50-quickgelu`.
        pretrained: an open_clip tag (`openai`), a weights file, or None for random weights.
        model_config: an open_clip JSON file that defines `model`, if open_clip does not ship it.
        seed: seeds the random weights when `pretrained` is None.
        pooling: a module that defines the pooling's family (see `safe_ray.poolings`); None finds it
            among those that come with the package.
    """

    name: str
    model: str
    pretrained: str | None = None
    model_config: str | None = None
    seed: int = 0
    pooling: str | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """Where a data set is, how it is laid out, and the prompts for its class names.

    Attributes:
        name: the name of its YAML file in `conf/dataset`.
        format: a key of `safe_ray.data.readers.READERS`.
        path: the file or folder, absolute, `pkg://...`, or relative to the data root.
        templates: prompts with one `{}` each; several are averaged after normalisation.
        options: what the reader of this format needs beyond the path.
        ensemble: more of them, for `data.prompts=ensemble`; the name `openai` or `simple` stands
            for the 80 or the 7 templates for ImageNet that come with open_clip.
        descriptions: a JSON file of sentences about each class, for `data.prompts=descriptions`.
        target_of: the data set whose heads this one tests; it then has a test split only.
        source: where to get its files, for the person who lacks them.
    """

    name: str
    format: str
    path: str
    templates: tuple[str, ...] = ("a photo of a {}.",)
    options: Mapping[str, Any] = field(default_factory=dict)
    ensemble: tuple[str, ...] | str = ()
    descriptions: str | None = None
    target_of: str | None = None
    source: str = ""


@dataclass(frozen=True, order=True)
class Task:
    """One few-shot problem: a data set, a number of shots a class, and the seed of the episode."""

    dataset: str
    shots: int
    seed: int

    @property
    def id(self) -> str:
        """A name that is safe as a folder, a study and a tag."""
        return f"{self.dataset}-{self.shots}shot-seed{self.seed}"


@dataclass(frozen=True)
class HyperParameters:
    """What one candidate is trained with; alpha is how its head is blended at inference."""

    lr: float
    weight_decay: float
    epochs: int
    alpha: float


@dataclass(frozen=True)
class Point:
    """What the validation samples say of a head at one alpha.

    Attributes:
        accuracy: 0 to 1, over all samples.
        mean_per_class: 0 to 1, the mean over the classes of the accuracy in each.
        nll: mean negative log-likelihood in nats.
        gained: samples that are right here and wrong with the original pooling (alpha = 0).
        lost: samples that are wrong here and right with the original pooling.
        score: what the search maximises (see `safe_ray.heads.selection`).
    """

    accuracy: float
    mean_per_class: float
    nll: float
    gained: int
    lost: int
    score: float


@dataclass(frozen=True)
class AlphaRow:
    """A head's `Point` at every alpha: a column for each of its figures."""

    alphas: tuple[float, ...]
    accuracy: tuple[float, ...]
    mean_per_class: tuple[float, ...]
    nll: tuple[float, ...]
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    score: tuple[float, ...]

    def at(self, index: int) -> Point:
        """Return the figures at the alpha of that index."""
        return Point(**{column.name: getattr(self, column.name)[index] for column in fields(Point)})
