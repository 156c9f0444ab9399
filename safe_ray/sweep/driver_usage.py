"""`usage.json`: how busy the driver's machine was, for each system that a sweep has run on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safe_ray.errors import DamagedFileError, InputError
from safe_ray.files import as_kind, damaged, digest_json, read_record, write_record
from safe_ray.usage import MOST, Sample, Sampler, probe_of_machine

USAGE = "usage.json"
_SYSTEMS = 20


@dataclass(frozen=True)
class _Usage:
    """Samples by the digest of the system's facts, the latest system last."""

    systems: dict[str, tuple[Sample, ...]]


def load_usage(folder: Path, facts: Mapping[str, str]) -> tuple[Sample, ...]:
    """Return what was measured on a system; nothing if the file is gone or damaged."""
    try:
        return _read(folder).get(digest_json(dict(facts)), ())
    except InputError:
        return ()


@contextlib.contextmanager
def measuring(folder: Path, facts: Mapping[str, str], wanted: bool) -> Iterator[None]:
    """Measure the driver's machine meanwhile, and keep it in the sweep's folder.

    Args:
        folder: of the sweep.
        facts: of the system.
        wanted: whether anything is measured.
    """
    key = digest_json(dict(facts))
    try:
        before = _read(folder)
    except DamagedFileError:
        before = {}
    earlier = before.pop(key, ())

    def keep(samples: Sequence[Sample]) -> None:
        systems = {**before, key: (*earlier, *samples)[-MOST:]}
        latest = dict(list(systems.items())[-_SYSTEMS:])
        # A full disk is told by whoever writes what matters.
        with contextlib.suppress(InputError):
            write_record(folder / USAGE, asdict(_Usage(latest)))

    with Sampler(on_sample=keep, probe=probe_of_machine() if wanted else None):
        yield


def _read(folder: Path) -> dict[str, tuple[Sample, ...]]:
    found = read_record(folder / USAGE)
    if found is None:
        return {}
    usage = as_kind(_Usage, found, folder / USAGE)
    if not all(each.is_sound for samples in usage.systems.values() for each in samples):
        raise damaged(folder / USAGE)
    return usage.systems
