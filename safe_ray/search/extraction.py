"""`python -m safe_ray.extract`: the sweep's features without its search, and their verification."""

from __future__ import annotations

from safe_ray.backbones.openclip import Backbone
from safe_ray.config import SweepConfig
from safe_ray.features.extract import ExtractionSummary, resolve_precision
from safe_ray.features.verification import verify_stores
from safe_ray.progress import Reporter
from safe_ray.search import preparation
from safe_ray.search.precision import check_precisions


def extract_admitted(
    config: SweepConfig,
    images: preparation.CheckedImages,
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
    summaries.append(
        preparation.extract_support(
            config,
            backbone,
            images.tasks,
            precision,
            reporter.phase("extracting images"),
            reporter,
        )
    )
    summaries.append(
        preparation.extract_tests(
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
