"""What the driver of a submitted Ray job (`ray job submit`) can know about its job."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the driver of a submitted job, and for no other process."""

RESULTS = "safe-ray-results"


def is_submitted() -> bool:
    """Return whether this process is the driver of a submitted job."""
    return VARIABLE in os.environ


def submission_id() -> str | None:
    """Return the name under which Ray's job API knows this job; None outside of a job."""
    found = _described("metadata").get("job_submission_id")
    return found if isinstance(found, str) else None


def runtime_env() -> dict[str, Any]:
    """Return the runtime environment that the job was submitted with; empty outside of a job."""
    return _described("runtime_env")


def _described(part: str) -> dict[str, Any]:
    try:
        described = json.loads(os.environ.get(VARIABLE, "{}"))
    except ValueError:
        return {}
    found = described.get(part) if isinstance(described, dict) else None
    return found if isinstance(found, dict) else {}


def passing_folder() -> Path | None:
    """Return the working directory if Ray made it for this job, and will remove it; else None."""
    return Path.cwd() if is_submitted() and runtime_env().get("working_dir") else None


def default_storage() -> Path:
    """Return where a command writes when nobody has said where.

    Outside of a job that is the working directory. A job's own may be removed with the job, so a
    job writes to a folder in the home of the user who runs the node that its driver is on.
    """
    return Path.home() / RESULTS if is_submitted() else Path.cwd()
