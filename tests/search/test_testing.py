"""Counting on test samples equals blending each head's features by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safe_ray.heads.artifact import load_head
from safe_ray.heads.blending import blend_logits
from safe_ray.poolings.pooled import pool_with_heads
from safe_ray.search.testing import Winner, count_correct
from safe_ray.training.job import TaskFacts, load_pooling, run_bank
from tests.heads.test_bank import CLASSES, POOL, classifier
from tests.training.tasks import TASK, device, write_task


@pytest.mark.parametrize("rows_at_once", [1, 5, 100])
def test_counts_equal_the_explicit_blend(tmp_path: Path, rows_at_once: int) -> None:
    job = write_task(tmp_path)
    run_bank(job, device())
    facts = TaskFacts.load(job.task_folder)
    labels = torch.tensor(facts.validation_labels)
    winner = Winner(TASK.id, job.folder / "candidate-01", alpha=0.3)

    counts = count_correct(
        Path(job.sweep),
        [winner],
        facts.validation,
        facts.validation_labels,
        device(),
        rows_at_once,
    )[TASK.id]

    maps = torch.from_numpy(facts.store().read(facts.validation, (0,)))[:, 0]
    original = pool_with_heads([load_pooling(Path(job.sweep))], POOL, maps, device())[0]
    tuned = pool_with_heads([load_head(winner.folder)[0]], POOL, maps, device())[0]

    def right(alpha: float) -> tuple[int, ...]:
        logits = blend_logits(tuned, original, classifier(), 20.0, alpha)
        hits = logits.argmax(-1) == labels
        return tuple(int(hits[labels == c].sum()) for c in range(CLASSES))

    assert (counts.zero_shot, counts.tuned_only, counts.safe) == (right(0), right(1), right(0.3))
    assert counts.samples == tuple(int((labels == c).sum()) for c in range(CLASSES))
