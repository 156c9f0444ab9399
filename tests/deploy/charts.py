"""The chart as helm renders it."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.binaries import binary

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "safe-ray"
# Those of this chart; the other file is for MLflow's.
VALUES = sorted(path.stem for path in (DEPLOY / "values").glob("*.yaml") if path.stem != "mlflow")
Manifest = Mapping[str, Any]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    """Run helm, away from any cluster and any settings of the person who runs the tests."""
    return subprocess.run(
        [str(binary("helm")), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"},
    )


@functools.cache
def rendered(values: str | None = None, *settings: str, release: str = "first") -> list[Manifest]:
    """Return the manifests of a file of deploy/values, with further settings on top."""
    words = ["template", release, str(CHART), "--namespace", "safe-ray"]
    words += ["--values", str(DEPLOY / "values" / f"{values}.yaml")] if values else []
    for setting in settings:
        words += ["--set", setting]
    done = helm(*words)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def refused(*settings: str, values: str | None = None, release: str = "first") -> str:
    """Return what helm says to settings that it must refuse."""
    words = ["template", release, str(CHART)]
    words += ["--values", str(DEPLOY / "values" / f"{values}.yaml")] if values else []
    for setting in settings:
        words += ["--set", setting]
    done = helm(*words)
    assert done.returncode != 0, f"{settings} is taken"
    return done.stderr


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """Return the manifests of a kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def job_spec(manifest: Manifest) -> Manifest:
    """Return the spec of a RayJob, or the one that a RayCronJob makes them by."""
    spec = manifest["spec"]
    return spec["jobTemplate"] if manifest["kind"] == "RayCronJob" else spec


def cluster_specs(manifests: list[Manifest]) -> list[Manifest]:
    """Return the spec of every Ray cluster, whether it stands alone or belongs to something."""
    alone = [manifest["spec"] for manifest in of_kind(manifests, "RayCluster")]
    jobs = of_kind(manifests, "RayJob") + of_kind(manifests, "RayCronJob")
    within = [job_spec(job)["rayClusterSpec"] for job in jobs]
    services = of_kind(manifests, "RayService")
    return alone + within + [service["spec"]["rayClusterConfig"] for service in services]


def groups(cluster: Manifest) -> list[Manifest]:
    """Return the head and the worker groups of a cluster."""
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container(group: Manifest) -> Manifest:
    """Return Ray's container of a head or a worker group."""
    return group["template"]["spec"]["containers"][0]
