"""From data sets to tasks that workers can train: episodes, dense maps, classifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from safe_ray.config import FloatRange, IntRange, SweepConfig
from safe_ray.data.episodes import Episode, draw_episode
from safe_ray.data.manifest import Manifest, load_manifest
from safe_ray.errors import DamagedFileError, InputError
from safe_ray.features.inventory import (
    Inventory,
    describe_bad,
    describe_warned,
    no_progress,
    take_inventory,
)
from safe_ray.files import digest_json, replacing
from safe_ray.progress import Progress, Reporter
from safe_ray.search.frozen import MANIFESTS, compare, freeze
from safe_ray.search.shares import unlike_shares
from safe_ray.search.targets import check_targets, target_columns
from safe_ray.specs import Task

# What needs torch is imported by the functions below that need it: it takes seconds to import, and
# whatever is wrong with the data can be told without it.
if TYPE_CHECKING:
    from torch import Tensor

    from safe_ray.backbones.openclip import Backbone
    from safe_ray.cluster import TrialPlan
    from safe_ray.features.extract import ExtractionRequest, ExtractionSummary, Precision
    from safe_ray.search.space import Range, SearchSpace
    from safe_ray.training.job import TaskFacts

Selection = Literal["coop", "cross", "full"]

Watch = Callable[[str], Progress]
"""Starts a phase of the work by name, and returns what to call with its progress."""


@dataclass(frozen=True)
class CheckedTask:
    """A task whose images are all there and sound.

    Attributes:
        task: data set, shots and seed.
        selection: what its candidates are chosen by.
        episode: its support and validation samples.
        support: the inventory of the support samples.
        validation: the inventory of the validation samples.
    """

    task: Task
    selection: Selection
    episode: Episode
    support: Inventory
    validation: Inventory


@dataclass(frozen=True)
class CheckedImages:
    """All images that a sweep needs.

    Attributes:
        tasks: the tasks, with the images of their episodes.
        tests: the inventory of the test split of each data set and target.
        bad: path and reason of each image that is left out.
        warned: path and warning of each image that the decoder takes, but warns of.
    """

    tasks: Sequence[CheckedTask]
    tests: Mapping[str, Inventory]
    bad: Sequence[tuple[str, str]]
    warned: Sequence[tuple[str, str]]

    def remarks(self) -> list[str]:
        """Return what to say about the images, in sentences."""
        said = [f"Left out {len(self.bad)} images that cannot be read."] if self.bad else []
        return [*said, *([describe_warned(self.warned)] if self.warned else [])]


def search_space(config: SweepConfig) -> SearchSpace:
    """Return the search space that `search.*` describes; a fixed alpha joins the grid."""
    from safe_ray.heads.blending import alpha_grid
    from safe_ray.search.space import Range, SearchSpace

    search = config.search
    grid = alpha_grid(search.alpha_points)
    alpha = _range(search.alpha)
    if not isinstance(alpha, Range):
        grid = tuple(sorted({*grid, float(alpha)}))
    epochs = _range(search.epochs)
    return SearchSpace(
        lr=_range(search.lr),
        weight_decay=_range(search.weight_decay),
        epochs=epochs if isinstance(epochs, Range) else int(epochs),
        alpha=alpha,
        alphas=grid,
    )


def _range(value: float | FloatRange | IntRange) -> Range | float:
    from safe_ray.search.space import Range

    if isinstance(value, FloatRange | IntRange):
        return Range(value.low, value.high, value.log)
    return value


def read_manifests(config: SweepConfig) -> dict[str, Manifest]:
    """Read and check the data sets of the sweep, its targets included.

    Raises:
        InputError: a data set is not what it should be, or has nothing to test on; a target is
            among the tasks, or its source is not.
    """
    specs = config.dataset_specs()
    check_targets(specs, config.tasks.datasets, config.evaluation.targets)
    manifests = {
        name: load_manifest(spec, config.data.root, config.data.prompts)
        for name, spec in specs.items()
    }
    for name, manifest in manifests.items():
        if manifest.split("test").num_rows == 0:
            raise InputError(f"Data set {name!r} has no test split: add one to report results on.")
        source = specs[name].target_of
        if source is not None:
            target_columns(manifests[source], manifest)
        if manifest.listed:
            redraw = config.datasets[name].on_change == "redraw"
            changed = compare(manifest, specs[name], config.features.store / MANIFESTS, redraw)
            if changed is not None:
                manifests[name] = replace(manifest, notes=(*manifest.notes, changed))
    return manifests


def keep_splits(config: SweepConfig, manifests: Mapping[str, Manifest]) -> None:
    """Keep the splits that were made here, now that their images are known to be sound.

    Raises:
        InputError: the store cannot be written.
    """
    specs = config.dataset_specs()
    for name, manifest in manifests.items():
        if manifest.listed:
            freeze(manifest, specs[name], config.features.store / MANIFESTS)


def draw_episodes(config: SweepConfig, manifests: Mapping[str, Manifest]) -> dict[Task, Episode]:
    """Draw every task's episode.

    Raises:
        InputError: there is nothing to validate on, or too little to cross-validate.
    """
    full = config.search.validation == "full"
    episodes = {
        task: draw_episode(
            manifests[task.dataset], task.shots, task.seed, config.data.convention, full
        )
        for task in config.tasks.tasks()
    }
    for task, episode in episodes.items():
        selection = selection_of(config, episode)
        if selection != "cross" and episode.validation.num_rows == 0:
            missing = "split" if full else "split, nor training images enough to spare some"
            raise InputError(
                f"Data set {task.dataset!r} has no validation {missing}: give it one, or choose by "
                "cross-validation on the support images with search.validation=cross."
            )
        most = len(set(episode.train.column("path").to_pylist()))
        if selection == "cross" and most < config.search.folds:
            raise InputError(
                f"search.folds={config.search.folds} is more than the {most} support images of "
                f"{task.id}: choose fewer folds."
            )
    return episodes


def selection_of(config: SweepConfig, episode: Episode) -> Selection:
    """Return what the candidates of a task are chosen by; `auto` is decided by the episode."""
    if config.search.validation == "auto":
        return "coop" if episode.validation.num_rows else "cross"
    return config.search.validation


def assumptions(
    config: SweepConfig, manifests: Mapping[str, Manifest], episodes: Mapping[Task, Episode]
) -> list[str]:
    """Return what was assumed about the data sets, in sentences for the person who ran this."""
    said = [
        f"{name}: {note}"
        for name, manifest in manifests.items()
        for note in (*config.datasets[name].notes, *manifest.notes)
    ]
    for task, episode in episodes.items():
        if config.search.validation == "auto" and selection_of(config, episode) == "cross":
            said.append(
                f"{task.id}: too few images for validation samples, so candidates are chosen by "
                f"cross-validation, {config.search.folds} folds of the {episode.train.num_rows} "
                "support images."
            )
        elif episode.source == "train" and selection_of(config, episode) == "coop":
            said.append(
                f"{task.id}: there is no validation split, so candidates are chosen on "
                f"{episode.validation.num_rows} training images that the support set leaves over."
            )
    # A whole validation split has the shares that whoever made the split has given it.
    drawn = {
        task: episode.train if selection == "cross" else episode.validation
        for task, episode in episodes.items()
        if (selection := selection_of(config, episode)) != "full"
    }
    return said + unlike_shares(manifests, drawn, config.evaluation.metric)


def check_images(
    config: SweepConfig,
    manifests: Mapping[str, Manifest],
    episodes: Mapping[Task, Episode],
    watch: Watch,
) -> CheckedImages:
    """Read and decode every image that the sweep will need, before anything expensive starts.

    Raises:
        InputError: images are missing or bad, and `data.skip_bad` is off.
    """
    cache = config.features.store / "inventory.arrow"

    def take(table: pa.Table, what: str) -> Inventory:
        # All tables are looked at before any bad image stops the run: one list is all it takes.
        return take_inventory(table, cache, skip_bad=True, progress=watch(f"checking {what}"))

    tasks = [
        CheckedTask(
            task,
            selection_of(config, episode),
            episode,
            take(episode.train, f"support images of {task.id}"),
            take(episode.validation, f"validation images of {task.id}"),
        )
        for task, episode in episodes.items()
    ]
    tests = {
        name: take(manifest.split("test"), f"test images of {name}")
        for name, manifest in manifests.items()
    }
    inventories = [i for task in tasks for i in (task.support, task.validation)]
    inventories += tests.values()
    bad = sorted({image for inventory in inventories for image in inventory.bad})
    if bad and not config.data.skip_bad:
        raise InputError(describe_bad(bad, sum(i.table.num_rows for i in inventories) + len(bad)))
    warned = sorted({image for inventory in inventories for image in inventory.warned})
    return CheckedImages(tasks, tests, bad, warned)


def check_unchanged(config: SweepConfig, tasks: Sequence[CheckedTask]) -> None:
    """Check that tasks which an earlier run of the sweep began still have the same episode.

    Raises:
        InputError: the images of a task have changed since.
    """
    from safe_ray.training.job import TASK, TaskFacts

    for checked in tasks:
        folder = config.outputs / "tasks" / checked.task.id
        if not (folder / TASK).exists():
            continue
        try:
            before = TaskFacts.load(folder)
        except DamagedFileError:
            # It is written anew from the same images that its episode names.
            continue
        now = (*checked.support.samples, *checked.validation.samples)
        if (*before.support, *before.validation) != now:
            raise InputError(
                f"The images of {checked.task.id} have changed since the sweep {config.sweep!r} "
                "began: restore them, or choose another name with sweep=<name>."
            )


def extract_support(
    config: SweepConfig,
    backbone: Backbone,
    tasks: Sequence[CheckedTask],
    precision: Precision,
    progress: Progress,
    reporter: Reporter | None = None,
) -> ExtractionSummary:
    """Fill the feature store with what training and validation need.

    `precision` is `features.precision` with `auto` resolved, once for all of a sweep. `reporter` is
    told of damaged parts, and of the check for them if it takes long.
    """
    from safe_ray.features.extract import ExtractionRequest

    views = range(config.features.views + 1)
    requests = [ExtractionRequest.of(task.support, views) for task in tasks]
    requests += [
        ExtractionRequest.of(task.validation, (0,))
        for task in tasks
        if task.validation.table.num_rows
    ]
    return _extract(config, backbone, requests, precision, progress, reporter)


def extract_tests(
    config: SweepConfig,
    backbone: Backbone,
    inventories: Sequence[Inventory],
    precision: Precision,
    progress: Progress,
    reporter: Reporter | None = None,
) -> ExtractionSummary:
    """Fill the feature store with the evaluation views of test splits; see `extract_support`."""
    from safe_ray.features.extract import ExtractionRequest

    requests = [ExtractionRequest.of(inventory, (0,)) for inventory in inventories]
    return _extract(config, backbone, requests, precision, progress, reporter)


def _extract(
    config: SweepConfig,
    backbone: Backbone,
    requests: Sequence[ExtractionRequest],
    precision: Precision,
    progress: Progress,
    reporter: Reporter | None,
) -> ExtractionSummary:
    from safe_ray.features.extract import ExtractionOptions, extract

    features = config.features
    options = ExtractionOptions(
        precision=precision,
        batch_size=features.batch_size,
        rows_per_file=features.rows_per_file,
        actors=features.actors,
    )
    return extract(
        requests,
        (0,),
        config.backbone.spec(),
        features.store,
        options,
        progress,
        backbone=backbone,
        checking=reporter.phase("checking stored features") if reporter else no_progress,
        say=reporter.say if reporter else None,
    )


def write_tasks(
    config: SweepConfig,
    backbone: Backbone,
    manifests: Mapping[str, Manifest],
    tasks: Sequence[CheckedTask],
    precision: str,
    plan: TrialPlan,
) -> dict[str, TaskFacts]:
    """Write what the workers need into the sweep's folder, and return it by task id."""
    from safetensors.torch import save_file

    from safe_ray.features.extract import open_store
    from safe_ray.poolings import to_json
    from safe_ray.poolings.base import select_parameters
    from safe_ray.search.space import task_seed
    from safe_ray.training.job import POOLING, TaskFacts
    from safe_ray.training.maps import choose_pin, stream_budget

    folder = config.outputs
    with replacing(folder / POOLING) as temporary:
        save_file({k: v.contiguous() for k, v in backbone.state.items()}, temporary)
    store = open_store(backbone, config.features.store, precision)
    space = search_space(config)
    low, high = space.alpha_bounds
    classifiers: dict[str, Tensor] = {
        name: backbone.classifier_of(
            manifests[name].prompts, manifests[name].classes, distinct=manifests[name].ids is None
        )
        for name in config.tasks.datasets
    }
    written = {}
    for checked in tasks:
        task, manifest = checked.task, manifests[checked.task.dataset]
        facts = TaskFacts(
            task=task,
            store_root=str(config.features.store),
            store_key=store.key.as_json(),
            tokens=store.tokens,
            width=store.width,
            pooling=to_json(backbone.pooling),
            logit_scale=backbone.logit_scale,
            views=config.features.views,
            support=tuple(checked.support.samples),
            support_labels=_labels(checked.support),
            validation=tuple(checked.validation.samples),
            validation_labels=_labels(checked.validation),
            mode=checked.selection,
            folds=config.search.folds,
            metric=config.evaluation.metric,
            choose_by=config.search.choose_by,
            alphas=space.alphas,
            alpha_low=low,
            alpha_high=high,
            batch_size=config.training.batch_size,
            warmup=config.training.warmup,
            trained=select_parameters(
                backbone.pooling, config.training.parameters, tuple(backbone.state)
            ),
            training_seed=task_seed(config.search.seed, task.id),
            card=_card(config, backbone, manifest, checked.episode),
            pin=choose_pin(
                config.training.pin,
                len(checked.support.samples)
                * (config.features.views + 1)
                * store.bytes_per_row
                // config.training.workers,
                plan.memory,
                plan.host_memory,
            ),
            precision=config.training.precision,
            compiled=config.training.compiled and plan.gpus_per_worker > 0,
            map_budget=stream_budget(plan.host_memory or plan.memory),
        )
        facts.save(folder / "tasks" / task.id, classifiers[task.dataset])
        written[task.id] = facts
    return written


def _labels(inventory: Inventory) -> tuple[int, ...]:
    return tuple(inventory.table.column("label").to_pylist())


def _card(
    config: SweepConfig, backbone: Backbone, manifest: Manifest, episode: Episode
) -> dict[str, Any]:
    spec = config.backbone
    return {
        "backbone": {
            "name": spec.name,
            "model": spec.model,
            "pretrained": spec.pretrained,
            "model_config": spec.architecture_file,
            "digest": backbone.digest,
        },
        "dataset": episode.dataset,
        "shots": episode.shots,
        "seed": episode.seed,
        "class_names": list(manifest.classes),
        "templates": list(manifest.templates),
        "prompts": config.data.prompts,
        "prompts_digest": digest_json(manifest.prompts),
        "logit_scale": backbone.logit_scale,
        "preprocessing": asdict(backbone.preprocessing),
        "episode": {
            "convention": config.data.convention,
            "digest": episode.digest,
            "train_digest": episode.train_digest,
            "validation_digest": episode.validation_digest,
        },
    }
