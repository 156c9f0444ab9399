"""Published figures, and what of them can stand beside a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ANY_SHOTS = 0
"""The number of shots under which figures stand that hold for all."""


@dataclass(frozen=True)
class Published:
    """What others have published of one method.

    Attributes:
        method: its name.
        source: where the figures stand.
        protocol: how they were obtained, as far as the source says.
        chosen_on_test: whether anything was chosen by test accuracy; None if that is not known.
        prompts: `templates` for fixed sentences around the class name, `descriptions` for sentences
            about each class.
        checked: `at_source` if the figures were read where their authors put them, `second_hand`
            if others quote them.
        averages: over the reference's data sets, in per cent, by shots; see `ANY_SHOTS`.
        accuracies: in per cent, by shots and data set; there may be none.
    """

    method: str
    source: str
    protocol: str
    chosen_on_test: bool | None
    prompts: str
    checked: str
    averages: Mapping[int, float]
    accuracies: Mapping[int, Mapping[str, float]]

    def average(self, shots: int) -> float | None:
        """Return the average at a number of shots, in per cent."""
        return self.averages.get(shots, self.averages.get(ANY_SHOTS))

    def cells(self, shots: int) -> Mapping[str, float]:
        """Return the accuracies at a number of shots by data set, in per cent."""
        return self.accuracies.get(shots, self.accuracies.get(ANY_SHOTS, {}))


@dataclass(frozen=True)
class Reference:
    """Published figures for one backbone, averaged over the same data sets.

    Attributes:
        backbone: its name.
        shots: for which there are figures.
        datasets: what an average is over.
        methods: in the order in which they are printed.
    """

    backbone: str
    shots: tuple[int, ...]
    datasets: tuple[str, ...]
    methods: tuple[Published, ...]


@dataclass(frozen=True)
class Beside:
    """What of a reference can stand beside a benchmark at one number of shots.

    Attributes:
        shots: labelled training images a class.
        datasets: that both have, in the benchmark's order.
        averages: whether both averages are over the same data sets.
        methods: that have any figure there.
    """

    shots: int
    datasets: tuple[str, ...]
    averages: bool
    methods: tuple[Published, ...]

    def values(self, method: Published) -> list[float | None]:
        """Return a method's printed figures: one a data set, then the average if it compares."""
        return _values(method, self.shots, self.datasets, self.averages)


def beside(
    reference: Reference, shots: int, run: Sequence[str], averaged: Sequence[str]
) -> Beside | None:
    """Return what compares, or None if nothing does.

    Args:
        reference: of the same backbone.
        shots: labelled training images a class.
        run: the benchmark's data sets at that number of shots.
        averaged: those that its average is over.
    """
    if shots not in reference.shots:
        return None
    common = tuple(name for name in run if name in reference.datasets)
    # An average over other data sets would only look comparable.
    averages = set(averaged) == set(reference.datasets)
    methods = tuple(
        method
        for method in reference.methods
        if any(value is not None for value in _values(method, shots, common, averages))
    )
    return Beside(shots, common, averages, methods) if methods else None


def _values(
    method: Published, shots: int, datasets: Sequence[str], averages: bool
) -> list[float | None]:
    cells = method.cells(shots)
    return [*(cells.get(name) for name in datasets), *([method.average(shots)] * averages)]
