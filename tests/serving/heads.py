"""A sweep's folder with heads in it, made without a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safe_ray.report.summary import write_summary
from safe_ray.specs import BackboneSpec
from tests.prediction.heads import moved, write_head
from tests.report.results import result

TASKS = ("shapes-2shot-seed1", "signs-2shot-seed1", "stamps-2shot-seed1")


def write_sweep(folder: Path, spec: BackboneSpec, seeds: Mapping[str, int], **changes: Any) -> Path:
    """Write a head for each data set, whose weights are drawn by a seed, and the summary."""
    from safe_ray.backbones.openclip import load_backbone

    state = load_backbone(spec, parts=("pooling",)).state
    entries = []
    for dataset, seed in seeds.items():
        head = f"banks/{dataset}/{seed}"
        tuned = moved(state, 0.3, seed)
        write_head(folder / head, spec, tuned, dataset=dataset, method=SAFE, **changes)
        entries.append(replace(result(dataset), head=head))
    write_summary(entries, folder)
    return folder


SAFE = {
    "name": "safe",
    "title": "SAFE",
    "module": "safe_ray.methods.tuned",
    "options": {},
}


def datasets(tasks: Sequence[str] = TASKS) -> dict[str, int]:
    """Return the data set of each task, with a seed of its own."""
    return {task.partition("-")[0]: seed for seed, task in enumerate(tasks, 1)}
