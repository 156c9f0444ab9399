"""docs/cluster.md and the chart's README: their commands are taken, their figures are computed."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.data.test_dataset_configurations import CONTENT
from tests.deploy.charts import DEPLOY, VALUES, cluster_specs, helm, rendered
from tests.deploy.test_entry_points import EntryPoint, shapes, variables

PROJECT = DEPLOY.parent
PAGE = PROJECT / "docs" / "cluster.md"
PAPERS = [PAGE, DEPLOY / "helm" / "safe-ray" / "README.md"]
PAPERS += [DEPLOY / "values" / f"{name}.yaml" for name in VALUES]


def commands(paper: Path) -> list[str]:
    """The command lines of a page, or of a file's head."""
    text = re.sub(r"^#\s{2,3}", "    ", paper.read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.strip() for line in joined.splitlines() if line.startswith("    ")]


INSTALLS = [
    (paper, line)
    for paper in PAPERS
    for line in commands(paper)
    if line.startswith("helm install") and "deploy/helm/safe-ray" in line
]


def test_every_file_of_values_says_how_it_is_installed():
    assert {paper.stem for paper, _ in INSTALLS} >= set(VALUES)


@pytest.mark.parametrize(("paper", "line"), INSTALLS, ids=lambda value: str(value)[-40:])
def test_what_is_to_be_installed_renders(paper: Path, line: str):
    words = shlex.split(line.replace("<class>", "nfs"))
    assert words[:2] == ["helm", "install"]
    words = [str(PROJECT / word) if word.startswith("deploy/") else word for word in words[2:]]
    done = helm("template", *words)
    assert done.returncode == 0, done.stderr
    (release, *_) = words
    assert f"safe-ray/release: {release}" in done.stdout


def test_jobs_that_are_to_be_submitted_are_understood(tmp_path: Path):
    submitted = [line.partition(" -- ")[2] for line in commands(PAGE) if "ray job submit" in line]
    sweeps = [command for command in submitted if "safe_ray.tune" in command]
    assert sweeps
    assert len(submitted) > len(sweeps)
    (cluster,) = cluster_specs(rendered("gpu"))
    for command in sweeps:
        config = EntryPoint(command, variables(cluster)).config(tmp_path)
        assert config["cluster"]["ceiling"] == shapes(cluster)
        assert config["storage"] == "/mnt/safe-ray"


def test_what_is_linked_is_there():
    for paper in PAPERS[:2]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", paper.read_text()):
            assert (paper.parent / target).exists(), f"{paper.name}: {target}"


@pytest.fixture(scope="module")
def sizing() -> ModuleType:
    loader = SourceFileLoader("sizing", str(DEPLOY / "sizing"))
    spec = importlib.util.spec_from_loader("sizing", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sizing"] = module
    loader.exec_module(module)
    return module


def test_the_table_of_sizes_is_the_one_that_is_computed(sizing: ModuleType):
    printed = PAGE.read_text().partition("<!-- sizing -->\n")[2].partition("<!-- /sizing -->")[0]
    assert printed.strip() == sizing.table(sizing.Rates(1000.0, 1e9, 0.5e-3, 5.0))


def test_the_sizes_are_those_of_the_data_sets_and_of_the_defaults(sizing: ModuleType):
    known = {one.name: one for one in sizing.DATASETS}
    suite = yaml.safe_load((PROJECT / "conf" / "suite" / "coop11.yaml").read_text())
    (group,) = suite["groups"]
    assert list(known) == group["datasets"]
    assert (list(sizing.SHOTS), sizing.SEEDS) == (group["shots"], len(group["seeds"]))
    for name, (classes, sizes, _) in CONTENT.items():
        one = known[name]
        assert (one.classes, (one.train, one.val, one.test)) == (classes, sizes)
    features = yaml.safe_load((PROJECT / "conf" / "features" / "default.yaml").read_text())
    search = yaml.safe_load((PROJECT / "conf" / "search" / "default.yaml").read_text())
    assert features["views"] == sizing.VIEWS
    assert search["candidates"] == sizing.CANDIDATES
    assert (search["epochs"]["low"], search["epochs"]["high"]) == (10, 50)
    assert pytest.approx(24.85, abs=0.01) == sizing.EPOCHS


def test_more_gpus_take_no_longer_and_no_less_than_the_storage_allows(sizing: ModuleType):
    rates = sizing.Rates(1000.0, 1e9, 0.5e-3, 5.0)
    for one in sizing.DATASETS:
        hours = [rates.hours([one], gpus) for gpus in (1, 8, 64, 10**6)]
        assert hours == sorted(hours, reverse=True)
        assert hours[-1] * 3600 >= one.maps * sizing.MAP / rates.storage
