"""A sweep's arithmetic is decided once, and no CPU is asked for what it can only emulate."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safe_ray.compose import load_config
from safe_ray.config import SweepConfig
from safe_ray.errors import InputError
from safe_ray.features.precision import least_precision
from safe_ray.files import read_record, write_record
from safe_ray.sweep.claim import claimed
from safe_ray.sweep.plan import PLAN
from safe_ray.sweep.precision import check_precisions
from safe_ray.sweep.run import _precision
from safe_ray.training.facts import TaskFacts
from tests.heads.test_bank import classifier
from tests.training.tasks import write_task

Load = Callable[..., SweepConfig]


@pytest.fixture
def load(tmp_path: Path, tiny_config_dir: Path) -> Load:
    def load(*overrides: str) -> SweepConfig:
        usual = ["backbone=tiny", "tasks.datasets=[shapes]", f"storage={tmp_path}", "sweep=mine"]
        return load_config([*usual, *overrides], tiny_config_dir)

    return load


def ask(config: SweepConfig) -> str:
    with claimed(config) as claim:
        return _precision(claim)


def begin(config: SweepConfig) -> None:
    with claimed(config) as claim:
        claim.take()


def test_what_the_first_run_decided_is_kept_on_other_machines(load: Load) -> None:
    """Begun where there are GPUs and gone on with where there are none, or the other way round."""
    config = load()
    begin(config)
    write_record(config.outputs / PLAN, {"bank": 4, "precision": "bf16"})
    assert ask(config) == "bf16"


def test_a_decision_that_was_lost_is_read_off_the_tasks(tmp_path: Path, load: Load) -> None:
    """Maps of one task in two precisions would be the price of deciding anew."""
    config = load()
    begin(config)
    job = write_task(tmp_path / "begun")
    facts = TaskFacts.load(job.task_folder)
    key = {**facts.store_key, "precision": "bf16"}
    replace(facts, store_key=key).save(config.outputs / "tasks" / job.task_id, classifier())
    (config.outputs / PLAN).write_text("{torn")
    assert ask(config) == "bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides for another precision")
def test_to_ask_is_not_to_decide(load: Load) -> None:
    """A run that is refused later must not decide for the corrected one."""
    config = load()
    assert ask(config) == "fp32"
    assert not config.outputs.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides for another precision")
def test_a_sweep_that_is_begun_anew_decides_anew(load: Load) -> None:
    config = load()
    begin(config)
    write_record(config.outputs / PLAN, {"precision": "bf16"})
    with claimed(config, anew=True) as claim:
        assert _precision(claim) == "fp32"


def test_what_was_asked_for_needs_no_decision(load: Load) -> None:
    assert ask(load("features.precision=fp16")) == "fp16"


@pytest.mark.parametrize(
    ("nodes", "common"),
    [
        ([], "fp32"),
        (["bf16", "bf16"], "bf16"),
        (["bf16", "fp16"], "fp16"),
        (["fp32", "bf16"], "fp32"),
    ],
)
def test_auto_is_what_the_gpus_of_all_nodes_can_do(nodes: list[Any], common: str) -> None:
    assert least_precision(nodes) == common


@pytest.fixture
def old_cpu(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch would say of a CPU with AVX2 and no more; it is this process's node's."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": False})


@pytest.mark.usefixtures("old_cpu")
@pytest.mark.parametrize("setting", ["features.precision", "training.precision"])
def test_bf16_on_a_cpu_without_instructions_for_it_is_refused_unless_insisted_on(
    load: Load, setting: str
) -> None:
    config = load(f"{setting}=bf16")
    with pytest.raises(InputError) as caught:
        check_precisions(config, config.features.precision.replace("auto", "fp32"), 0)
    said = str(caught.value)
    assert said.startswith(f"{setting}=bf16 is arithmetic for which the CPU of the node 1")
    assert said.endswith("choose fp32, or insist with cluster.slow_precision=true.")
    insisted = load(f"{setting}=bf16", "cluster.slow_precision=true")
    check_precisions(insisted, "bf16", 0)


@pytest.mark.usefixtures("old_cpu")
def test_maps_of_a_sweep_that_began_on_gpus_are_not_emulated_either(load: Load) -> None:
    with pytest.raises(InputError, match="dense maps of the sweep 'mine' are in bf16"):
        check_precisions(load(), "bf16", 0)


@pytest.mark.usefixtures("old_cpu")
def test_what_is_not_computed_on_the_cpu_is_not_refused(load: Load) -> None:
    check_precisions(load("training.precision=bf16"), "fp32", 1)
    check_precisions(load("training.precision=bf16"), "fp32", None)
    check_precisions(load(), "fp32", 0)


@pytest.mark.usefixtures("ray_cluster")
def test_a_cpu_with_instructions_for_it_is_asked(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    check_precisions(load("features.precision=bf16", "training.precision=bf16"), "bf16", 0)
    with pytest.raises(InputError, match=r"features\.precision=fp16"):
        check_precisions(load("features.precision=fp16"), "fp16", 0)


@pytest.mark.slow
def test_a_sweep_writes_down_what_was_decided(tmp_path: Path, tiny_config_dir: Path) -> None:
    arguments = [
        *("--config-dir", str(tiny_config_dir), "backbone=tiny", "tasks.datasets=[shapes]"),
        *("tasks.shots=[1]", "tasks.seeds=[1]", "search.candidates=1", "search.epochs=1"),
        *(f"storage={tmp_path}", "sweep=mine", "cluster.num_cpus=1", "features.views=1"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "safe_ray.tune", *arguments],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    decided = read_record(tmp_path / "outputs" / "mine" / PLAN)
    assert decided is not None
    store = next((tmp_path / "features").glob("*/key.json"))
    assert decided["precision"] == json.loads(store.read_text())["precision"]


REFUSED = """
import sys
import torch
torch.cpu.get_capabilities = lambda: {"avx2": True}
from safe_ray.sweep import data

def read(*_):
    raise AssertionError("data sets were read before the refusal")

data.read_manifests = read
from safe_ray.cli import main
from {module} import COMMAND
sys.exit(main(COMMAND))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has instructions for bf16")
@pytest.mark.parametrize("module", ["safe_ray.tune", "safe_ray.extract"])
def test_a_local_command_is_refused_before_anything_is_read(
    module: str, tmp_path: Path, tiny_config_dir: Path
) -> None:
    arguments = [
        *("--config-dir", str(tiny_config_dir), "backbone=tiny", "tasks.datasets=[shapes]"),
        *(f"storage={tmp_path}", "features.precision=bf16"),
    ]
    refused = subprocess.run(
        [sys.executable, "-c", REFUSED.replace("{module}", module), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert refused.returncode == 2, refused.stderr[-2000:]
    assert "the CPU of this machine has no instructions" in refused.stderr
    assert "insist with cluster.slow_precision=true" in refused.stderr
    assert "Traceback" not in refused.stderr
