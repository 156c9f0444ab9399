"""The alpha row in closed form is the blend written out at each alpha."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from safe_ray.heads.blending import alpha_grid, blend_logits, sum_alpha_row
from safe_ray.heads.selection import Rule, selection_score
from safe_ray.heads.sums import KnobSums
from safe_ray.methods.knobs import KnobTable


def row_of(sums: KnobSums, alphas: tuple[float, ...], rule: Rule | None = None) -> KnobTable:
    return KnobTable.of(sums, {"alpha": alphas}, {}, rule or Rule())


@settings(max_examples=25, deadline=None)
@given(
    candidates=st.integers(1, 3),
    samples=st.integers(1, 9),
    classes=st.integers(1, 6),
    points=st.integers(2, 12),
    seed=st.integers(0, 1000),
)
def test_the_row_equals_the_explicit_blend(
    candidates: int, samples: int, classes: int, points: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tuned = torch.randn(candidates, samples, 16, dtype=torch.float64, generator=generator)
    original = torch.randn(samples, 16, dtype=torch.float64, generator=generator)
    text = nn.functional.normalize(
        torch.randn(classes, 16, dtype=torch.float64, generator=generator), dim=-1
    )
    labels = torch.randint(classes, (samples,), generator=generator)
    alphas = alpha_grid(points)

    sums = sum_alpha_row(tuned, original, text, labels, 30.0, alphas)

    by_original = (original @ text.t()).argmax(-1) == labels
    for index, alpha in enumerate(alphas):
        for candidate in range(candidates):
            logits = blend_logits(tuned[candidate], original, text, 30.0, alpha)
            nll = nn.functional.cross_entropy(logits, labels, reduction="sum")
            assert torch.isclose(sums[candidate].nll[index], nll, rtol=1e-9, atol=1e-9)
            right = logits.argmax(-1) == labels
            assert sums[candidate].class_correct[index].sum() == right.sum()
            assert sums[candidate].gained[index] == (right & ~by_original).sum()
            assert sums[candidate].lost[index] == (by_original & ~right).sum()
            of_each = [right[labels == c].double().mean() for c in labels.unique()]
            mean = row_of(sums[candidate], alphas).figures[index].mean_per_class
            assert mean == pytest.approx(float(torch.stack(of_each).mean()))
    assert all(head.samples == samples for head in sums)


def test_a_101_point_row_of_many_classes_is_computed_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    tuned, original = torch.randn(2, 50, 8), torch.randn(50, 8)
    text = nn.functional.normalize(torch.randn(20, 8), dim=-1)
    labels = torch.randint(20, (50,))
    whole = sum_alpha_row(tuned, original, text, labels, 10.0, alpha_grid(101))
    monkeypatch.setattr("safe_ray.heads.blending._SCRATCH_BYTES", 101 * 20 * 4 * 7)
    pieces = sum_alpha_row(tuned, original, text, labels, 10.0, alpha_grid(101))
    for one, other in zip(whole, pieces, strict=True):
        assert torch.equal(one.class_correct, other.class_correct)
        assert torch.allclose(one.nll, other.nll)


def test_of_equal_classes_the_first_is_the_answer() -> None:
    torch.manual_seed(0)
    tuned, original = torch.randn(1, 40, 8), torch.randn(40, 8)
    text = nn.functional.normalize(torch.randn(2, 8), dim=-1)[[0, 0, 1]]
    counts = [
        sum_alpha_row(tuned, original, text, torch.full((40,), label), 10.0, alpha_grid(5))[
            0
        ].class_correct.sum(-1)
        for label in range(3)
    ]
    assert (counts[1] == 0).all()
    assert (counts[0] + counts[2] == 40).all()


def test_sums_over_folds_add_up() -> None:
    torch.manual_seed(0)
    tuned, original = torch.randn(1, 10, 8), torch.randn(10, 8)
    text = nn.functional.normalize(torch.randn(3, 8), dim=-1)
    labels = torch.randint(3, (10,))
    alphas = alpha_grid(5)
    [whole] = sum_alpha_row(tuned, original, text, labels, 10.0, alphas)
    [first] = sum_alpha_row(tuned[:, :4], original[:4], text, labels[:4], 10.0, alphas)
    [rest] = sum_alpha_row(tuned[:, 4:], original[4:], text, labels[4:], 10.0, alphas)
    parts = first + rest
    for one, other in zip(
        row_of(parts, alphas).figures, row_of(whole, alphas).figures, strict=True
    ):
        for column in ("accuracy", "mean_per_class", "gained", "lost"):
            assert getattr(one, column) == getattr(other, column)
        assert one.nll == pytest.approx(other.nll)
    assert parts.samples == 10


def test_a_row_is_scored_by_the_metric_that_is_asked_for() -> None:
    """The tuned pooling wins the only sample of one class, and loses two of four of the other."""
    text = torch.eye(2)
    labels = torch.tensor([0, 0, 0, 0, 1])
    original, tuned = text[[0, 0, 0, 0, 0]], text[[0, 0, 1, 1, 1]]
    [sums] = sum_alpha_row(tuned[None], original, text, labels, 10.0, (0.0, 1.0))
    by_accuracy, by_class = (
        row_of(sums, (0.0, 1.0), Rule(metric)) for metric in ("accuracy", "mean_per_class")
    )
    for row in (by_accuracy, by_class):
        assert [point.accuracy for point in row.figures] == pytest.approx([4 / 5, 3 / 5])
        assert [point.mean_per_class for point in row.figures] == pytest.approx([1 / 2, 3 / 4])
        assert [(point.gained, point.lost) for point in row.figures] == [(0, 0), (1, 2)]
    for point in by_accuracy.figures:
        assert point.score == selection_score(point.accuracy, point.nll, 5)
    assert (by_accuracy.best, by_class.best) == (0, 1)


def test_the_grid_has_both_ends() -> None:
    assert alpha_grid(3) == (0.0, 0.5, 1.0)
    with pytest.raises(ValueError, match="at least 2"):
        alpha_grid(1)
