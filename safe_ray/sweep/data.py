"""The data sets of a sweep: their manifests, the episodes that are drawn, what was assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from safe_ray.config import SweepConfig
from safe_ray.data.episodes import (
    HELD_OUT_SHARE,
    LEAST_TO_HOLD_OUT,
    Episode,
    draw_episode,
    smallest_class,
)
from safe_ray.data.manifest import Manifest, load_manifest
from safe_ray.errors import InputError
from safe_ray.specs import ALL_SHOTS, Selection, Task
from safe_ray.sweep.frozen import MANIFESTS, compare, freeze
from safe_ray.sweep.schedule import schedule_lines
from safe_ray.sweep.shares import unlike_shares
from safe_ray.sweep.targets import check_targets, target_columns


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
    episodes = {task: _draw(config, manifests[task.dataset], task) for task in config.tasks.tasks()}
    for task, episode in episodes.items():
        selection = selection_of(config, episode)
        if selection != "cross" and episode.validation.num_rows == 0:
            spare = "split, nor training images enough to spare some"
            missing = "split" if selection == "full" else spare
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


def _draw(config: SweepConfig, manifest: Manifest, task: Task) -> Episode:
    """Draw an episode; with all images, `auto` validates on as many as are useful."""
    by = config.search.validation
    full, held_out = by == "full", by == "held_out"
    if by == "auto" and task.shots == ALL_SHOTS:
        full = manifest.split("val").num_rows > 0
        held_out = not full and smallest_class(manifest.split("train")) >= LEAST_TO_HOLD_OUT
    return draw_episode(manifest, task.shots, task.seed, config.data.convention, full, held_out)


def selection_of(config: SweepConfig, episode: Episode) -> Selection:
    """Return what the candidates of a task are chosen by; `auto` is decided by the episode."""
    if config.search.validation != "auto":
        return config.search.validation
    if not episode.validation.num_rows:
        return "cross"
    if episode.source == "held_out":
        return "held_out"
    return "full" if episode.shots == ALL_SHOTS else "coop"


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
        said += _chosen_on(config, task, episode)
    said += schedule_lines(config, episodes)
    # A whole validation split has the shares that whoever made the split has given it.
    drawn = {
        task: episode.train if selection == "cross" else episode.validation
        for task, episode in episodes.items()
        if (selection := selection_of(config, episode)) not in ("full", "held_out")
    }
    return said + unlike_shares(manifests, drawn, config.evaluation.metric)


def _chosen_on(config: SweepConfig, task: Task, episode: Episode) -> list[str]:
    """Return what candidates are chosen on, in a sentence, where nobody has said it."""
    selection, count = selection_of(config, episode), episode.validation.num_rows
    asked, everything = config.search.validation != "auto", task.shots == ALL_SHOTS
    train = f"{episode.train.num_rows} support images"
    if selection == "cross" and not asked:
        why = (
            f"the smallest class has fewer than {LEAST_TO_HOLD_OUT} training images"
            if everything
            else "too few images for validation samples"
        )
        return [
            f"{task.id}: {why}, so candidates are chosen by cross-validation, "
            f"{config.search.folds} folds of the {train}."
        ]
    if selection == "held_out":
        return [
            f"{task.id}: {HELD_OUT_SHARE:.0%} of each class's training images, {count} in all, are "
            f"held out to choose candidates on; the other {train} train them."
        ]
    if selection == "full" and not asked:
        return [
            f"{task.id}: all training images are {train}, and candidates are chosen on the whole "
            f"validation split, {count} images."
        ]
    if episode.source == "train" and selection == "coop":
        return [
            f"{task.id}: there is no validation split, so candidates are chosen on {count} "
            "training images that the support set leaves over."
        ]
    return []
