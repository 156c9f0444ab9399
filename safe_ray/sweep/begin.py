"""What a command does first: whatever can be refused, before what takes seconds or leaves traces.

The order is that of the cost. Names, paths and files; then the lists of the data sets; then their
images, each decoded once. Only then is MLflow imported and the tracker opened; then Ray is started,
and torch and open_clip are imported and the weights loaded while it starts. When all of that has
gone well the sweep takes its name (`safe_ray.sweep.run`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safe_ray.backbones.files import check_files
from safe_ray.cluster import (
    ClusterResources,
    Waiting,
    check_cpus,
    connect_beside,
    expect,
    is_local,
    join,
    planned_nodes,
    spread,
    works_here,
)
from safe_ray.config import SweepConfig
from safe_ray.data.manifest import Manifest
from safe_ray.files import check_writable
from safe_ray.interruption import last_act
from safe_ray.last_words import last_words
from safe_ray.progress import Reporter
from safe_ray.sweep import data
from safe_ray.sweep.claim import Claim, claimed
from safe_ray.sweep.images import CheckedImages, check_images
from safe_ray.sweep.tracking import location_of, remarks, remedy
from safe_ray.tracking.connection import sqlite_file
from safe_ray.tracking.mlflow import Tracker
from safe_ray.tracking.source import source_tags
from safe_ray.tracking.writer import BackgroundTracker

if TYPE_CHECKING:
    from safe_ray.backbones.openclip import Backbone
    from safe_ray.features.extract import ExtractionSummary
    from safe_ray.sweep.run import SweepSummary


@dataclass(frozen=True)
class Admitted:
    """What passed the checks.

    Attributes:
        manifests: the data sets, by name.
        images: all images that are needed.
    """

    manifests: Mapping[str, Manifest]
    images: CheckedImages


def run_sweep(config: SweepConfig, anew: bool = False) -> SweepSummary:
    """Run a sweep, or go on with it, and print its table.

    Args:
        config: of the sweep.
        anew: remove what was begun under its name, once everything is checked.

    Raises:
        InputError: something that the person who asked for it can mend. Nothing that was computed
            before is lost.
    """
    began = time.monotonic()
    check_places(config)
    check_arithmetic(config)
    with (
        Reporter() as reporter,
        claimed(config, anew, reporter.say) as claim,
        Waiting(reporter.say) as waiting,
    ):
        admitted = admit(config, reporter, waiting, _opening(claim))
        location = location_of(config)
        for sentence in remarks(location):
            reporter.say(sentence)
        tracker = Tracker(
            location.uri,
            config.experiment,
            config.sweep,
            config.tracking.heads,
            location.artifact_root,
            begun=claim.beginning.id,
            source=source_tags(),
        )
        writer = BackgroundTracker(
            tracker,
            reporter.say,
            remedy(config.outputs),
            config.tracking.patience,
            required=not location.is_passing,
        )
        with last_words(_farewell(config)) as words_said, last_act(words_said), writer:
            resources, backbone = start(config, reporter, waiting)

            from safe_ray.sweep.run import print_where, run_admitted, with_runs

            summary = run_admitted(claim, admitted, backbone, resources, writer, reporter)
        summary = with_runs(config, summary, writer)
    if summary.results:
        print_where(config, summary, time.monotonic() - began)
    return summary


def run_extract(config: SweepConfig) -> list[ExtractionSummary]:
    """Extract the support, validation and test images of all tasks, and say what was done.

    Raises:
        InputError: images are bad, the weights cannot be loaded, or the store cannot be written.
    """
    check_places(config)
    check_arithmetic(config)
    with Reporter() as reporter, Waiting(reporter.say) as waiting:
        admitted = admit(config, reporter, waiting)
        _, backbone = start(config, reporter, waiting, ("trunk",))

        from safe_ray.sweep.extraction import extract_admitted

        return extract_admitted(config, admitted.images, backbone, reporter)


def check_places(config: SweepConfig) -> None:
    """Check the files and folders that a configuration names, the data sets apart.

    Raises:
        InputError: which of them is missing, unreadable or read-only.
    """
    check_files(config.backbone.spec())
    check_writable(config.storage, "storage")
    # One that is read-only may hold all that is needed: `check_store` looks, when it can.
    if not config.features.store.is_dir():
        check_writable(config.features.store, "features.store")
    location = location_of(config)
    database = sqlite_file(location.uri)
    if database is not None and not location.is_passing:
        check_writable(database.parent, "tracking.uri")


def check_arithmetic(config: SweepConfig) -> None:
    """Check that this machine can do the arithmetic that is asked of it, if it does the work.

    Whether a cluster can is for its nodes to say, once it is joined.

    Raises:
        InputError: bf16 or fp16 is asked for, and this CPU has no instructions for it.
    """
    asked = {config.features.precision, config.training.precision} - {"auto", "fp32"}
    if asked and is_local(config.cluster.address):
        # Only whoever asks waits for torch.
        from safe_ray.sweep.precision import check_this_machine

        check_this_machine(config)


def admit(config: SweepConfig, reporter: Reporter, waiting: Waiting, opening: str = "") -> Admitted:
    """Read the data sets, say what was assumed about them, and check their images.

    The images are decoded here, or by the nodes of a cluster whose driver is on one without CPUs.

    Args:
        config: of the sweep.
        reporter: where to say it.
        waiting: says what a cluster does not give.
        opening: what to say before.

    Raises:
        InputError: a data set is not what it should be, or images are bad.
    """
    manifests = data.read_manifests(config)
    episodes = data.draw_episodes(config, manifests)
    if opening:
        reporter.say(opening)
    for sentence in data.assumptions(config, manifests, episodes):
        reporter.say(sentence)
    helpers = spread if _needs_help(config, waiting) else None
    images = check_images(config, manifests, episodes, reporter.phase, helpers)
    for sentence in images.remarks():
        reporter.say(sentence)
    data.keep_splits(config, manifests)
    return Admitted(manifests, images)


def _needs_help(config: SweepConfig, waiting: Waiting) -> bool:
    """Join a running cluster, and return whether this process's own node has no CPUs to work with.

    Raises:
        InputError: there is no cluster, or no CPU in it and none to come.
    """
    cluster = config.cluster
    if is_local(cluster.address):
        return False
    join(cluster.address, cluster.num_cpus)
    waiting.begin()
    if works_here():
        return False
    expect([shape.spec() for shape in cluster.ceiling])
    check_cpus(planned_nodes())
    return True


def start(
    config: SweepConfig,
    reporter: Reporter,
    waiting: Waiting,
    parts: Sequence[str] | None = None,
) -> tuple[ClusterResources, Backbone]:
    """Start Ray, or join a cluster, and load the backbone meanwhile.

    Args:
        config: of the sweep.
        reporter: is told of nodes that cannot help.
        waiting: says what a cluster does not give.
        parts: of the backbone; None is all of it.

    Raises:
        InputError: there is no cluster, none of its nodes sees the storage, or the weights cannot
            be loaded.
    """

    def load() -> Backbone:
        from safe_ray.backbones.openclip import PARTS, load_backbone

        return load_backbone(config.backbone.spec(), parts=parts or PARTS)

    folders = (config.storage, config.features.store)
    cluster = config.cluster
    resources, backbone = connect_beside(
        cluster.address,
        cluster.num_cpus,
        load,
        folders,
        [shape.spec() for shape in cluster.ceiling],
        waiting.begin if not is_local(cluster.address) else lambda: None,
    )
    if resources.remark:
        reporter.say(resources.remark)
    if cluster.ceiling:
        reporter.say(f"Planning for {resources} (cluster.ceiling).")
    return resources, backbone


def _farewell(config: SweepConfig) -> str:
    return (
        f"safe_ray: the program has ended without a word: it was killed, or Ray's own process on "
        f"this machine (the raylet) died. Nothing that was finished is lost; to go on, give the "
        f"same command with sweep={config.sweep}"
    )


def _opening(claim: Claim) -> str:
    config = claim.config
    tasks, candidates = len(config.tasks.tasks()), config.search.candidates
    verb = "Going on with" if claim.resumed else "Starting"
    grown = claim.resumed and len(claim.beginning.candidates) > 1
    before = claim.beginning.candidates[-2] if grown else candidates
    more = f" ({before} before)" if grown else ""
    made_up = (
        f" Its name was made up: to go on with it later, give the same command with "
        f"sweep={config.sweep}."
    )
    return (
        f"{verb} sweep {config.sweep}: {tasks} task{'s' * (tasks != 1)}, {candidates} "
        f"candidate{'s' * (candidates != 1)} each{more}, backbone {config.backbone.name}."
        + made_up
        * config.is_name_made_up
    )
