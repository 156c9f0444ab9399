"""The configuration of a sweep, typed and checked; what is chosen by default lies in `conf/`.

One model a group. Each field's description is the line that `--help` prints for it; types and
bounds live here, default values in the YAML files only.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import annotated_types
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from safe_ray.errors import InputError, nearest
from safe_ray.files import PACKAGE_SCHEME, is_uri, names_file, resolve_path
from safe_ray.job import RESULTS
from safe_ray.specs import BackboneSpec, DatasetSpec, Metric, Task

REMEMBERED = "config.json"


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str | int | float) else value


def _without_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if repeated is not None:
        raise ValueError(f"names {repeated!r} twice: name each once")
    return values


def _safe_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"is {name!r}, and must be at most 100 letters, digits, dots, dashes and underscores, "
            "since it names a folder"
        )
    return name


def _local_folder(value: Any) -> Any:
    """Return the absolute path; a URI would become a local folder with a strange name."""
    if isinstance(value, str) and is_uri(value):
        raise ValueError(
            f"is {value}, and must be a folder of the file system, such as a mounted share: only "
            "data sets may lie at a URI"
        )
    return resolve_path(value) if value else value


PositiveInt = Annotated[int, Strict(), Field(ge=1)]
NaturalInt = Annotated[int, Strict(), Field(ge=0)]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**32)]
PositiveNumber = Annotated[float, Strict(), Field(gt=0)]
NaturalNumber = Annotated[float, Strict(), Field(ge=0)]
Fraction = Annotated[float, Strict(), Field(ge=0, lt=1)]
Flag = Annotated[bool, Strict()]
Name = Annotated[str, AfterValidator(_safe_name)]
Folder = Annotated[Path, BeforeValidator(_local_folder)]
Auto = Literal["auto"]
Parameter = Literal["positional_embedding", "q_proj", "k_proj", "v_proj", "c_proj"]


class Group(BaseModel):
    """What all groups share: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )


Settings = typing.TypeVar("Settings", bound=Group)


class FloatRange(Group):
    """An interval of real numbers to search."""

    low: Annotated[float, Strict()]
    high: Annotated[float, Strict()]
    log: Flag = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self)
        return self


class IntRange(Group):
    """An interval of integers to search, both ends included."""

    low: Annotated[int, Strict()]
    high: Annotated[int, Strict()]
    log: Flag = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self)
        return self


def _check_order(interval: FloatRange | IntRange) -> None:
    if not interval.low < interval.high:
        raise ValueError(
            f"searches from low={interval.low:g} to high={interval.high:g}: low must be below high"
        )
    if interval.log and interval.low <= 0:
        raise ValueError(
            f"searches on a logarithmic scale from low={interval.low:g}: low must be above 0 there"
        )


def _within(
    minimum: float, maximum: float | None = None, above: bool = False
) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        ends = (
            (value.low, value.high) if isinstance(value, FloatRange | IntRange) else (value, value)
        )
        too_low = ends[0] <= minimum if above else ends[0] < minimum
        if too_low or (maximum is not None and ends[1] > maximum):
            bound = f"{'above' if above else 'at least'} {minimum:g}"
            bound = bound if maximum is None else f"between {minimum:g} and {maximum:g}"
            offending = ends[0] if too_low else ends[1]
            raise ValueError(f"reaches {offending:g}, and must stay {bound}")
        return value

    return check


def _without_log(value: Any) -> Any:
    log = value.get("log") if isinstance(value, Mapping) else getattr(value, "log", False)
    if log:
        raise ValueError(
            "has log: true, which has no meaning there: every head is evaluated on an even grid of "
            "search.alpha_points, and its best point is taken. Leave log out"
        )
    return value


SearchedFloat = Annotated[float, Strict()] | FloatRange
SearchedInt = Annotated[int, Strict()] | IntRange


class BackboneConfig(Group):
    """The open_clip model whose pooling is tuned."""

    name: Name = Field(description="What results and the tracker call the backbone.")
    model: str = Field(
        min_length=1, description="open_clip's name of the architecture, a ModifiedResNet."
    )
    pretrained: str | None = Field(
        description="An open_clip tag such as openai, a weights file, or null for random weights."
    )
    architecture_file: str | None = Field(
        default=None,
        alias="model_config",
        description="A JSON file that defines the architecture, if open_clip does not ship it.",
    )
    seed: Seed = Field(default=0, description="Seeds the random weights when pretrained is null.")
    pooling: str | None = Field(
        default=None,
        description="A Python module that defines the family of the pooling; null finds it among "
        "those that come with the package.",
    )

    def spec(self) -> BackboneSpec:
        """Return the value that travels.

        Its paths are absolute, except for `pkg://` ones, which each node finds in its own copy of
        the package.
        """
        tag_or_file, architecture = self.pretrained, self.architecture_file
        if tag_or_file is not None and names_file(tag_or_file):
            tag_or_file = _absolute(tag_or_file)
        return BackboneSpec(
            name=self.name,
            model=self.model,
            pretrained=tag_or_file,
            model_config=None if architecture is None else _absolute(architecture),
            seed=self.seed,
            pooling=self.pooling,
        )


