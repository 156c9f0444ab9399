"""`tracking.json`: what MLflow is told of a sweep that no other file of its folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safe_ray.config import TrackingConfig
from safe_ray.errors import DamagedFileError, InputError
from safe_ray.files import read_record, write_record
from safe_ray.redaction import redacted, redacted_values

TRACKED = "tracking.json"
SYSTEMS = 20
"""How many systems that a sweep has run on are remembered, at most."""


@dataclass(frozen=True)
class Tracked:
    """What a sweep's folder does not say otherwise.

    Attributes:
        sweep: the name by which MLflow knows the sweep, wherever its folder is moved.
        uri: where its runs went; a password in it is left out.
        experiment: the name of MLflow's experiment.
        heads: which heads are uploaded.
        register: whether winners are registered as models.
        refit: whether winners are trained again.
        tasks: their ids.
        systems: the facts of each system that the sweep has run on, the latest last.
        models: whether winners are packed as models (see `tracking.models`).
        origin: tags that say who ran the sweep, and how; of the run that began it.
        data: what MLflow is told of each data set: `source`, where it is, and `test`, the digest of
            its test images.
    """

    sweep: str
    uri: str
    experiment: str
    heads: str
    register: bool
    refit: bool
    tasks: tuple[str, ...]
    systems: tuple[Mapping[str, str], ...]
    models: str = "auto"
    origin: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @staticmethod
    def of(
        sweep: str,
        uri: str,
        experiment: str,
        tracking: TrackingConfig,
        refit: bool,
        tasks: Sequence[str],
        system: Mapping[str, str],
        origin: Mapping[str, str],
        data: Mapping[str, Mapping[str, str]],
    ) -> Tracked:
        """Return what is known when a sweep begins to be recorded."""
        return Tracked(
            sweep=sweep,
            uri=redacted(uri),
            experiment=experiment,
            heads=tracking.heads,
            register=tracking.register_winners,
            refit=refit,
            tasks=tuple(tasks),
            systems=(dict(redacted_values(system)),),
            models=tracking.models,
            origin=dict(redacted_values(origin)),
            data=redacted_values(data),
        )

    def save(self, folder: Path) -> None:
        """Write the file; systems that an earlier run has written stay, up to `SYSTEMS`."""
        try:
            before = load_tracked(folder)
        except DamagedFileError:
            before = None
        systems = [] if before is None else [s for s in before.systems if s not in self.systems]
        origin = self.origin if before is None else (before.origin or self.origin)
        kept = replace(self, systems=(*systems, *self.systems)[-SYSTEMS:], origin=origin)
        write_record(folder / TRACKED, asdict(kept))


def load_tracked(folder: Path) -> Tracked | None:
    """Read the file; None if there is none.

    Raises:
        DamagedFileError: it does not hold what was written.
        InputError: it cannot be read, or was written by another version.
    """
    record: dict[str, Any] | None = read_record(folder / TRACKED)
    if record is None:
        return None
    try:
        values = {**record, "tasks": tuple(record["tasks"]), "systems": tuple(record["systems"])}
        return Tracked(**values)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / TRACKED} was written by another version ({error}): give the command of "
            "the sweep again, which records what is missing."
        ) from None
