"""A sweep's runs in MLflow, made of the files in its folder alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_ray.config import REMEMBERED, TrackingConfig
from safe_ray.errors import DamagedFileError, IncompleteError, InputError
from safe_ray.progress import Reporter
from safe_ray.redaction import HIDDEN
from safe_ray.sweep.claim import beginning_of
from safe_ray.sweep.ownership import owning
from safe_ray.sweep.tracked import TRACKED, Tracked, load_tracked
from safe_ray.tracking.connection import AwayError, displayed
from safe_ray.tracking.location import VARIABLE, locate_runs
from safe_ray.tracking.mlflow import Tracker

if TYPE_CHECKING:
    from safe_ray.tracking.writer import Record

TRIES = 5
"""How often a record is tried while MLflow is away, with longer and longer pauses."""
_SILENCE_SECONDS = 60.0


def replay(folder: Path, overrides: Sequence[str], config_dir: str | None = None) -> None:
    """Record in MLflow what it has not heard of a sweep, and say where that is.

    Args:
        folder: the sweep's.
        overrides: settings `tracking.<knob>=<value>` over those that the sweep had.
        config_dir: a tree like `conf/` of the person's own.

    Raises:
        InputError: the folder is no sweep's, the sweep is being run, or MLflow is away.
        IncompleteError: MLflow has refused some of it.
    """
    tracked = _tracked(folder)
    tracking = _settings(tracked, overrides, config_dir)
    with Reporter() as reporter, owning(folder, _SILENCE_SECONDS, reporter.say):
        tracker = Tracker(
            _uri(tracked, tracking, folder),
            tracking.experiment or tracked.experiment,
            tracked.sweep,
            tracking.heads,
            begun=beginning_of(folder).id,
            source=tracked.origin,
        )
        tracker.open(reporter.say)
        count, refused = _record(folder, tracked, tracking, tracker, reporter)
        tracker.close()
    where = displayed(tracker.uri)
    if refused:
        raise IncompleteError(
            f"MLflow at {where} has refused {len(refused)} of {count} records of the sweep "
            f"{tracked.sweep!r}; the first: {refused[0]}"
        )
    print(
        f"MLflow at {where} has the sweep {tracked.sweep} in its experiment "
        f"{tracker.experiment!r}: {count} records."
    )


def _record(
    folder: Path,
    tracked: Tracked,
    tracking: TrackingConfig,
    tracker: Tracker,
    reporter: Reporter,
) -> tuple[int, list[str]]:
    """Write all records of a sweep, and the ids of its runs into its summary.

    Returns:
        How many records there are, and why those that MLflow has refused were refused.
    """
    from safe_ray.report.html.page import REPORT_FILE
    from safe_ray.report.parquet import PARQUET_FILE, write_parquet
    from safe_ray.report.summary import SUMMARY_FILE, read_summary, write_summary
    from safe_ray.sweep.recording import Recording, identified
    from safe_ray.training.facts import TaskFacts

    facts = {task_id: TaskFacts.load(folder / "tasks" / task_id) for task_id in tracked.tasks}
    settings = replace(tracked, register=tracking.register_winners, models=tracking.models)
    recording = Recording(folder, settings, facts)
    results = read_summary(folder) if (folder / SUMMARY_FILE).exists() else []
    records = [
        *recording.systems(),
        *recording.tasks(),
        *recording.banks(),
        *map(recording.result, results),
    ]
    page = folder / REPORT_FILE
    if page.is_file() and tracked.systems:
        records.append(_page(tracked.systems[-1], page))
    progress = reporter.phase("recording")
    refused: list[str] = []
    for number, record in enumerate(records, start=1):
        try:
            _patiently(tracker, record)
        except AwayError:
            raise
        except InputError as error:
            refused.append(str(error))
        progress(number, len(records), None)
    methods = sum(len(group.methods) for group in next(iter(facts.values())).groups)
    known = list(identified(results, methods, tracker.known_runs().get))
    if known != results:
        write_summary(known, folder)
        write_parquet(known, folder / PARQUET_FILE)
    return len(records), refused


def _tracked(folder: Path) -> Tracked:
    if not (folder / REMEMBERED).exists():
        raise InputError(
            f"{folder} is not the folder of a sweep: name one such as outputs/first, which has a "
            f"{REMEMBERED}."
        )
    try:
        tracked = load_tracked(folder)
    except DamagedFileError as error:
        raise InputError(f"{error}") from None
    if tracked is None:
        raise InputError(
            f"{folder} has no {TRACKED}, because the sweep was begun by an older version or has "
            "not come so far: give the command of the sweep again, which records what is missing."
        )
    return tracked


def _settings(tracked: Tracked, overrides: Sequence[str], config_dir: str | None) -> TrackingConfig:
    """Return the settings that the sweep had, with those of the command line over them."""
    from safe_ray.compose import load_config

    had: dict[str, Any] = {
        "heads": tracked.heads,
        "register": tracked.register,
        "models": tracked.models,
    }
    before = [f"tracking.{name}={str(value).lower()}" for name, value in had.items()]
    return load_config([*before, *overrides], config_dir).tracking


def _uri(tracked: Tracked, tracking: TrackingConfig, folder: Path) -> str:
    """Return where to record: as the command line says, or the environment, or the sweep before."""
    if tracking.uri or os.environ.get(VARIABLE):
        return locate_runs(tracking.uri, folder, joining=False).uri
    if HIDDEN in tracked.uri:
        raise InputError(
            f"The runs of {folder} went to {tracked.uri}, and passwords are not kept: name it once "
            f"more, with {VARIABLE} or tracking.uri=<uri>."
        )
    return tracked.uri


def _page(facts: Any, file: Path) -> Record:
    return lambda tracker: tracker.log_page(facts, file)


def _patiently(
    tracker: Tracker, record: Record, pause: Callable[[float], None] = time.sleep
) -> None:
    """Write a record, trying again while MLflow is away.

    Raises:
        AwayError: it stays away.
        InputError: it refuses the record.
    """
    for tried in range(1, TRIES + 1):
        try:
            tracker.open()
            record(tracker)
            return
        except AwayError:
            tracker.close()
            if tried == TRIES:
                raise
            pause(2.0 ** (tried - 1))