def _absolute(path: str) -> str:
    return path if path.startswith(PACKAGE_SCHEME) else str(resolve_path(path))


class DatasetConfig(Group):
    """One file of `conf/dataset`: where a data set is and how it is read."""

    name: Name
    format: str
    path: str
    templates: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = ("a photo of a {}.",)
    ensemble: Literal["openai", "simple"] | tuple[str, ...] = ()
    descriptions: str | None = None
    target_of: str | None = None
    source: str = ""
    on_change: Literal["refuse", "redraw"] = "refuse"
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = {}

    def spec(self) -> DatasetSpec:
        """Return the value that travels; its path is still relative to the data root."""
        return DatasetSpec(
            name=self.name,
            format=self.format,
            path=self.path,
            templates=self.templates,
            ensemble=self.ensemble,
            descriptions=self.descriptions,
            target_of=self.target_of,
            source=self.source,
            options=dict(self.options),
        )


class TasksConfig(Group):
    """Which few-shot problems are solved: every data set with every number of shots and seed."""

    datasets: Annotated[
        tuple[str, ...], BeforeValidator(_one_or_many), AfterValidator(_without_repeats)
    ] = Field(min_length=1, description="Data sets, each a file of conf/dataset.")
    shots: Annotated[
        tuple[PositiveInt, ...], BeforeValidator(_one_or_many), AfterValidator(_without_repeats)
    ] = Field(min_length=1, description="Labelled training images a class.")
    seeds: Annotated[
        tuple[Seed, ...], BeforeValidator(_one_or_many), AfterValidator(_without_repeats)
    ] = Field(min_length=1, description="Seeds; each draws an episode of its own.")

    def tasks(self) -> list[Task]:
        """Return all tasks, neighbours from different data sets, so that all advance together."""
        return [
            Task(dataset, shots, seed)
            for seed in self.seeds
            for shots in self.shots
            for dataset in self.datasets
        ]


class DataConfig(Group):
    """Where images are, how they are drawn and prompted, and what happens to bad ones."""

    root: Folder = Field(
        description="Folder of the data sets whose paths are relative (environment: SAFE_RAY_DATA)."
    )
    convention: Literal["coop", "clip_lora", "tip_adapter"] = Field(
        description="How episodes are drawn: as CoOp does, with validation first (CLIP-LoRA), or "
        "with repetition (Tip-Adapter)."
    )
    prompts: Literal["single", "ensemble", "descriptions"] = Field(
        description="Prompts of the classifier: a data set's templates, its ensemble of templates, "
        "or its file of sentences about each class."
    )
    skip_bad: Flag = Field(
        description="Leave out and count images that cannot be read, instead of stopping."
    )


class FeaturesConfig(Group):
    """How images become dense maps in the feature store."""

    store: Folder = Field(description="Folder of the feature store; all nodes must see it.")
    views: NaturalInt = Field(
        description="Augmented views of each training image, beside the evaluation view."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        description="Arithmetic of the trunk; auto is bf16 on a GPU and fp32 without one."
    )
    batch_size: PositiveInt | Auto = Field(
        description="Images that pass the trunk at once; auto goes by their size and the device."
    )
    rows_per_file: PositiveInt | Auto = Field(
        description="Dense maps in one file of the store; auto is some 32 MiB of them."
    )
    actors: PositiveInt | Auto = Field(
        description="Processes that hold a trunk; auto is one a GPU, or what the CPUs allow."
    )


