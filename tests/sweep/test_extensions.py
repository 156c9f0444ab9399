"""A method and a pooling of one's own: a module and a YAML file, from the command to the report."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from safe_ray.config.sweep import EXPERIMENT

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"
SETTINGS = (
    "backbone=tiny",
    "tasks.datasets=[shapes]",
    "tasks.shots=[2]",
    "tasks.seeds=[1]",
    "features.views=1",
    "search.candidates=3",
    "search.bank=3",
    "search.epochs=4",
    "training.batch_size=8",
    "sweep=mine",
    "cluster.num_cpus=2",
)

FAMILY = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from safe_ray.poolings import pool_each
from safe_ray.poolings.base import Cut


@dataclass(frozen=True)
class MeanThenProjection:
    """The mean of all tokens, projected; the tower's own output projection is where it begins."""

    scale: int
    groups: ClassVar = ("weight", "bias")
    inert: ClassVar = frozenset()

    @classmethod
    def matches(cls, visual):
        return hasattr(visual, "attnpool")

    @classmethod
    def cut(cls, visual, image_size):
        layer, tokens = visual.attnpool, (image_size // 32) ** 2
        state = {"weight": layer.c_proj.weight.detach(), "bias": layer.c_proj.bias.detach()}
        visual.attnpool = nn.Identity()
        trunk = nn.Sequential(visual, nn.Flatten(2), Swap())
        width, embed = state["weight"].shape[1], state["weight"].shape[0]
        return Cut(trunk, cls(1), state, "visual.mean.", tokens, width, embed, {"family": "mean"})

    def prepare(self, maps):
        return maps.float().mean(1)

    def pool(self, tokens, state):
        return pool_each(lambda t, s: self.scale * t @ s["weight"].T + s["bias"], tokens, state)

    def activation_bytes(self, state, batch_size):
        return 4 * batch_size * state["weight"].shape[1]

    def step(self, bank, optimiser):
        return None


class Swap(nn.Module):
    def forward(self, maps):
        return maps.transpose(1, 2)


POOLING = MeanThenProjection
'''


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
    )


def block(language: str) -> str:
    """The document's own example, so that it cannot rot."""
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.S)
    assert found is not None
    return found[1]


@pytest.mark.timeout(600)
def test_a_method_is_a_module_and_a_file(
    tmp_path: Path, tiny_config_dir: Path, stored_maps: Path
) -> None:
    """The example of docs/methods.md beside methods of the package, through MLflow and report."""
    conf = tmp_path / "conf"
    shutil.copytree(tiny_config_dir, conf)
    (conf / "method").mkdir()
    (conf / "method" / "nearest_mean.yaml").write_text(block("yaml"))
    (tmp_path / "nearest_mean.py").write_text(block("python"))
    methods = ["nearest_mean", "safe", "safe_a", "tuned_pooling", "zero_shot", "tip_adapter_f"]
    done = run(
        tmp_path,
        "safe_ray.tune",
        "--config-dir",
        str(conf),
        *SETTINGS,
        f"storage={tmp_path}",
        f"features.store={stored_maps}",
        f"method=[{','.join(methods)}]",
        "method.tip_adapter_f.space.epochs=2",
        "evaluation.targets=[some_shapes]",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nearest mean" in done.stdout

    sweep = tmp_path / "outputs" / "mine"
    entries = {entry["method"]: entry for entry in json.loads((sweep / "summary.json").read_text())}
    assert list(entries) == methods
    for name, entry in entries.items():
        assert set(entry["test"]) == {"zero_shot", name}
        assert entry["targets"]["some_shapes"]["samples"] == 18
        assert entry["test"]["zero_shot"] == entries["zero_shot"]["test"]["zero_shot"]
    mine = entries["nearest_mean"]
    assert set(mine["best"]) == {"share"}
    card = json.loads((sweep / mine["head"] / "head.json").read_text())
    assert card["method"] == {
        "name": "nearest_mean",
        "title": "nearest mean",
        "module": "nearest_mean",
        "options": {},
    }
    assert set(load_file(sweep / mine["head"] / "head.safetensors")) == {"means"}
    assert entries["zero_shot"]["head"] is None
    assert entries["tuned_pooling"]["best"]["alpha"] == 1.0
    # Methods that train the same have one bank, and one file where they keep the same pooling.
    groups = {folder.name for folder in (sweep / "banks" / "shapes-2shot-seed1").iterdir()}
    assert groups == {"nearest_mean", "safe", "tip_adapter_f"}
    heads = [
        sweep / "banks/shapes-2shot-seed1/safe/bank-000" / f"candidate-00-{name}"
        for name in ("safe", "tuned_pooling")
    ]
    files = [head / "head.safetensors" for head in heads]
    assert files[0].samefile(files[1])

    table = pq.read_table(sweep / "results.parquet").to_pylist()
    assert {(row["method"], row["test_accuracy"]) for row in table} == {
        (name, entry["test"][name]) for name, entry in entries.items()
    }
    correct = pq.read_table(sweep / "correct.parquet").to_pylist()
    assert {row["method"] for row in correct} == set(methods)

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    tasks = [r for r in runs if r.data.tags["safe_ray.kind"] == "task"]
    assert {r.data.tags["method"] for r in tasks} == set(methods)
    for each in tasks:
        name = each.data.tags["method"]
        assert each.data.metrics[f"test_{name}"] == entries[name]["test"][name]
    candidates = [r for r in runs if r.data.tags["safe_ray.kind"] == "candidate"]
    assert len(candidates) == 3 * 4 + 2

    reported = run(tmp_path, "safe_ray.report", str(sweep), "--baseline", "nearest_mean")
    assert reported.returncode == 0, reported.stderr
    assert "nearest mean" in (sweep / "comparison.md").read_text()


@pytest.mark.timeout(600)
def test_a_pooling_is_a_module_and_its_winners_are_refitted(
    tmp_path: Path, tiny_config_dir: Path
) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(tiny_config_dir, conf)
    backbone = json.loads((conf / "backbone" / "tiny.yaml").read_text())
    (conf / "backbone" / "tiny.yaml").write_text(json.dumps({**backbone, "pooling": "mean_family"}))
    (tmp_path / "mean_family.py").write_text(FAMILY)
    done = run(
        tmp_path,
        "safe_ray.tune",
        "--config-dir",
        str(conf),
        *SETTINGS,
        f"storage={tmp_path}",
        "method=[safe,weight_blend]",
        "search.refit=true",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sweep = tmp_path / "outputs" / "mine"
    for entry in json.loads((sweep / "summary.json").read_text()):
        head = load_file(sweep / entry["head"] / "head.safetensors")
        assert set(head) == {"weight", "bias"}
        # Each winner was trained again, on validation samples too, and is what was tested.
        assert f"{entry['method']}-refit" in entry["head"]
        assert entry["protocol"]["refit"] is True
        assert 0.0 <= entry["best"]["alpha"] <= 1.0
    outcome = json.loads(
        (sweep / "banks/shapes-2shot-seed1/safe/bank-000/outcome.json").read_text()
    )
    for candidate in outcome["candidates"]:
        assert candidate["losses"][-1] < candidate["losses"][0]
