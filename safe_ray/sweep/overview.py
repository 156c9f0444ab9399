"""A first look: what a sweep would run on, before anything runs.

Nothing is written and Ray is not started. `python -m safe_ray.datasets data=<location>` and
`python -m safe_ray.tune --dry-run` print it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_ray.config import SweepConfig
from safe_ray.data.duplicates import HASH_BITS, NEAR_BITS, NEAR_LEVELS
from safe_ray.data.episodes import Episode
from safe_ray.data.tally import counts
from safe_ray.errors import InputError
from safe_ray.features.inventory import describe_bad
from safe_ray.features.survey import Survey, survey
from safe_ray.progress import Reporter, duration
from safe_ray.specs import Task
from safe_ray.sweep import data
from safe_ray.sweep.estimate import Estimate, estimate, wanted_views

_SHOWN_TASKS = 5


@dataclass(frozen=True)
class Overview:
    """What was found.

    Attributes:
        surveys: one a data set.
        needed_bad: path and reason of each bad image that the sweep would use.
        images: how many images it would use.
    """

    surveys: Sequence[Survey]
    needed_bad: Sequence[tuple[str, str]]
    images: int

    @property
    def bad(self) -> int:
        """How many images cannot be used, whether or not the sweep would."""
        return sum(len(found.bad) for found in self.surveys)


def dry_run(config: SweepConfig) -> None:
    """Print the overview of a sweep, and refuse what the sweep would refuse.

    Raises:
        InputError: a data set is not what it should be, or images that it needs are bad.
    """
    found = show_overview(config)
    if found.needed_bad and not config.data.skip_bad:
        raise InputError(describe_bad(found.needed_bad, found.images))
    print("This was a dry run: nothing was written or started.")


def show_overview(config: SweepConfig) -> Overview:
    """Print classes and splits, what is assumed, what the images are like, disk and time.

    Raises:
        InputError: a data set is not what it should be, or the backbone cannot be loaded.
    """
    manifests = data.read_manifests(config)
    episodes = data.draw_episodes(config, manifests)
    for name, manifest in manifests.items():
        print(f"{name}: {len(manifest.classes)} classes")
        print(_block(counts(manifest)))
    if said := data.assumptions(config, manifests, episodes):
        print("What is assumed:")
        print(_block(said))
    surveys = []
    with Reporter() as reporter:
        for name, manifest in manifests.items():
            found = survey(manifest, reporter.phase(f"looking at the images of {name}"))
            surveys.append(found)
            print(f"Images of {name}:")
            print(_block(found.lines()), flush=True)
    print(
        f"  (By their looks: difference hashes at most {NEAR_BITS} of {HASH_BITS} bits apart, and "
        f"thumbnails at most {NEAR_LEVELS:g} of 255 levels, less where there is little contrast.)"
    )
    wanted = wanted_views(config, manifests, episodes)
    reasons = {
        (found.manifest.name, look.path): look.reason for found in surveys for look in found.bad
    }
    used = {place: views for place, views in wanted.items() if place not in reasons}
    samples = {
        (found.manifest.name, look.path): look.seen.digest
        for found in surveys
        for look in found.looks
        if look.seen is not None
    }
    needs = estimate(config, used, samples, episodes)
    print("\n".join(_needs(config, episodes, needs)))
    bad = sorted((path, reasons[name, path]) for name, path in wanted if (name, path) in reasons)
    return Overview(surveys, bad, len(wanted))


def _needs(config: SweepConfig, episodes: Mapping[Task, Episode], needs: Estimate) -> Iterator[str]:
    tasks = f"{len(episodes)} task{'s' * (len(episodes) != 1)}"
    yield f"Tasks: {tasks}, {config.search.candidates} candidates each"
    for task, episode in list(episodes.items())[:_SHOWN_TASKS]:
        by = data.selection_of(config, episode)
        how = f"chosen by {by}"
        if by != "cross":
            how = f"{episode.validation.num_rows} validation images ({by})"
        yield f"  {task.id}: {episode.train.num_rows} support images, {how}"
    if len(episodes) > _SHOWN_TASKS:
        yield f"  and {len(episodes) - _SHOWN_TASKS} more"
    store = config.features.store
    yield (
        f"Disk: {size(needs.bytes)} in {store} for {needs.missing} dense maps of "
        f"{size(needs.bytes_per_map)}; {needs.maps - needs.missing} are there already. "
        f"{size(_free(store))} are free."
    )
    yield (
        f"Time, a rough estimate: {duration(math.ceil(needs.extraction_seconds))} for the dense "
        f"maps ({needs.maps_per_second:.0f} a second) and "
        f"{duration(math.ceil(needs.search_seconds))} for training ({needs.steps_per_second:.0f} "
        f"candidates x images a second). These are the rates of {needs.device}, measured now in "
        "a few seconds; decoding, starting processes (some half a minute) and testing come on top, "
        "and more machines divide it."
    )
    if not needs.at_hand:
        yield (
            f"The weights of {config.backbone.name} are not on this machine and will be "
            "downloaded: what the feature store has of it is not known."
        )


def size(count: int) -> str:
    """Return bytes in words: `512 bytes`, `9.3 MiB`."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _block(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
