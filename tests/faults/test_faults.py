"""One injection of each kind of fault; `python -m tests.faults` does many of each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.catalogue import KINDS
from tests.faults.lab import Impossible, Lab, inject
from tests.faults.nodes import Cluster
from tests.faults.table import Tally, read_table, replace_table, table
from tests.faults.world import PROJECT, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# One sweep can bear several faults: each line is done to one, in this order.
CHAINS = {
    "processes": [
        "two sweeps of one name at once",
        "worker killed in extraction",
        "worker killed in training",
        "clock jump (up to 400 days, either way)",
        "worker killed in evaluation",
    ],
    "disks": [
        "corrupt image among good ones",
        "disk full: feature store",
        "disk full: MLflow artifact",
        "disk full: head",
    ],
    "stored maps": ["store file torn", "store file with a flipped bit"],
    "shared maps": ["read-only store shared by two sweeps"],
    "trackers": [
        "MLflow down at the start",
        "MLflow refusing (403)",
        "MLflow slow (10 s an answer)",
        "MLflow down in the middle",
        "MLflow down at the end",
    ],
    "nodes": [
        "object store full",
        "node added",
        "node drained with notice",
        "node removed",
        "node cut off from the network for a minute",
    ],
}


def test_every_kind_is_done_once_or_has_another_test_of_its_promise() -> None:
    done = [name for names in CHAINS.values() for name in names]
    assert len(done) == len(set(done))
    assert set(done) <= {kind.name for kind in KINDS}
    for kind in KINDS:
        if kind.elsewhere:
            file, _, name = kind.elsewhere.partition("::")
            assert f"def {name}(" in (PROJECT / file).read_text()
        assert (kind.name in done) != bool(kind.elsewhere), kind.name


@pytest.mark.parametrize("chain", CHAINS)
def test_nothing_is_lost(
    chain: str, world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kinds = [kind for name in CHAINS[chain] for kind in KINDS if kind.name == name]
    lab = Lab(world, tmp_path, random.Random(0))
    if chain == "nodes":
        nodes: Cluster = request.getfixturevalue("nodes")
        lab.cluster, lab.cut_off_seconds = nodes, 30.0
    try:
        inject(lab, *kinds)
    except Impossible as reason:
        pytest.skip(str(reason))


def test_the_table_keeps_what_was_not_run_again(tmp_path: Path) -> None:
    document = PROJECT / "docs" / "reliability.md"
    file = tmp_path / document.name
    file.write_text(document.read_text())
    first, second = KINDS[:2]
    replace_table(file, KINDS, {first.name: Tally(10, 1), second.name: Tally(3, 0)})
    replace_table(file, KINDS, {second.name: Tally(20, 0)})
    found = read_table(file.read_text())
    assert (found[first.name], found[second.name]) == (Tally(10, 1), Tally(20, 0))
    before, after = (
        text.read_text().partition("<!-- faults: begin")[0] for text in (document, file)
    )
    assert before == after


def test_the_document_has_the_table_of_these_kinds() -> None:
    document = (PROJECT / "docs" / "reliability.md").read_text()
    assert table(KINDS, read_table(document)) in document