class TrainingConfig(Group):
    """How one bank of heads is trained."""

    workers: PositiveInt = Field(
        description="Processes that train one bank together, data-parallel."
    )
    batch_size: PositiveInt = Field(description="Support images a step, over all workers together.")
    cpus_per_worker: PositiveNumber | Auto = Field(
        description="CPUs of a worker; auto shares the cluster out."
    )
    gpus_per_worker: NaturalNumber | Auto = Field(
        description="GPUs of a worker, fractions allowed; auto is 1 where there are GPUs."
    )
    parameters: (
        Literal["all"]
        | Annotated[
            tuple[Parameter, ...],
            Field(min_length=1),
            BeforeValidator(_one_or_many),
            AfterValidator(_without_repeats),
        ]
    ) = Field(description="What is trained: all of the pooling, or the parameters listed.")
    warmup: Fraction = Field(
        description="Share of the steps in which the learning rate rises; it then falls as a "
        "cosine."
    )
    precision: Literal["fp32", "bf16"] = Field(
        description="Arithmetic of the pooling in a training step; weights, optimiser and loss are "
        "fp32 in any case, as is all evaluation."
    )
    pin: Literal["auto", "device", "host", "stream"] = Field(
        description="Where a worker keeps the support maps: on its device, in host memory, or "
        "streamed from the store in every epoch; auto is the first that holds them."
    )
    compiled: Flag = Field(
        description="Compile the training step with torch.compile, on GPUs only."
    )
    checkpoint_seconds: NaturalNumber = Field(
        description="Seconds between the checkpoints of a bank that is being trained."
    )
    max_failures: NaturalInt = Field(
        description="How often a bank is resumed after a worker has died."
    )


class SearchConfig(Group):
    """What is searched for each task, and how long."""

    candidates: PositiveInt = Field(description="Candidate heads trained for each task.")
    bank: PositiveInt | Auto = Field(
        description="Candidates trained together; auto is what the device's memory holds."
    )
    banks_in_flight: PositiveInt = Field(
        description="Banks of one task that may be trained at once."
    )
    concurrent_trials: PositiveInt | Auto = Field(
        description="Banks trained at once in all, at most; auto is what the cluster holds."
    )
    lr: Annotated[SearchedFloat, AfterValidator(_within(0, above=True))] = Field(
        description="Learning rate of AdamW."
    )
    weight_decay: Annotated[SearchedFloat, AfterValidator(_within(0))] = Field(
        description="Weight decay of AdamW."
    )
    epochs: Annotated[SearchedInt, AfterValidator(_within(1))] = Field(
        description="Passes over the support images, and length of the schedule."
    )
    alpha: Annotated[
        SearchedFloat, BeforeValidator(_without_log), AfterValidator(_within(0, 1))
    ] = Field(
        description="Share of the tuned pooling in the blend: 0 is zero-shot, 1 the tuned one "
        "alone; never on a logarithmic scale, for every head is evaluated on an even grid."
    )
    alpha_points: Annotated[int, Strict(), Field(ge=2)] = Field(
        description="Points in [0, 1] at which every head is evaluated."
    )
    row_points: NaturalInt = Field(
        description="Points of a head's alpha row that its study is told, beside its own and the "
        "best."
    )
    validation: Literal["auto", "coop", "cross", "full"] = Field(
        description="Score on a few validation images a class (coop), on folds of the support "
        "images (cross) or on the whole validation split (full); auto is coop where there are "
        "validation images, else cross."
    )
    choose_by: Literal["metric", "nll", "nll_prior"] = Field(
        description="What is best on validation samples: the metric, and the negative "
        "log-likelihood among equals; that alone; or that with a prior on alpha around 0.5."
    )
    folds: Annotated[int, Strict(), Field(ge=2)] = Field(
        description="Folds of the support images in cross-validation."
    )
    seed: Seed = Field(description="Seeds the suggestions and the training.")

    @model_validator(mode="after")
    def _alpha_on_grid(self) -> Self:
        if isinstance(self.alpha, FloatRange):
            last = self.alpha_points - 1
            low, high = self.alpha.low * last, self.alpha.high * last
            if math.floor(high + 1e-9) < math.ceil(low - 1e-9):
                raise ValueError(
                    f"has search.alpha from {self.alpha.low:g} to {self.alpha.high:g}, where none "
                    f"of the {self.alpha_points} evenly spaced alphas lies: widen it, or raise "
                    "search.alpha_points"
                )
        return self


class TrackingConfig(Group):
    """Where the results are recorded."""

    uri: str = Field(
        min_length=1, description="MLflow's tracking URI: a database, or http:// and a server."
    )
    experiment: str | None = Field(
        description="MLflow's experiment; null is the name of the sweep."
    )
    heads: Literal["all", "best", "none"] = Field(
        description="Which trained heads are uploaded as artifacts."
    )
    register_winners: Flag = Field(
        alias="register", description="Register the winner of each task as a model."
    )


