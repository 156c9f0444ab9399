"""Labelled images: what is counted, and what is read of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from safe_ray.heads.calibration import calibration_error
from safe_ray.prediction.judging import Judgement, report

NAMES = ("cat", "dog", "fox", "owl")


def judged(temperature: float = 2.0) -> tuple[Judgement, torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(90, 4, generator=generator)
    # No owl among the labels.
    labels = torch.randint(3, (90,), generator=generator)
    logits[torch.arange(90), labels] += 2
    found = Judgement.of(NAMES)
    paths = [f"{place}.png" for place in range(90)]
    for start in range(0, 90, 40):
        part = slice(start, start + 40)
        found.add(paths[part], labels[part].tolist(), logits[part], temperature)
    return found, logits, labels.numpy()


def test_counts_do_not_depend_on_how_images_came() -> None:
    found, logits, labels = judged()
    said = logits.argmax(-1).numpy()
    expected = np.zeros((4, 4), int)
    for label, one in zip(labels, said, strict=True):
        expected[label, one] += 1
    assert np.array_equal(found.confusion, expected)
    assert found.accuracy == pytest.approx((said == labels).mean())
    each = [(said == labels)[labels == place].mean() for place in range(3)]
    assert found.mean_per_class == pytest.approx(np.mean(each))
    assert set(found.class_accuracies) == {"cat", "dog", "fox"}


def test_calibration_is_measured_before_and_after() -> None:
    found, logits, labels = judged(temperature=2.0)
    right = logits.argmax(-1).numpy() == labels
    for name, temperature in (("raw", 1.0), ("calibrated", 2.0)):
        sure = torch.softmax(logits / temperature, -1).amax(-1).numpy()
        assert found.calibration_error(name) == pytest.approx(calibration_error(sure, right))


def test_the_surest_mistakes_are_kept() -> None:
    found, logits, labels = judged(temperature=1.0)
    sure, said = torch.softmax(logits, -1).max(-1)
    wrong = [
        (float(sure[place]), f"{place}.png")
        for place in range(90)
        if int(said[place]) != labels[place]
    ]
    expected = sorted(wrong, reverse=True)[:20]
    kept = sorted(found.mistakes, reverse=True)
    assert [one.path for one in kept] == [path for _, path in expected]
    assert [one.confidence for one in kept] == pytest.approx([value for value, _ in expected])


def test_the_report_names_what_is_worst(tmp_path: Path) -> None:
    found, *_ = judged()
    text = "\n".join(report(found))
    assert f"accuracy {100 * found.accuracy:.1f}%" in text
    worst = min(found.class_accuracies, key=lambda name: found.class_accuracies[name])
    assert text.partition("Worst classes:\n  ")[2].startswith(worst)
    count, label, said = found.confusions()[0]
    assert f"  {label} as {said}: {count}" in text
    row = next(line for line in text.splitlines() if line.startswith("  dog "))
    assert row.split()[2:] == [str(n) for n in found.confusion[1]]
    found.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["samples"] == 90
