"""The data sets of a sweep: their manifests, the episodes that are drawn, what was assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from safe_ray.config import SweepConfig
from safe_ray.data.episodes import Episode, draw_episode
from safe_ray.data.manifest import Manifest, load_manifest
from safe_ray.errors import InputError
from safe_ray.specs import Task
from safe_ray.sweep.frozen import MANIFESTS, compare, freeze
from safe_ray.sweep.shares import unlike_shares
from safe_ray.sweep.targets import check_targets, target_columns

Selection = Literal["coop", "cross", "full"]


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
