"""What is shipped: the pins that were tested, one version of Ray, `conf/` in the wheel."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import safe_ray

ROOT = Path(safe_ray.__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonical(pin.name): str(pin.specifier) for pin in pinned}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_and_within_its_bounds(pins: dict[str, str]):
    extras = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        requirement = Requirement(text)
        pin = pins[canonical(requirement.name)]
        assert pin.startswith("==")
        assert requirement.specifier.contains(pin.removeprefix("=="))


def test_the_tests_run_with_the_pinned_versions(pins: dict[str, str]):
    for text in PROJECT["dependencies"]:
        name = Requirement(text).name
        version = importlib.metadata.version(name).partition("+")[0]
        assert pins[canonical(name)] == f"=={version}"


def test_torch_is_the_version_that_was_asked_for(pins: dict[str, str]):
    assert pins["torch"] == "==2.14.1"
    assert pins["torchvision"] == "==0.29.1"


def test_the_image_has_the_pinned_ray(pins: dict[str, str]):
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"ARG RAY_VERSION={pins['ray'].removeprefix('==')}\n" in dockerfile


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the build back end is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_brings_the_configuration_and_the_embedded_files(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for tree in ("conf", "safe_ray/embedded"):
        for file in (ROOT / tree).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                inside = file.relative_to(ROOT).as_posix()
                assert (f"safe_ray/{inside}" if tree == "conf" else inside) in names
    assert not [name for name in names if name.startswith(("tests/", "pipelines/", "outputs/"))]


def test_the_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    result = subprocess.run(
        [sys.executable, "-m", "safe_ray.tune", "--help"],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "pictogram" in result.stdout


@pytest.mark.parametrize("name", ["ray", "torch", "optuna"])
def test_what_is_used_past_its_public_interface_has_an_upper_bound(name: str):
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    specifier = next(r.specifier for r in requirements if canonical(r.name) == name)
    assert any(part.operator == "<" for part in specifier)


def test_nothing_else_is_used_past_its_public_interface():
    """What is used is listed here, so that a new use gets a bound, and a test of its own."""
    private = re.compile(r"\b(ray|torch|optuna|mlflow|open_clip)(?:\.\w+)*\._[a-z]\w*")
    sources = {path: path.read_text() for path in (ROOT / "safe_ray").rglob("*.py")}
    used = {match.group() for text in sources.values() for match in private.finditer(text)}
    assert used == {
        "ray._raylet",
        "ray._private",
        "ray.serve._private",
        "torch._fused_adamw_",
    }
