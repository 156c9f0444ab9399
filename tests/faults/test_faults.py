"""One injection of each kind of fault; `python -m tests.faults` does many of each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.catalogue import CHAINS, KINDS, ON_NODES, kinds_of
from tests.faults.lab import Impossible, Lab, inject
from tests.faults.table import Tally, read_table, replace_table, table
from tests.faults.world import PROJECT, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_every_kind_is_done_once_or_has_another_test_of_its_promise() -> None:
    done = [name for names in (*CHAINS.values(), ON_NODES) for name in names]
    assert len(done) == len(set(done))
    assert set(done) <= {kind.name for kind in KINDS}
    for kind in KINDS:
        if kind.elsewhere:
            file, _, name = kind.elsewhere.partition("::")
            assert f"def {name}(" in (PROJECT / file).read_text()
        assert (kind.name in done) != bool(kind.elsewhere), kind.name


@pytest.mark.parametrize("chain", CHAINS)
def test_nothing_is_lost(chain: str, world: World, tmp_path: Path) -> None:
    try:
        inject(Lab(world, tmp_path, random.Random(0)), *kinds_of(CHAINS[chain]))
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
