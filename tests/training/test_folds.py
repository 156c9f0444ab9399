"""Folds are balanced within every class, and keep an image's repetitions together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from safe_ray.training.folds import fold_of


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=60), folds=st.integers(2, 5))
def test_folds_are_balanced_within_every_class(labels: list[int], folds: int) -> None:
    samples = [str(place) for place in range(len(labels))]
    assigned = fold_of(labels, samples, folds)
    for label in set(labels):
        counts = [
            sum(a == fold and b == label for a, b in zip(assigned, labels, strict=True))
            for fold in range(folds)
        ]
        assert max(counts) - min(counts) <= 1


@given(drawn=st.lists(st.integers(0, 9), min_size=1, max_size=60), folds=st.integers(2, 5))
def test_an_image_that_was_drawn_twice_is_in_one_fold(drawn: list[int], folds: int) -> None:
    labels = [image % 3 for image in drawn]
    assigned = fold_of(labels, [str(image) for image in drawn], folds)
    for image in set(drawn):
        assert len({fold for fold, each in zip(assigned, drawn, strict=True) if each == image}) == 1
