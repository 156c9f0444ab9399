"""The last lines of a sweep: where everything is, and commands that open it when pasted."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from safe_ray import job
from safe_ray.files import is_uri
from safe_ray.report.summary import TaskResult
from safe_ray.tracking import links
from safe_ray.tracking.connection import displayed
from safe_ray.tracking.models import model_name


def closing_lines(
    folder: Path,
    store: Path,
    tracking_uri: str,
    node: str | None = None,
    unrecorded: int = 0,
    pages: Sequence[tuple[str, str]] = (),
    page: Path | None = None,
    predict: str | None = None,
) -> list[str]:
    """Return where a sweep has left what, one line each.

    Args:
        folder: the sweep's folder.
        store: the feature store.
        tracking_uri: where the runs are; a password in it is not repeated.
        node: the name of the node whose paths these are, where that is in question.
        unrecorded: how many records MLflow has not taken.
        pages: of MLflow, each with what it shows (see `pages_of`).
        page: the report as a page.
        predict: the command that classifies an image with a head of the sweep.
    """
    # The journal's module imports Optuna, which is slow, and the commands below are needed early.
    from safe_ray.search.journal import FILE_NAME

    entries = [] if node is None else [("node", f"{node}, whose paths these are")]
    entries += [
        ("results", str(folder / "results.md")),
        ("summary", str(folder / "summary.json")),
        ("heads", str(folder / "banks")),
        ("features", str(store)),
        ("compare", compare_command(tracking_uri)),
    ]
    if not _is_address(tracking_uri) and displayed(tracking_uri) != tracking_uri:
        entries.append(("", "with the password in place of ***"))
    entries += pages
    if unrecorded:
        entries.append(("record", f"{track_command(folder)} (MLflow lacks {unrecorded} records)"))
    dashboard = program("optuna-dashboard")
    if dashboard is not None:
        entries.append(("studies", f"{dashboard} {shlex.quote(str(folder / FILE_NAME))}"))
    entries += [("report", str(page))] if page is not None else []
    entries += [("predict", predict)] if predict is not None else []
    return [f"  {name:<9} {value}" for name, value in entries]


def predict_command(head: Path, image: str) -> str:
    """Return the command that classifies an image with a head.

    Args:
        head: its folder, or a task's in a sweep's.
        image: a path or a URI.
    """
    shown = shlex.quote(image) if is_uri(image) else _pasted(Path(image))
    return f"{_python()} -m safe_ray.predict {_pasted(head)} {shown}"


def pages_of(
    tracking_uri: str,
    experiment_id: str,
    sweep: str,
    results: Sequence[TaskResult],
    registered: bool,
) -> list[tuple[str, str]]:
    """Return the pages of MLflow that show a sweep, each with what it shows.

    They are a server's, or those that the command of `compare_command` opens.

    Args:
        tracking_uri: where the runs are.
        experiment_id: MLflow's; empty if it has not answered.
        sweep: its name.
        results: the entries of its summary.
        registered: whether winners that keep a head are registered.
    """
    if not experiment_id or tracking_uri.startswith("databricks"):
        return []
    base = f"{links.base_of(tracking_uri)}/"
    recorded = [result for result in results if result.mlflow_run_id is not None]
    pages = [("runs", base + links.experiment(experiment_id, f'tags.sweep = "{sweep}"'))]
    if len(recorded) == 1:
        pages.append(("run", base + links.run(experiment_id, str(recorded[0].mlflow_run_id))))
    names = {model_name(r.backbone, r.dataset, r.shots) for r in recorded if r.head is not None}
    if registered and names:
        shown = (
            links.registered_model(names.pop()) if len(names) == 1 else links.registered_models()
        )
        pages.append(("models", base + shown))
    return pages


def compare_command(tracking_uri: str) -> str:
    """Return the command that shows the runs, or the address at which a server shows them."""
    shown = displayed(tracking_uri)
    if _is_address(tracking_uri):
        return shown
    mlflow = program("mlflow") or f"{_pasted(Path(sys.executable))} -m mlflow"
    return f"{mlflow} ui --backend-store-uri {shlex.quote(shown)}"


def track_command(folder: Path) -> str:
    """Return the command that brings what MLflow has not heard of a sweep."""
    python = _pasted(Path(sys.executable)) if job.is_submitted() else "python"
    return f"{python} -m safe_ray.track {shlex.quote(str(folder))}"


def _python() -> str:
    """Return this Python as a shell started here finds it: by its name, or else by its path.

    Environments' Pythons are links to the same file, so that a file says nothing here.
    """
    found = None if job.is_submitted() else shutil.which("python")
    here = Path(sys.executable)
    return "python" if found and Path(found).parent == here.parent else _pasted(here)


def _is_address(tracking_uri: str) -> bool:
    """Whether a server has the runs, which `mlflow ui` would refuse as a store."""
    return tracking_uri.startswith(("http://", "https://", "databricks"))


def program(name: str) -> str | None:
    """Return what starts a program of this Python's environment from a shell started here.

    Its bare name if the shell finds it, otherwise its path; None if the environment has no such
    program. Nobody has a shell where a submitted job starts, so its programs have whole paths.
    """
    script = Path(sys.executable).with_name(name)
    if not script.is_file():
        return None
    found = None if job.is_submitted() else shutil.which(name)
    return name if found is not None and script.samefile(found) else _pasted(script)


def _pasted(path: Path) -> str:
    """Return a path for a shell, from the working directory if it lies in a folder below."""
    here = Path.cwd()
    if not job.is_submitted() and path.is_relative_to(here) and path.parent != here:
        path = path.relative_to(here)
    return shlex.quote(str(path))
