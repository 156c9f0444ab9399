from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from safe_ray.comparison.analysis import averages, differences, ranking
from tests.comparison.results import record, records
from tests.comparison.test_pairing import paired

GAINS = {"safe": 0.1, "gda": 0.08, "tip_adapter_f": 0.12}


def test_an_average_is_over_seeds_first_then_over_data_sets(tmp_path: Path):
    lines = [record("safe", 0.4, "birds", seed=s) for s in (1, 2, 3)]
    lines += [record("safe", 0.8, "cars", seed=1)]
    (average, untouched) = averages(paired(tmp_path, lines))
    assert [cell.mean for cell in average.cells] == pytest.approx([0.4, 0.8])
    assert average.average.mean == pytest.approx(0.6)
    assert untouched.contestant is None
    assert untouched.average.mean == pytest.approx(0.3)


def test_an_averages_interval_is_over_seeds(tmp_path: Path):
    lines = records(GAINS, shots=(2,))
    found = averages(paired(tmp_path, lines), macro=True)[0]
    per_seed = [
        np.mean(
            [v["test_macro_accuracy"] for v in lines if (v["method"], v["seed"]) == ("safe", s)]
        )
        for s in (1, 2, 3)
    ]
    half = stats.t.ppf(0.975, 2) * stats.sem(per_seed)
    assert found.average.mean == pytest.approx(np.mean(per_seed))
    assert found.average.half_width == pytest.approx(half)


def test_differences_are_to_the_baseline_over_all_shots_then_at_each(tmp_path: Path):
    lines = records(GAINS)
    found = differences(paired(tmp_path, lines))
    assert [(d.contestant.name, d.shots) for d in found] == [
        (name, shots) for shots in (None, 1, 2) for name in ("gda", "tip_adapter_f")
    ]
    accuracy = {(v["method"], v["dataset"], v["shots"], v["seed"]): v for v in lines}
    for difference in found:
        gaps = [
            v["test_accuracy"] - accuracy["safe", *key[1:]]["test_accuracy"]
            for key, v in accuracy.items()
            if key[0] == difference.contestant.name and difference.shots in (None, key[2])
        ]
        assert difference.mean == pytest.approx(np.mean(gaps))
        assert difference.pairs == len(gaps)
        assert difference.datasets == 4
        low, high = difference.interval
        assert low <= difference.mean <= high
        # Four differences of one sign: 2 of 16 sign patterns; Holm doubles the smaller of two.
        assert (difference.p, difference.p_holm) == pytest.approx((0.125, 0.25))


def test_ranks_are_over_data_sets_and_shots(tmp_path: Path):
    found = ranking(paired(tmp_path, records(GAINS)))
    assert [contestant.name for contestant in found.contestants] == ["tip_adapter_f", "safe", "gda"]
    assert found.mean_ranks == (1.0, 2.0, 3.0)
    assert found.blocks == 8
    assert found.test.statistic == pytest.approx(16.0)


def test_one_method_has_neither_differences_nor_ranks(tmp_path: Path):
    alone = paired(tmp_path, records({"safe": 0.1}))
    assert differences(alone) == []
    assert ranking(alone) is None
