"""The groups of settings, one model each.

Each field's description is the line that `--help` prints for it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator

from safe_ray.config.fields import (
    Auto,
    Bytes,
    Flag,
    FloatRange,
    Folder,
    Fraction,
    Group,
    Name,
    NaturalInt,
    NaturalNumber,
    Parameter,
    PositiveInt,
    PositiveNumber,
    SearchedFloat,
    SearchedInt,
    Seed,
    one_or_many,
    within,
    without_log,
    without_repeats,
)
from safe_ray.files import PACKAGE_SCHEME, names_file, resolve_path
from safe_ray.specs import BackboneSpec, DatasetSpec, Metric, NodeShape, Task, shots_of


class BackboneConfig(Group):
    """The open_clip model whose pooling is tuned."""

    name: Name = Field(description="What results and the tracker call the backbone.")
    model: str = Field(
        min_length=1,
        description="open_clip's name of the architecture; python -m safe_ray.backbones lists "
        "them.",
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
    templates: Annotated[tuple[str, ...], BeforeValidator(one_or_many)] = ("a photo of a {}.",)
    ensemble: Literal["openai", "simple"] | tuple[str, ...] = ()
    descriptions: str | None = None
    target_of: str | None = None
    source: str = ""
    on_change: Literal["refuse", "redraw"] = "refuse"
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)

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


class MethodConfig(Group):
    """One file of `conf/method`: how a method is made, what is searched for it, and its knobs.

    `space` has a number or a range for each quantity; what a tuned pooling is trained with comes
    from `search.*` where the file does not say. A range with two integers has integers only, and
    `1/shots` is one over the task's shots. `knobs` has for each knob a number, a list of
    numbers to choose from, or `search.alpha` for the grid of that setting.
    """

    name: Name
    title: str = ""
    module: str
    options: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, SearchedInt | SearchedFloat | Literal["1/shots"]] = Field(default_factory=dict)
    knobs: dict[
        str,
        Literal["search.alpha"]
        | Annotated[float, Strict()]
        | Annotated[tuple[Annotated[float, Strict()], ...], Field(min_length=1)],
    ] = Field(default_factory=dict)


class TasksConfig(Group):
    """Which few-shot problems are solved: every data set with every number of shots and seed."""

    datasets: Annotated[
        tuple[str, ...], BeforeValidator(one_or_many), AfterValidator(without_repeats)
    ] = Field(min_length=1, description="Data sets, each a file of conf/dataset.")
    shots: Annotated[
        tuple[PositiveInt | Literal["all"], ...],
        BeforeValidator(one_or_many),
        AfterValidator(without_repeats),
    ] = Field(
        min_length=1,
        description="Labelled training images a class; all is every one that is not held out for "
        "validation.",
    )
    seeds: Annotated[
        tuple[Seed, ...], BeforeValidator(one_or_many), AfterValidator(without_repeats)
    ] = Field(min_length=1, description="Seeds; each draws an episode of its own.")

    def tasks(self) -> list[Task]:
        """Return all tasks, neighbours from different data sets, so that all advance together."""
        return [
            Task(dataset, shots_of(shots), seed)
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
            BeforeValidator(one_or_many),
            AfterValidator(without_repeats),
        ]
    ) = Field(
        description="What is trained: all of the pooling, or the parts listed, which "
        "each family has words for; projection is the output projection of any."
    )
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
    lr: Annotated[SearchedFloat, AfterValidator(within(0, above=True))] = Field(
        description="Learning rate of AdamW."
    )
    weight_decay: Annotated[SearchedFloat, AfterValidator(within(0))] = Field(
        description="Weight decay of AdamW."
    )
    epochs: Annotated[SearchedInt, AfterValidator(within(1))] = Field(
        description="Passes over the support images, and length of the schedule."
    )
    decay_to_start: Annotated[SearchedFloat, AfterValidator(within(0))] = Field(
        description="Decay towards the original pooling, beside the weight decay towards zero."
    )
    distance_penalty: Annotated[SearchedFloat, AfterValidator(within(0))] = Field(
        description="Weight in the loss of the squared distance from the original pooling."
    )
    logit_pull: Annotated[SearchedFloat, AfterValidator(within(0))] = Field(
        description="Weight in the loss of the mean absolute difference to the zero-shot logits."
    )
    temperature: Annotated[SearchedFloat, AfterValidator(within(0, above=True))] = Field(
        description="Factor of the model's logit scale while training; 1 is the model's own."
    )
    alpha: Annotated[SearchedFloat, BeforeValidator(without_log), AfterValidator(within(0, 1))] = (
        Field(
            description="Share of the tuned pooling in the blend: 0 is zero-shot, 1 the tuned one "
            "alone; never on a logarithmic scale, for every head is evaluated on an even grid."
        )
    )
    alpha_points: Annotated[int, Strict(), Field(ge=2)] = Field(
        description="Points in [0, 1] at which every head is evaluated."
    )
    max_steps: PositiveInt | Auto = Field(
        description="Steps of training that a candidate takes at most: fewer epochs are searched "
        "where there are many support images. auto is 1000 for tasks.shots=all, and else no bound."
    )
    validation: Literal["auto", "coop", "cross", "full", "held_out"] = Field(
        description="Score on a few validation images a class (coop), on folds of the support "
        "images (cross), on the whole validation split (full) or on a fifth of the training images "
        "(held_out); auto is coop where there are validation images, else cross, and for "
        "tasks.shots=all full where there is such a split, held_out where classes have 10 images, "
        "else cross."
    )
    cautious: Flag = Field(
        description="Fall back to zero-shot (alpha = 0) where the validation samples do not show "
        "that the chosen head gains over it."
    )
    choose_by: Literal["auto", "metric", "nll", "nll_prior", "metric_nll_prior"] = Field(
        description="What is best on validation samples: the metric, and the negative "
        "log-likelihood among equals; that alone; that with a prior on alpha around 0.5; or all "
        "three. auto is nll_prior below two validation samples a class, else metric."
    )
    refit: Flag = Field(
        description="Train each winner once more on support and validation images together; no "
        "protocol of the field does, so benchmarks leave it off."
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

    uri: Annotated[str, Field(min_length=1)] | None = Field(
        description="MLflow's tracking URI: a database, or http:// and a server; null is "
        "MLFLOW_TRACKING_URI, or else mlflow.db in the storage folder, and where a cluster is "
        "joined, on the own disk of the machine that this command runs on."
    )
    experiment: str | None = Field(
        description="MLflow's experiment; null is MLFLOW_EXPERIMENT_NAME, or else safe_ray, which "
        "all sweeps share: each has its name as a tag."
    )
    heads: Literal["all", "best", "none"] = Field(
        description="Which trained heads are uploaded as artifacts."
    )
    register_winners: Flag = Field(
        alias="register",
        description="Register the winner of each task as a model: a version of "
        "safe_ray-<backbone>-<data set>-<shots>shot.",
    )
    models: Literal["auto", "none"] = Field(
        description="Whether registered winners are MLflow models that mlflow.pyfunc.load_model "
        "and mlflow models serve take (auto), or a head's files alone (none); without the trunk's "
        "weights, unless they are a file of your own.",
    )
    system: Flag = Field(
        description="Record how busy the driver's machine and each trial's are, every 10 seconds, "
        "if psutil is installed.",
    )
    patience: NaturalNumber = Field(
        description="Seconds that a sweep whose report is written waits, at most, for MLflow to "
        "take what it has not heard yet."
    )


class ShapeConfig(Group):
    """One kind of node that an autoscaler may bring."""

    nodes: PositiveInt
    cpus: PositiveNumber
    gpus: NaturalInt = 0
    memory: Bytes | None = None

    def spec(self) -> NodeShape:
        """Return the value that travels."""
        return NodeShape(self.nodes, self.cpus, float(self.gpus), self.memory)


class ClusterConfig(Group):
    """Which Ray cluster does the work."""

    address: str | None = Field(
        description="A running cluster; null is RAY_ADDRESS, or else a local one is started."
    )
    num_cpus: PositiveInt | None = Field(
        description="CPUs of the local cluster; null is all of this machine's."
    )
    ceiling: tuple[ShapeConfig, ...] = Field(
        default=(),
        description="What an autoscaler may bring, all nodes with CPUs counted: at most so many "
        "nodes with so many cpus, gpus and so much memory each (optional, such as 64GiB); without "
        "it, what is there counts (environment: SAFE_RAY_CEILING).",
    )
    silence: PositiveNumber = Field(
        description="Seconds without a sign of life after which a command on another machine that "
        "has begun the sweep counts as dead, and this one takes over."
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
        tuple[str, ...], BeforeValidator(one_or_many), AfterValidator(without_repeats)
    ] = Field(description="Test-only data sets that winners of their source are tested on, too.")
    batch_size: PositiveInt = Field(description="Test images that pass the pooling at once.")
