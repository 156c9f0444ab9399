"""What is registered of a winner: its files, what they are called, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_ray.files import PACKAGE_SCHEME, names_file, resolve_path
from safe_ray.report.summary import TaskResult
from safe_ray.sweep.notes import version_note
from safe_ray.tracking.models import Candidate, model_name
from safe_ray.tracking.packing import Package
from safe_ray.training.facts import CLASSIFIER, TaskFacts

_BACKBONE = "backbone"


def winner_of(
    result: TaskResult, facts: TaskFacts, folder: Path, sweep: str, packed: bool
) -> Candidate | None:
    """Return what is registered of a result; None if its method keeps nothing.

    Args:
        result: the entry of the summary.
        facts: its task.
        folder: of the sweep.
        sweep: its name.
        packed: whether it becomes a model that predicts.
    """
    if result.head is None:
        return None
    head = folder / result.head
    name = model_name(result.backbone, result.dataset, result.shots)
    about = {
        "backbone": result.backbone,
        "dataset": result.dataset,
        "shots": str(result.shots),
    }
    own = {"sweep": sweep, "seed": str(result.seed), "method": result.method}
    metadata = {**about, **own, **{key: f"{value:g}" for key, value in result.best.items()}}
    return Candidate(
        name=name,
        package=_package(head, facts, folder, metadata) if packed else None,
        head=head,
        better=_figures(result),
        tags={**about, **own},
        about=about,
        note=version_note(result, sweep, name),
    )


def _figures(result: TaskResult) -> dict[str, float]:
    """Return by what versions are compared: what was asked for, then how sure it was of it."""
    shown = result.validation
    both = {
        "validation_accuracy": shown.accuracy,
        "validation_mean_per_class": shown.mean_per_class,
    }
    first = "validation_accuracy"
    if result.protocol.metric == "mean_per_class":
        first = "validation_mean_per_class"
    rest = {name: value for name, value in both.items() if name != first}
    return {first: both[first], "validation_negative_nll": -shown.nll, **rest}


def _package(head: Path, facts: TaskFacts, folder: Path, metadata: Mapping[str, str]) -> Package:
    more = {CLASSIFIER: folder / "tasks" / facts.task.id / CLASSIFIER}
    for file in _own_files(facts.card["backbone"]):
        more[f"{_BACKBONE}/{file.name}"] = file
    return Package(
        head=head,
        more={name: file for name, file in more.items() if file.is_file()},
        side=int(facts.card["preprocessing"].get("size", 32)),
        metadata=metadata,
    )


def _own_files(backbone: Mapping[str, Any]) -> list[Path]:
    """Return the files of a backbone that whoever loads a model cannot get from anybody else.

    What open_clip can fetch, and what comes with an installed package, is named and not copied.
    """
    named = [backbone.get("model_config")]
    pretrained = backbone.get("pretrained")
    if isinstance(pretrained, str) and names_file(pretrained):
        named.append(pretrained)
    return [
        resolve_path(text)
        for text in named
        if isinstance(text, str) and not text.startswith(PACKAGE_SCHEME)
    ]
