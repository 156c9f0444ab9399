"""The small immutable values that travel between the modules, and to remote workers as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Metric = Literal["accuracy", "mean_per_class"]
"""Accuracy over all samples, or the mean over the classes of the accuracy in each."""

Selection = Literal["coop", "cross", "full", "held_out"]
"""What candidates are chosen on: a few validation images a class, folds of the support images, a
whole validation split, or training images that were held out."""

ALL_SHOTS = 2**31 - 1
"""More shots than any class has images: all training images of each. It is written `all`."""

# A whole number stays one where a record is read again.
Values = Mapping[str, int | float]
"""A candidate: what is searched (`lr`, `epochs`, ...), by name."""


def shots_text(shots: int) -> str:
    """Return a number of shots as people write it: `16`, or `all`."""
    return "all" if shots == ALL_SHOTS else str(shots)


def shots_of(written: int | str) -> int:
    """Return the number of shots that `shots_text` wrote, or a number as it is.

    Raises:
        ValueError: it is neither a number nor `all`.
    """
    return ALL_SHOTS if written == "all" else int(written)


def shots_in_name(shots: int) -> str:
    """Return a number of shots as names of tasks and models have it: `16shot`, or `all`."""
    return "all" if shots == ALL_SHOTS else f"{shots}shot"


def shots_in_words(shots: int) -> str:
    """Return `1 shot`, `16 shots` or `all images`."""
    if shots == ALL_SHOTS:
        return "all images"
    return f"{shots} shot{'s' * (shots != 1)}"


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


@dataclass(frozen=True)
class NodeShape:
    """One kind of node that an autoscaler may bring, and at most how many of it.

    Attributes:
        nodes: how many of them there may be at once.
        cpus: logical CPUs of each.
        gpus: GPUs of each.
        memory: bytes of memory of each; None if nobody has said.
    """

    nodes: int
    cpus: float
    gpus: float = 0.0
    memory: int | None = None


@dataclass(frozen=True, order=True)
class Task:
    """One few-shot problem: a data set, a number of shots a class, and the seed of the episode.

    The shots are `ALL_SHOTS` where all training images are used.
    """

    dataset: str
    shots: int
    seed: int

    @property
    def id(self) -> str:
        """A name that is safe as a folder, a study and a tag."""
        return f"{self.dataset}-{shots_in_name(self.shots)}-seed{self.seed}"


@dataclass(frozen=True)
class Range:
    """An interval to search, both ends included.

    Attributes:
        low: the smallest value.
        high: the largest value.
        log: whether the scale is logarithmic.
        integer: whether only integers are meant.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class MethodSpec:
    """One method of a sweep.

    Attributes:
        name: of its file in `conf/method`; results are found by it.
        title: how tables call it.
        module: the Python module that makes it (see `safe_ray.methods.base.make_method`).
        options: what the module is told.
        knobs: the values that each knob may take; one value is a knob that is fixed.
    """

    name: str
    title: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodGroup:
    """Methods that are fitted to the same candidates, and share their bank of poolings.

    Attributes:
        name: of its first method; banks and studies are found by it.
        methods: the first one's score is what the search maximises.
        trained: the names of the pooling's parameters that are trained; none for methods that need
            no tuned pooling.
        low_rank: whether these change by products of low rank.
    """

    name: str
    methods: tuple[MethodSpec, ...]
    trained: tuple[str, ...] = ()
    low_rank: bool = False


@dataclass(frozen=True)
class Point:
    """What the validation samples say of a fitted method at one value of each of its knobs.

    Attributes:
        accuracy: 0 to 1, over all samples.
        mean_per_class: 0 to 1, the mean over the classes of the accuracy in each.
        nll: mean negative log-likelihood in nats.
        gained: samples that are right here and wrong with the original model.
        lost: samples that are wrong here and right with the original model.
        score: what the search maximises (see `safe_ray.heads.selection`).
    """

    accuracy: float
    mean_per_class: float
    nll: float
    gained: int
    lost: int
    score: float


@dataclass(frozen=True)
class KnobRow:
    """What the validation samples say along one knob: a column for each figure of a `Point`."""

    values: tuple[float, ...]
    accuracy: tuple[float, ...]
    mean_per_class: tuple[float, ...]
    nll: tuple[float, ...]
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    score: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float], points: Sequence[Point]) -> KnobRow:
        """Return the figures of the points, one a value, as columns."""
        columns = {
            column.name: tuple(getattr(point, column.name) for point in points)
            for column in fields(Point)
        }
        return KnobRow(tuple(values), **columns)

    def at(self, index: int) -> Point:
        """Return the figures at the value of that index."""
        return Point(**{column.name: getattr(self, column.name)[index] for column in fields(Point)})
