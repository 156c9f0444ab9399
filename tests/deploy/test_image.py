"""The Dockerfile: its steps run, and its image is one that a restricted namespace takes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

import safe_ray
from tests.deploy.charts import cluster_specs, groups, rendered
from tests.deploy.dockerfile import PROJECT, Built, expand, parse, replay

TEXT = (PROJECT / "Dockerfile").read_text()
BEFORE, STAGES = parse(TEXT)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    return replay(tmp_path_factory.mktemp("image"), REVISION="0123abc")


@pytest.fixture(scope="module")
def image(stages: dict[str, Built]) -> Built:
    return stages[""]


def test_all_steps_run_and_the_command_of_the_image_works(image: Built):
    done = image.run(*image.command)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m safe_ray.tune" in done.stdout
    assert image.folder == image.root / "results"


def test_the_image_has_the_package_and_its_configuration_but_no_sources(image: Built):
    where = image.run(str(image.python), "-c", "import safe_ray; print(safe_ray.__file__)")
    found = Path(where.stdout.strip())
    assert found.is_relative_to(image.root / "environment"), where.stderr
    assert (found.parent / "conf" / "tune.yaml").exists()
    assert (found.parent / "attempt.py").exists()
    left = {path.name for path in image.root.iterdir() if not path.name.startswith(".")}
    assert left == {"environment", "packages", "results", "safe_ray"}
    assert {path.name for path in (image.root / "safe_ray").iterdir()} == {
        "constraints.txt",
        "pyproject.toml",
    }


def test_the_wheel_holds_nothing_that_is_left_out_of_the_build(stages: dict[str, Built]):
    wheel = next((stages["wheel"].root / "source" / "dist").glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert "safe_ray/tune.py" in names
    assert not [name for name in names if "__pycache__" in name]


def test_the_user_is_a_number_and_the_one_that_pods_run_as(image: Built):
    assert re.fullmatch(r"\d+:\d+", image.user)
    user, group = (int(part) for part in image.user.split(":"))
    for pod in (one["template"]["spec"] for one in groups(cluster_specs(rendered())[0])):
        assert pod["securityContext"]["runAsUser"] == user
        assert pod["securityContext"]["runAsGroup"] == group


def test_the_image_says_what_it_is(image: Built):
    labels = {name.removeprefix("org.opencontainers.image."): v for name, v in image.labels.items()}
    assert all(name.startswith("org.opencontainers.image.") for name in image.labels)
    assert labels["version"] == safe_ray.__version__
    assert labels["revision"] == "0123abc"
    assert labels["licenses"] == "Apache-2.0"
    assert re.fullmatch(r"docker.io/rayproject/ray:[\d.]+-py3\d+-cpu", labels["base.name"])


def test_the_base_is_pinned_by_a_digest_where_one_is_given():
    variables = dict(step.rest.split("=") for step in BEFORE)
    assert expand(STAGES[0].base, variables) == "rayproject/ray:2.60.0-py311-cpu"
    pinned = {**variables, "BASE_DIGEST": f"sha256:{'0' * 64}"}
    assert expand(STAGES[0].base, pinned).endswith(f"-cpu@sha256:{'0' * 64}")


def test_all_nodes_of_a_cluster_have_the_ray_of_the_image():
    variables = dict(step.rest.split("=") for step in BEFORE)
    assert {cluster["rayVersion"] for cluster in cluster_specs(rendered())} == {
        variables["RAY_VERSION"]
    }


def test_there_is_one_cuda_runtime_and_none_for_cpus():
    """torch brings its own with the device that is asked for, and the base never has one."""
    assert "-cpu${" in STAGES[0].base
    commands = [step.rest for step in STAGES[-1].steps if step.instruction == "RUN"]
    (torch,) = [command for command in commands if "--index-url" in command]
    assert '--index-url "${TORCH_INDEX}/${DEVICE}"' in torch
    assert "--no-deps" in torch
    # Pins of CUDA's packages would not fit another CUDA's torch.
    assert any("grep -vE '^(cuda|nvidia)-' constraints.txt" in command for command in commands)
