"""How long candidates train where a task has many support images.

An epoch passes all support images, so that its steps grow with them. `search.max_steps` bounds the
steps of a candidate by its epochs; and an image needs no more augmented views than a candidate has
epochs, since each epoch sees one view of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from safe_ray.config import IntRange, SweepConfig
from safe_ray.data.episodes import Episode
from safe_ray.specs import ALL_SHOTS, Task

if TYPE_CHECKING:
    from safe_ray.search.groups import Group
    from safe_ray.training.facts import TaskFacts

MOST_STEPS = 1000
"""What `search.max_steps=auto` is where a task has all of its images."""


def most_epochs(config: SweepConfig, task: Task, support: int) -> int | None:
    """Return how many epochs a candidate may have, at least one; None where nothing bounds them.

    Args:
        config: of the sweep.
        task: one of its tasks.
        support: how many support images the task has.
    """
    most = config.search.max_steps
    if most == "auto":
        if task.shots != ALL_SHOTS:
            return None
        most = MOST_STEPS
    return max(1, most // -(-support // config.training.batch_size))


def group_for(config: SweepConfig, facts: TaskFacts, group: Group) -> Group:
    """Return the methods for a task, with a schedule that its support images bound."""
    # It imports torch, which whoever has made a mistake does not wait for.
    from safe_ray.search.groups import for_task

    support = len(facts.support)
    shots = float(facts.task.shots)
    if facts.task.shots == ALL_SHOTS:
        shots = support / len(facts.card["class_names"])
    return for_task(group, shots, most_epochs(config, facts.task, support))


def views_of(config: SweepConfig, task: Task, support: int) -> int:
    """Return how many augmented views of each support image are made.

    Fewer than `features.views` are made only where fewer epochs than that are left.
    """
    most = most_epochs(config, task, support)
    views = config.features.views
    return views if most is None else min(views, most)


def schedule_lines(config: SweepConfig, episodes: Mapping[Task, Episode]) -> list[str]:
    """Return a sentence for each task whose candidates have fewer epochs than are asked for."""
    asked = config.search.epochs
    longest = asked.high if isinstance(asked, IntRange) else asked
    said = []
    for task, episode in episodes.items():
        support = episode.train.num_rows
        most = most_epochs(config, task, support)
        if most is None or most >= longest:
            continue
        steps = -(-support // config.training.batch_size)
        views = views_of(config, task, support)
        fewer = f", and {views} augmented views" if views < config.features.views else ""
        said.append(
            f"{task.id}: {support} support images are {steps} steps an epoch, so candidates have "
            f"at most {most} epoch{'s' * (most != 1)} and not {longest}{fewer} "
            "(search.max_steps=<number> changes that)."
        )
    return said
