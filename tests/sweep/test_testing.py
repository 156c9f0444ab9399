"""Testing a winner equals computing its logits by hand, in any number of pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safe_ray.heads.artifact import load_head
from safe_ray.heads.blending import blend_logits
from safe_ray.poolings.pooled import pool_with_heads
from safe_ray.search.choosing import Winner
from safe_ray.specs import MethodGroup, MethodSpec
from safe_ray.sweep.testing import run_tests
from safe_ray.training.facts import TaskFacts, load_pooling
from safe_ray.training.job import run_bank
from safe_ray.training.outcome import BankOutcome
from tests.heads.test_bank import CLASSES, NAMES, POOL, classifier
from tests.training.tasks import SAFE, TASK, device, write_task

SAFE_A = MethodSpec(
    "safe_a",
    "SAFE-A",
    "safe_ray.methods.adapted",
    {"features": "safe"},
    {"alpha": (0.0, 0.5), "beta": (5.5,), "gamma": (1.0,)},
)
ZERO_SHOT = MethodSpec("zero_shot", "zero-shot", "safe_ray.methods.zero_shot")


@pytest.mark.parametrize("rows_at_once", [1, 5, 100])
def test_accuracies_equal_the_explicit_blend(tmp_path: Path, rows_at_once: int) -> None:
    job = write_task(tmp_path)
    run_bank(job, device())
    facts = TaskFacts.load(job.task_folder)
    labels = torch.tensor(facts.validation_labels)
    winner = Winner(TASK.id, SAFE, job.folder / "candidate-01-safe", {"alpha": 0.3})
    nothing = Winner(TASK.id, ZERO_SHOT, None, {})

    test = run_tests(
        Path(job.sweep),
        [winner, nothing],
        facts.validation,
        facts.validation_labels,
        device(),
        rows_at_once,
    )[TASK.id]

    maps = torch.from_numpy(facts.store().read(facts.validation, (0,)))[:, 0]
    original = pool_with_heads([load_pooling(Path(job.sweep))], POOL, maps, device())[0]
    tuned = pool_with_heads([load_head(job.folder / "candidate-01-safe")[0]], POOL, maps, device())
    for outcome, alpha in ((test.zero_shot, 0.0), (test.methods["safe"], 0.3)):
        logits = blend_logits(tuned[0], original, classifier(), 20.0, alpha)
        right = logits.argmax(-1) == labels
        assert outcome.right.tolist() == right.tolist()
        assert outcome.confidence == pytest.approx(logits.softmax(-1).amax(-1).numpy(), rel=1e-4)
        assert outcome.class_correct.tolist() == [
            int(right[labels == c].sum()) for c in range(CLASSES)
        ]
    assert test.methods["zero_shot"].right.tolist() == test.zero_shot.right.tolist()
    assert test.zero_shot.class_samples.tolist() == torch.bincount(labels).tolist()


def test_what_validation_said_of_a_method_is_what_its_files_give_on_the_same_samples(
    tmp_path: Path,
) -> None:
    group = MethodGroup("safe", (SAFE, SAFE_A), NAMES)
    job = write_task(tmp_path, groups=(group,))
    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    facts = TaskFacts.load(job.task_folder)
    for candidate in outcome.candidates:
        for method in group.methods:
            fit = candidate.fits[method.name]
            winner = Winner(TASK.id, method, job.folder / str(fit.head), fit.at)
            test = run_tests(
                Path(job.sweep), [winner], facts.validation, facts.validation_labels, device(), 9
            )[TASK.id].methods[method.name]
            assert test.accuracy == pytest.approx(fit.point.accuracy)
            assert test.mean_per_class == pytest.approx(fit.point.mean_per_class)


def test_a_target_with_some_of_the_classes_is_classified_among_these(tmp_path: Path) -> None:
    job = write_task(tmp_path)
    run_bank(job, device())
    facts = TaskFacts.load(job.task_folder)
    columns = (2, 0)
    there = [i for i, label in enumerate(facts.validation_labels) if label in columns]
    samples = [facts.validation[i] for i in there]
    labels = [columns.index(facts.validation_labels[i]) for i in there]
    winner = Winner(TASK.id, SAFE, job.folder / "candidate-00-safe", {"alpha": 0.5})
    test = run_tests(Path(job.sweep), [winner], samples, labels, device(), 4, columns)[TASK.id]

    maps = torch.from_numpy(facts.store().read(samples, (0,)))[:, 0]
    original = pool_with_heads([load_pooling(Path(job.sweep))], POOL, maps, device())[0]
    logits = 20.0 * torch.nn.functional.normalize(original, dim=-1) @ classifier()[[2, 0]].t()
    assert test.zero_shot.right.tolist() == (logits.argmax(-1) == torch.tensor(labels)).tolist()
