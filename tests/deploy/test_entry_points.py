"""Every command that the chart and its papers give is one that the program takes."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.clusters import BIN
from tests.deploy.charts import VALUES, Manifest, job_spec, of_kind, rendered
from tests.deploy.test_chart import notes, values_of

SCHEDULED = ("sweep.schedule=0 3 * * 0", "operator.featureGates.RayCronJob=true")
CLUSTER = "images-29374920-x7k2p"
"""As KubeRay names the cluster of a run: the RayJob's name, and five characters."""


@dataclass(frozen=True)
class EntryPoint:
    """A command line for sh, and the variables of the container that it runs in."""

    command: str
    environment: dict[str, str]

    def config(self, folder: Path) -> dict:
        """Run it as Ray does, in a shell, but to show its configuration only."""
        done = subprocess.run(
            f"{self.command} --show-config",
            shell=True,
            cwd=folder,
            env={**self.environment, "PATH": f"{BIN}:{os.environ['PATH']}", **SHARED},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return yaml.safe_load(done.stdout)


SHARED = {name: os.environ[name] for name in ("PYTHONPATH", "HOME") if name in os.environ}


def of_job(job: Manifest) -> EntryPoint:
    spec = job_spec(job)
    given = {**variables(spec["rayClusterSpec"]), "RAY_CLUSTER_NAME": CLUSTER}
    return EntryPoint(spec["entrypoint"], given)


def shapes(cluster: Manifest) -> list[dict]:
    """What cluster.ceiling must hold for the groups of a cluster."""
    found = []
    for group in cluster["workerGroupSpecs"]:
        params = group["rayStartParams"]
        shape = {"nodes": group["maxReplicas"], "cpus": float(params["num-cpus"])}
        shape |= {"gpus": int(params["num-gpus"]), "memory": int(params["memory"])}
        found.append(shape)
    return found


@pytest.mark.parametrize(
    "name", [n for n in VALUES if values_of(n).get("sweep", {}).get("enabled", True)]
)
def test_the_entry_point_of_a_sweep_is_understood(name: str, tmp_path: Path):
    (job,) = of_kind(rendered(name), "RayJob")
    config = of_job(job).config(tmp_path)
    assert config["sweep"] == values_of(name)["sweep"].get("name", "first")
    assert config["storage"] == "/mnt/safe-ray"
    assert config["features"]["store"] == "/mnt/safe-ray/features"
    assert config["cluster"]["ceiling"] == shapes(job["spec"]["rayClusterSpec"])
    if "data" in values_of(name):
        assert config["data"]["root"] == "/mnt/data"


def test_a_scheduled_run_is_named_after_its_rayjob(tmp_path: Path):
    (scheduled,) = of_kind(rendered(None, *SCHEDULED), "RayCronJob")
    assert of_job(scheduled).config(tmp_path)["sweep"] == "images-29374920"


def test_words_with_blanks_and_quotes_arrive_as_they_were(tmp_path: Path):
    word = "data.root=/mnt/it's here"
    (job,) = of_kind(rendered(None, f"sweep.arguments={{{word}}}"), "RayJob")
    assert of_job(job).config(tmp_path)["data"]["root"] == "/mnt/it's here"


def variables(cluster: Manifest) -> dict[str, str]:
    """What the container of a cluster's head has in its environment."""
    listed = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    return {one["name"]: one["value"] for one in listed}


def test_the_command_of_the_notes_needs_no_more_than_the_clusters_environment(tmp_path: Path):
    found = re.search(r"ray job submit .*? -- (python .*)", notes("gpu"))
    assert found is not None
    (cluster,) = of_kind(rendered("gpu"), "RayCluster")
    config = EntryPoint(found[1], variables(cluster["spec"])).config(tmp_path)
    assert config["cluster"]["ceiling"] == shapes(cluster["spec"])
    assert config["storage"] == "/mnt/safe-ray"
    assert config["sweep"] == "first"
