"""Who ran a sweep, with which command and which code: the tags that MLflow's pages show."""

from __future__ import annotations

import getpass
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from safe_ray.job import is_submitted
from safe_ray.redaction import redacted
from safe_ray.tracking.system import git_commit

COMMAND = "safe_ray.command"
"""The tag with the whole command."""

_CHANGED = "+changes"


def source_tags() -> dict[str, str]:
    """Return the tags of this process's runs: user, program, its kind, the commit of the package.

    Passwords in the command are left out.
    """
    module = _module()
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": module or Path(sys.argv[0]).name,
        "mlflow.source.type": "JOB" if is_submitted() else "LOCAL",
        COMMAND: redacted(command_line(module, sys.argv)),
    }
    commit = git_commit(Path(__file__))
    if commit is not None:
        tags["mlflow.source.git.commit"] = commit.removesuffix(_CHANGED)
        tags["mlflow.source.git.dirty"] = str(commit.endswith(_CHANGED))
    return {key: value for key, value in tags.items() if value}


def command_line(module: str | None, arguments: Sequence[str]) -> str:
    """Return the command that a person would paste into a shell to run the program again.

    Args:
        module: what follows `python -m`; None for a script.
        arguments: of the process; the first is the program.
    """
    program = ["python", "-m", module] if module else [arguments[0]]
    return shlex.join([*program, *arguments[1:]])


def _module() -> str | None:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None else str(spec.name).removesuffix(".__main__")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have no name.
        return ""
