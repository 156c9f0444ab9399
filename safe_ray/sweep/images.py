"""The images of a sweep: each is read and decoded once, before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from safe_ray.config import SweepConfig
from safe_ray.data.duplicates import example_of, twins_of_looks
from safe_ray.data.episodes import Episode
from safe_ray.data.manifest import Manifest
from safe_ray.errors import DamagedFileError, InputError
from safe_ray.features.inventory import (
    Inventory,
    Spread,
    describe_bad,
    describe_warned,
    take_inventory,
)
from safe_ray.files import digest_json
from safe_ray.progress import Progress
from safe_ray.specs import Selection, Task
from safe_ray.sweep.data import selection_of

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
        shared: what to say of test images that are among those which heads are made of.
        test_digests: one digest of all test samples, of each data set and target.
    """

    tasks: Sequence[CheckedTask]
    tests: Mapping[str, Inventory]
    bad: Sequence[tuple[str, str]]
    warned: Sequence[tuple[str, str]]
    shared: Sequence[str]
    test_digests: Mapping[str, str]

    def remarks(self) -> list[str]:
        """Return what to say about the images, in sentences."""
        said = [f"Left out {len(self.bad)} images that cannot be read."] if self.bad else []
        said += [describe_warned(self.warned)] if self.warned else []
        return [*said, *self.shared]


def shared_images(name: str, chosen: Sequence[Inventory], test: Inventory) -> list[str]:
    """Return a sentence on test images that are among those which heads are made of, too.

    Args:
        name: of the data set.
        chosen: the support and validation images of its tasks.
        test: its test images.
    """
    looks = {
        path: (sample, look)
        for inventory in chosen
        for path, sample, look in zip(
            inventory.table["path"].to_pylist(), inventory.samples, inventory.looks, strict=True
        )
    }
    if not looks or not test.looks:
        return []
    paths = [*looks, *test.table["path"].to_pylist()]
    found = [*looks.values(), *zip(test.samples, test.looks, strict=True)]
    groups = [int(at >= len(looks)) for at in range(len(found))]
    twins = twins_of_looks([sample for sample, _ in found], [look for _, look in found], groups)
    if not twins:
        return []
    exact = sum(twin.exact for twin in twins)
    count = len(test.looks)
    is_there = "image is" if len(twins) == 1 else "images are"
    return [
        f"{name}: {len(twins)} of {count} test {is_there} among the training images as well "
        f"({exact} in the same bytes, {len(twins) - exact} by their looks), such as "
        f"{example_of(twins, paths)}: a result on them is too good. Nothing was removed; --dry-run "
        "shows more of them."
    ]


def check_images(
    config: SweepConfig,
    manifests: Mapping[str, Manifest],
    episodes: Mapping[Task, Episode],
    watch: Watch,
    spread: Spread | None = None,
) -> CheckedImages:
    """Read and decode every image that the sweep will need, before anything expensive starts.

    Args:
        config: of the sweep.
        manifests: the data sets, by name.
        episodes: of each task.
        watch: starts a phase of the work.
        spread: gives images to nodes of the cluster to decode; None decodes them here.

    Raises:
        InputError: images are missing or bad, and `data.skip_bad` is off.
    """
    cache = config.features.store / "inventory.arrow"

    def take(table: pa.Table, what: str) -> Inventory:
        # All tables are looked at before any bad image stops the run: one list is all it takes.
        progress = watch(f"checking {what}")
        return take_inventory(table, cache, skip_bad=True, progress=progress, spread=spread)

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
    shared = [sentence for name, test in tests.items() for sentence in _shared(name, tasks, test)]
    digests = {name: digest_json(sorted(test.samples)) for name, test in tests.items()}
    return CheckedImages(tasks, tests, bad, warned, shared, digests)


def _shared(name: str, tasks: Sequence[CheckedTask], test: Inventory) -> list[str]:
    own = [task for task in tasks if task.task.dataset == name]
    return shared_images(name, [i for t in own for i in (t.support, t.validation)], test)


def check_unchanged(config: SweepConfig, tasks: Sequence[CheckedTask]) -> None:
    """Check that tasks which an earlier run of the sweep began still have the same episode.

    Raises:
        InputError: the images of a task have changed since.
    """
    from safe_ray.training.facts import TASK, TaskFacts

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
