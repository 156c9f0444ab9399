"""deploy/rendered is what helm makes of deploy/values, for people who have no helm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from tests.deploy.binaries import binary
from tests.deploy.charts import DEPLOY, VALUES


def test_the_files_are_those_that_helm_renders(tmp_path: Path):
    command = [sys.executable, str(DEPLOY / "render"), "--helm", str(binary("helm")), str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (DEPLOY / "rendered").glob("*.yaml")}
    assert set(kept) == {f"{name}.yaml" for name in VALUES}
    assert kept == fresh, "run deploy/render"


def test_kustomize_puts_another_image_and_namespace_into_them():
    """This is how somebody without helm brings their own registry."""
    words = ["kustomize", "--load-restrictor", "LoadRestrictionsNone", str(DEPLOY / "kustomize")]
    done = subprocess.run(
        [str(binary("kubectl")), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    manifests = list(yaml.safe_load_all(done.stdout))
    assert {one["metadata"]["namespace"] for one in manifests} == {"my-namespace"}
    (job,) = [one for one in manifests if one["kind"] == "RayJob"]
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == "registry.example.com/safe-ray:1.0"
