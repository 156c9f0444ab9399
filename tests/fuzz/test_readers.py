"""Two thousand hostile cases over all readers, half of them seeded and half of them Hypothesis's.

What a case may come to: it is read, or refused with one sentence of an error that the command line
prints. No traceback, no hang, no memory beyond a bound, nothing opened or written elsewhere,
nothing unpickled or started. `python -m tests.fuzz` (`make fuzz`) runs a hundred thousand.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.cases import run_case, seeded, targets, valid_files
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS, counts

CASES = 2000
SEEDED = counts(CASES // 2)

each_reader = pytest.mark.parametrize("reader", READERS, ids=[one.name for one in READERS])


@each_reader
def test_what_the_project_writes_is_read(reader: Reader) -> None:
    assert valid_files(reader)
    assert targets(reader)


@each_reader
def test_damaged_files_are_read_or_refused_in_a_sentence(reader: Reader, tmp_path: Path) -> None:
    for number in range(SEEDED[reader.name]):
        finding = run_case(reader, seeded(reader, 0, number), tmp_path)
        assert not finding.fault, f"case {number} of {reader.name}: {finding.fault}"


@each_reader
def test_no_damage_that_hypothesis_finds_is_more(reader: Reader, tmp_path: Path) -> None:
    @settings(
        max_examples=SEEDED[reader.name],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def property_(rng: Random) -> None:
        finding = run_case(reader, rng, tmp_path)
        assert not finding.fault, finding.fault

    property_()