class ClusterConfig(Group):
    """Which Ray cluster does the work."""

    address: str | None = Field(
        description="A running cluster; null is RAY_ADDRESS, or else a local one is started."
    )
    num_cpus: PositiveInt | None = Field(
        description="CPUs of the local cluster; null is all of this machine's."
    )
    slow_precision: Flag = Field(
        description="Compute in bf16 or fp16 on a CPU that has no instructions for it, too, many "
        "times slower than in fp32."
    )


class EvaluationConfig(Group):
    """How the winners are tested, and by which metric they are chosen."""

    metric: Metric = Field(
        description="What a winner has most of on the validation samples: accuracy, or the mean "
        "over the classes of the accuracy in each. Results have both."
    )
    targets: Annotated[
        tuple[str, ...], BeforeValidator(_one_or_many), AfterValidator(_without_repeats)
    ] = Field(description="Test-only data sets that winners of their source are tested on, too.")
    batch_size: PositiveInt = Field(description="Test images that pass the pooling at once.")


class SweepConfig(Group):
    """Everything that one command does."""

    sweep: Name = Field(
        description="Name of the sweep: the same name goes on where it stopped; null makes one up "
        "from the backbone and the time."
    )
    storage: Folder = Field(
        description="Folder for all that is written (environment: SAFE_RAY_STORAGE); null is the "
        f"working directory, and in a submitted Ray job {RESULTS} in the home folder."
    )
    backbone: BackboneConfig
    tasks: TasksConfig
    data: DataConfig
    features: FeaturesConfig
    training: TrainingConfig
    search: SearchConfig
    tracking: TrackingConfig
    cluster: ClusterConfig
    evaluation: EvaluationConfig
    datasets: dict[str, DatasetConfig]

    @property
    def outputs(self) -> Path:
        """The folder of this sweep's results."""
        return self.storage / "outputs" / self.sweep

    @property
    def experiment(self) -> str:
        """The name of the MLflow experiment."""
        return self.tracking.experiment or self.sweep

    def dataset_specs(self) -> dict[str, DatasetSpec]:
        """Return the data sets of the tasks and the targets by name."""
        names = [*self.tasks.datasets, *self.evaluation.targets]
        return {name: self.datasets[name].spec() for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values that `validate` reads again."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class Knob:
    """One setting as `--help` shows it."""

    path: str
    type: str
    meaning: str


def groups() -> dict[str, type[Group]]:
    """Return the model of every group of settings by its name."""
    return {
        name: field.annotation
        for name, field in SweepConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group)
    }


def knobs() -> list[Knob]:
    """Return every setting, in the order of the models."""
    return list(_knobs(SweepConfig, ""))


def _knobs(model: type[Group], prefix: str) -> Iterator[Knob]:
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            yield from _knobs(field.annotation, f"{path}.")
        elif field.description:
            bounds = [
                item for item in field.metadata if isinstance(item, annotated_types.BaseMetadata)
            ]
            spelled = _spell(field.annotation, bounds)
            if path in ("sweep", "storage"):
                spelled = f"{spelled} or null"
            yield Knob(path, spelled, field.description)


