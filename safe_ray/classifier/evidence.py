"""What the images that decided say of the chosen head, and how far that can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

from safe_ray.data.duplicates import example_of, twins_of_looks
from safe_ray.features.inventory import Inventory
from safe_ray.report.intervals import CONFIDENCE
from safe_ray.report.summary import ValidationResult
from safe_ray.specs import Selection

_STANDARD_DEVIATIONS = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Evidence(ValidationResult):
    """What a head was chosen by.

    Attributes:
        samples: how many images decided.
        selection: where they come from: `coop` and `held_out` are images that do not train, `full`
            all images that were given for it, and `cross` each support image by a head that has not
            seen it.
        candidates: how many heads they chose from.
    """

    samples: int
    selection: Selection
    candidates: int

    @classmethod
    def of(
        cls, result: ValidationResult, samples: int, selection: Selection, candidates: int
    ) -> Evidence:
        """Return a result with what it is of."""
        return cls(**asdict(result), samples=samples, selection=selection, candidates=candidates)

    @property
    def zero_shot_accuracy(self) -> float:
        """What the untouched model has on the same images, 0 to 1."""
        return self.accuracy - (self.gained - self.lost) / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy, 0 to 1, had these images chosen nothing (Wilson's)."""
        return wilson(self.accuracy, self.samples)

    def __str__(self) -> str:
        low, high = self.interval
        if self.gained == self.lost:
            shown = "no difference"
        elif self.gain_shown:
            shown = "a gain beyond chance"
        else:
            shown = "a difference that chance may have given"
        return (
            f"of {self.samples} validation images {self.accuracy:.1%} are right ({CONFIDENCE:.0%} "
            f"interval {low:.1%} to {high:.1%}) and {self.zero_shot_accuracy:.1%} zero-shot, "
            f"{shown}"
        )

    def sentences(self, independent: bool) -> list[str]:
        """Return what a person should know before they believe the number.

        Args:
            independent: whether the person has said which images belong together, or which decide.
        """
        said = [f"{str(self).capitalize()}."]
        if self.candidates > 1:
            said[0] += (
                f" They chose the best of {self.candidates} candidates, so new images will have "
                "less."
            )
        if not independent:
            said.append(
                "The images that decide are some of those that were given. If several show one "
                "thing (frames of a film, versions of a drawing), some of them train while others "
                "decide, and the number above is too good for new things: say which belong "
                "together with fit(..., groups=...), or give other images to decide with fit(..., "
                "validation_data=(images, labels))."
            )
        return said


def wilson(share: float, samples: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share among so many samples."""
    wide = _STANDARD_DEVIATIONS**2 / samples
    middle = (share + wide / 2) / (1 + wide)
    half = math.sqrt(wide * (share * (1 - share) + wide / 4)) / (1 + wide)
    return max(0.0, middle - half), min(1.0, middle + half)


def twins_that_decide(support: Inventory, validation: Inventory) -> list[str]:
    """Return a sentence on images that decide and are among those that train, too.

    Args:
        support: the images that train.
        validation: those that decide; without any, it is cross-validation of the support images.
    """
    inventories: Sequence[Inventory] = (support, validation)
    samples = [sample for inventory in inventories for sample in inventory.samples]
    looks = [look for inventory in inventories for look in inventory.looks]
    paths = [path for i in inventories for path in i.table["path"].to_pylist()]
    if not looks or len(looks) != len(samples):
        return []
    cross = not validation.samples
    # One image is always in one fold, however often it is there.
    places = {sample: place for place, sample in enumerate(samples)}
    groups = [
        places[sample] if cross else int(at >= len(support.samples))
        for at, sample in enumerate(samples)
    ]
    twins = twins_of_looks(samples, looks, groups)
    if not twins:
        return []
    return [
        f"{len(twins)} of {len(samples) if cross else len(validation.samples)} images that decide "
        f"{'is' if len(twins) == 1 else 'are'} among those that train as well, such as "
        f"{example_of(twins, paths)}: validation is too good."
    ]
