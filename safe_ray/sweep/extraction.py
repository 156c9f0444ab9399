"""The feature store gets what a sweep needs; `python -m safe_ray.extract` does only that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from safe_ray.backbones.openclip import Backbone
from safe_ray.cluster import release_nodes
from safe_ray.config import SweepConfig
from safe_ray.errors import InputError
from safe_ray.features.extract import (
    ExtractionOptions,
    ExtractionRequest,
    ExtractionSummary,
    Precision,
    extract,
    open_store,
    resolve_precision,
)
from safe_ray.features.inventory import Inventory, no_progress
from safe_ray.features.rows import missing_rows, wanted_rows
from safe_ray.features.verification import verify_stores
from safe_ray.progress import Progress, Reporter
from safe_ray.sweep.images import CheckedImages, CheckedTask
from safe_ray.sweep.precision import check_precisions
from safe_ray.sweep.schedule import views_of


def check_store(
    config: SweepConfig, backbone: Backbone, images: CheckedImages, precision: Precision
) -> None:
    """Check that a feature store that is read-only lacks nothing of what the sweep will need.

    Raises:
        InputError: it does. A sweep would find out about its test images after the search.
    """
    folder = config.features.store
    if not folder.is_dir() or os.access(folder, os.W_OK | os.X_OK):
        return
    store = open_store(backbone, folder, precision)
    requests = [*support_requests(config, images.tasks), *_tests(images.tests.values())]
    wanted, _ = wanted_rows(requests, ())
    missing = len(missing_rows(store, wanted))
    if missing:
        raise InputError(
            f"features.store is {folder}, which cannot be written to, and lacks dense maps of "
            f"{missing} images that this sweep needs: name a folder that you may write to with "
            "features.store=<folder>, or extract into this one where it can be written."
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
    return _extract(
        config, backbone, support_requests(config, tasks), precision, progress, reporter
    )


def extract_tests(
    config: SweepConfig,
    backbone: Backbone,
    inventories: Sequence[Inventory],
    precision: Precision,
    progress: Progress,
    reporter: Reporter | None = None,
) -> ExtractionSummary:
    """Fill the feature store with the evaluation views of test splits; see `extract_support`."""
    return _extract(config, backbone, _tests(inventories), precision, progress, reporter)


def support_requests(config: SweepConfig, tasks: Sequence[CheckedTask]) -> list[ExtractionRequest]:
    """Return what training and validation need of the feature store."""

    def views(task: CheckedTask) -> range:
        return range(views_of(config, task.task, len(task.support.samples)) + 1)

    requests = [ExtractionRequest.of(task.support, views(task)) for task in tasks]
    requests += [
        # A winner that is trained again sees the validation samples as it sees the support set.
        ExtractionRequest.of(task.validation, views(task) if config.search.refit else (0,))
        for task in tasks
        if task.validation.table.num_rows
    ]
    return requests


def _tests(inventories: Iterable[Inventory]) -> list[ExtractionRequest]:
    return [ExtractionRequest.of(inventory, (0,)) for inventory in inventories]


def _extract(
    config: SweepConfig,
    backbone: Backbone,
    requests: Sequence[ExtractionRequest],
    precision: Precision,
    progress: Progress,
    reporter: Reporter | None,
) -> ExtractionSummary:
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


def extract_admitted(
    config: SweepConfig,
    images: CheckedImages,
    backbone: Backbone,
    reporter: Reporter,
) -> list[ExtractionSummary]:
    """Extract the support, validation and test images of all tasks, and say what was done.

    Raises:
        InputError: the store cannot be written.
    """
    summaries = []
    precision = resolve_precision(config.features.precision)
    check_precisions(config, precision, gpus_per_worker=None)
    check_store(config, backbone, images, precision)
    release_nodes()
    summaries.append(
        extract_support(
            config,
            backbone,
            images.tasks,
            precision,
            reporter.phase("extracting images"),
            reporter,
        )
    )
    summaries.append(
        extract_tests(
            config,
            backbone,
            list(images.tests.values()),
            precision,
            reporter.phase("extracting test images"),
            reporter,
        )
    )
    for name, summary in zip(("support and validation", "test"), summaries, strict=True):
        print(
            f"{name}: {summary.asked} dense maps, {summary.reused} were there, "
            f"{summary.extracted} extracted in {summary.precision} at "
            f"{summary.images_per_second:.1f} images/s, {summary.bad} bad images left out"
        )
    print(f"feature store: {summaries[0].folder}")
    return summaries


def run_verify(config: SweepConfig) -> bool:
    """Read every part of the feature stores, say what they are like, return whether all are sound.

    Parts that are damaged are set aside. Parts without checksums are no damage.

    Raises:
        InputError: the operating system refuses to read a store.
    """
    root = config.features.store
    with Reporter() as reporter:
        stores = verify_stores(root, reporter.phase("verifying parts"))
    for store in stores:
        for line in store.lines():
            print(line)
    if not stores:
        print(f"{root} holds no dense maps.")
    if any(store.unverified for store in stores):
        print(
            "Unverified parts were written by an older version, which kept no checksums. They are "
            "used as they are; delete them, and their maps are extracted again."
        )
    if any(store.damage for store in stores):
        print("The next run extracts what it needs of the damaged parts again.")
    return not any(store.damage for store in stores)