def _spell(annotation: Any, metadata: Sequence[Any] = (), plural: bool = False) -> str:
    """Return a type in words that someone who does not program understands."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, *more = typing.get_args(annotation)
        unpacked = [part for item in more for part in (getattr(item, "metadata", None) or [item])]
        return _spell(inner, [*metadata, *unpacked], plural)
    if origin in (typing.Union, types.UnionType):
        parts = [_spell(part) for part in typing.get_args(annotation)]
        return _either(sorted(parts, key=lambda part: (part.startswith("{"), part == "null")))
    if origin is Literal:
        return _either([str(choice) for choice in typing.get_args(annotation)])
    if origin is tuple:
        return f"a list of {_spell(typing.get_args(annotation)[0], (), plural=True)}"
    if annotation in (FloatRange, IntRange):
        return "{low, high, log}"
    if annotation is type(None):
        return "null"
    one, many = {
        int: ("an integer", "integers"),
        float: ("a number", "numbers"),
        bool: ("true or false", "true or false"),
        str: ("text", "names"),
        Path: ("a folder", "folders"),
    }.get(annotation, ("a group of settings", "groups of settings"))
    return " ".join([many if plural else one, *_bounds(metadata)])


def _either(parts: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    found = [
        f"{word} {bound}"
        for item in metadata
        for name, word in words.items()
        if (bound := getattr(item, name, None)) is not None
    ]
    if found:
        yield " and ".join(found)


def validate(values: Mapping[str, Any]) -> SweepConfig:
    """Check plain values and return the configuration.

    Raises:
        InputError: the first values that are wrong, each with what it must be.
    """
    try:
        return SweepConfig.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(_sentence(error, SweepConfig)) from None


def validate_dataset(name: str, values: Mapping[str, Any]) -> DatasetConfig:
    """Check the content of `conf/dataset/<name>.yaml`.

    Raises:
        InputError: the first values that are wrong, each with what it must be.
    """
    try:
        return DatasetConfig.model_validate({"name": name, **values})
    except ValidationError as error:
        raise InputError(f"In the data set {name!r}: {_sentence(error, DatasetConfig)}") from None


def validate_settings(model: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Check the content of a file that is not part of a sweep's own configuration.

    Raises:
        InputError: the first values that are wrong, each with what it must be and `where` it is.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(f"In {where}: {_sentence(error, model)}") from None


def _sentence(error: ValidationError, root: type[Group]) -> str:
    """Return one sentence about the first three settings that are wrong."""
    found: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path, field_type, known = _locate(problem["loc"], root)
        kind = problem["type"]
        if path in found and kind != "value_error":
            continue
        if kind == "extra_forbidden":
            where = ".".join(str(part) for part in problem["loc"][:-1])
            key = str(problem["loc"][-1])
            prefix = f"{where} has" if where else "There is"
            found[path] = f"{prefix} no setting {key!r}{_hint(key, known)}"
        elif kind == "missing":
            found.setdefault(path, f"{path} is missing: it must be {field_type}")
        elif kind == "value_error":
            found[path] = f"{path} {problem['ctx']['error']}"
        elif kind == "too_short":
            found[path] = f"{path} is empty: it must name at least one"
        else:
            verb = "holds" if isinstance(problem["loc"][-1], int) else "is"
            found[path] = f"{path} {verb} {_show(problem['input'])}, and must be {field_type}"
    sentences = list(found.values())[:3]
    return "; ".join(sentence.rstrip(".?") for sentence in sentences) + "."


def _hint(key: str, known: list[str]) -> str:
    close = nearest(key, known).strip().rstrip("?")
    return f" (did you mean {close.removeprefix('Did you mean ')}?)" if close else ""


def _locate(loc: tuple[int | str, ...], root: type[Group]) -> tuple[str, str, list[str]]:
    """Return a wrong setting's dotted path, its type in words, and its siblings' names."""
    model: type[Group] = root
    path: list[str] = []
    for part in loc:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        path.append(str(part))
        field = fields.get(str(part))
        if field is None:
            return ".".join(path), "", list(fields)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            model = field.annotation
            continue
        return ".".join(path), _spell(field.annotation, list(field.metadata)), list(fields)
    return ".".join(path), "a group of settings", list(model.model_fields)


def _show(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


# What a result does not depend on: where things lie, who does the work, and in what portions.
_INCIDENTAL: Any = {
    "sweep": True,
    "storage": True,
    "cluster": True,
    "evaluation": {"batch_size", "targets"},
    # An image that is left out changes an episode, by which the sweep's folder knows its tasks.
    "data": {"root", "skip_bad"},
    "features": {"store", "batch_size", "rows_per_file", "actors"},
    "training": {
        "workers",
        "cpus_per_worker",
        "gpus_per_worker",
        "pin",
        "compiled",
        "checkpoint_seconds",
        "max_failures",
    },
    # More candidates are trained after those that are there.
    "search": {"concurrent_trials", "candidates"},
    "tracking": True,
    "datasets": {"__all__": {"source", "on_change", "notes"}},
}


def essentials(config: SweepConfig) -> dict[str, Any]:
    """Return, as JSON values, what the winners of a sweep depend on.

    Targets are not among it: a winner may be tested on one more at any time.
    """
    values = config.model_dump(mode="json", by_alias=True, exclude=_INCIDENTAL)
    for name in config.evaluation.targets:
        values["datasets"].pop(name, None)
    return values


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Return how two `essentials` differ, or None.

    Returns:
        For instance "search.candidates was 64, is 32"; the first three differences of several.
    """
    before, after = dict(_flatten(old)), dict(_flatten(new))
    changed = [
        f"{key} was {_show(before.get(key))}, is {_show(after.get(key))}"
        for key in [*before, *(key for key in after if key not in before)]
        if before.get(key) != after.get(key)
    ]
    if not changed:
        return None
    more = len(changed) - 3
    return "; ".join(changed[:3]) + (f"; and {more} more" if more > 0 else "")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
