"""Which head a person means: a folder, a task of a sweep, or a model of MLflow's registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safe_ray.errors import InputError, nearest
from safe_ray.files import is_uri, resolve_path
from safe_ray.heads.artifact import CARD_FILE, load_card
from safe_ray.prediction.bundle_files import is_bundle
from safe_ray.report.summary import SUMMARY_FILE, TaskResult, read_summary, task_id
from safe_ray.specs import Task

MODELS = "models:/"
_SHOWN = 12


def find_head(text: str) -> Path:
    """Return the folder of the head that a person names.

    Args:
        text: a head's folder, or an exported bundle's; a sweep's folder if it has one task, or
            `<sweep>/<task>` or `<sweep>/<task>/<method>`; or `models:/<name>@<alias>` or
            `models:/<name>/<version>` in the MLflow that `MLFLOW_TRACKING_URI` names.

    Raises:
        InputError: there is no such head, or several fit.
    """
    if text.startswith(MODELS):
        return _from_registry(text)
    if is_uri(text):
        raise InputError(
            f"A head is read from a folder or from {MODELS}<name>@best, not from {text}: copy it "
            "to a folder first."
        )
    folder = resolve_path(text)
    if (folder / CARD_FILE).is_file() or is_bundle(folder):
        return folder
    for sweep, inside in ((folder, ()), (folder.parent, folder.parts[-1:])):
        if (sweep / SUMMARY_FILE).is_file():
            return _of_sweep(sweep, inside)
    sweep = folder.parent.parent
    if (sweep / SUMMARY_FILE).is_file():
        return _of_sweep(sweep, folder.parts[-2:])
    raise InputError(
        f"There is no head in {folder}: name a folder that holds {CARD_FILE}, the folder of a "
        f"sweep that has ended, or {MODELS}<name>@best."
    )


def find_heads(text: str) -> dict[str, Path]:
    """Return the folder of every head that a person names, by a name for its task.

    Args:
        text: a sweep's folder, which gives the head of each of its tasks, of the method that
            validation prefers; or what `find_head` takes. A model of MLflow is called as there.

    Raises:
        InputError: there is no such head.
    """
    if not text.startswith(MODELS) and not is_uri(text):
        folder = resolve_path(text)
        if (folder / SUMMARY_FILE).is_file():
            tasks = dict.fromkeys(map(task_id, _kept(folder)))
            return {task: _of_sweep(folder, (task,)) for task in tasks}
    head = find_head(text)
    if text.startswith(MODELS):
        return {text.removeprefix(MODELS).partition("@")[0].partition("/")[0]: head}
    card = load_card(head)
    return {Task(card["dataset"], card["shots"], card["seed"]).id: head}


def _kept(sweep: Path) -> list[TaskResult]:
    kept = [result for result in read_summary(sweep) if result.head is not None]
    if not kept:
        raise InputError(
            f"{sweep} keeps no head: its methods have none, or tracking.heads left them out."
        )
    return kept


def _of_sweep(sweep: Path, inside: Sequence[str]) -> Path:
    """Return the head of a task, of the method that validation prefers if none is named."""
    kept = _kept(sweep)
    tasks = list(dict.fromkeys(map(task_id, kept)))
    if not inside and len(tasks) > 1:
        raise InputError(
            f"{sweep} has {len(tasks)} tasks: name one, such as {sweep / tasks[0]}. They are "
            f"{_listed(tasks)}."
        )
    wanted = inside[0] if inside else tasks[0]
    if wanted not in tasks:
        raise InputError(
            f"{sweep} has no task {wanted!r} with a head.{nearest(wanted, tasks)} It has "
            f"{_listed(tasks)}."
        )
    here = [result for result in kept if task_id(result) == wanted]
    if len(inside) > 1:
        methods = [result.method for result in here]
        if inside[1] not in methods:
            raise InputError(
                f"{sweep / wanted} has no head of {inside[1]!r}.{nearest(inside[1], methods)} It "
                f"has {_listed(methods)}."
            )
        here = [result for result in here if result.method == inside[1]]
    best = max(here, key=_on_validation)
    assert best.head is not None
    folder = sweep / best.head
    if not (folder / CARD_FILE).is_file():
        raise InputError(
            f"{folder} is gone, where the head of {wanted} was: give the sweep's command again."
        )
    return folder


def _on_validation(result: TaskResult) -> tuple[bool, float, float]:
    shown = result.validation
    by_class = result.protocol.metric == "mean_per_class"
    # One that gave way to zero-shot has not what validation says of it.
    gave_way = result.protocol.cautious and not shown.gain_shown
    return not gave_way, (shown.mean_per_class if by_class else shown.accuracy), -shown.nll


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _from_registry(uri: str) -> Path:
    """Return where MLflow puts the files of a registered model's version."""
    from safe_ray.tracking.registry import fetch

    folder = fetch(uri)
    found = sorted(file.parent for file in folder.rglob(CARD_FILE))
    if not found:
        raise InputError(f"{uri} holds no head: name a model that a sweep registered.")
    return found[0]
