"""Published figures at several numbers of shots: a file of `conf/reference`, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safe_ray.errors import InputError, nearest

PerCent = Annotated[float, Field(gt=0, le=100)]
Shots = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class PublishedMethod(BaseModel):
    """What others have published of one method.

    Attributes:
        method: its name.
        source: where the figures stand.
        protocol: how they were obtained, as far as the source says.
        chosen_on_test: whether anything was chosen by test accuracy; None if that is not known.
        prompts: `templates` for fixed sentences around the class name, `descriptions` for sentences
            about each class that a language model wrote.
        checked: `at_source` if the figures were read where their authors put them, `second_hand`
            if others quote them.
        averages: over all data sets of the file, in per cent, by shots; 0 shots are any.
        accuracies: in per cent, by shots and data set; there may be none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Text
    source: Text
    protocol: Text
    chosen_on_test: bool | None
    prompts: Literal["templates", "descriptions"]
    checked: Literal["at_source", "second_hand"]
    averages: dict[Shots, PerCent] = Field(min_length=1)
    accuracies: dict[Shots, dict[str, PerCent]] = {}

    def average(self, shots: int) -> float | None:
        """Return the average at a number of shots, in per cent."""
        return self.averages.get(shots, self.averages.get(0))

    def cells(self, shots: int) -> Mapping[str, float]:
        """Return the accuracies at a number of shots by data set, in per cent."""
        return self.accuracies.get(shots, self.accuracies.get(0, {}))


class PublishedFigures(BaseModel):
    """The content of a file of `conf/reference`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: Text
    shots: Annotated[tuple[int, ...], Field(min_length=1)]
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    methods: Annotated[tuple[PublishedMethod, ...], Field(min_length=1)]


def published_of(values: Mapping[str, Any], where: str) -> PublishedFigures:
    """Check the content of a file.

    Args:
        values: as YAML gives them.
        where: the file, for errors.

    Raises:
        InputError: a setting that does not exist, is missing or wrong, or a figure of shots or a
            data set that the file does not list.
    """
    try:
        figures = PublishedFigures.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"In {where}, {place} is wrong ({first['msg']}): correct it.") from None
    for method in figures.methods:
        for kind in (method.averages, method.accuracies):
            unknown = next((at for at in kind if at not in (0, *figures.shots)), None)
            if unknown is not None:
                raise InputError(
                    f"In {where}, {method.method!r} has figures at {unknown} shots, which are not "
                    f"among its shots ({', '.join(map(str, figures.shots))}): correct either."
                )
        for name in (name for cells in method.accuracies.values() for name in cells):
            if name not in figures.datasets:
                raise InputError(
                    f"In {where}, {method.method!r} has a figure for {name!r}, which is not among "
                    f"its datasets: correct either.{nearest(name, figures.datasets)}"
                )
    return figures


def read_published(file: Path) -> PublishedFigures | None:
    """Read a file of published figures; None if it is one of a single number of shots.

    Raises:
        InputError: it is not YAML, or see `published_of`.
    """
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file} cannot be read as YAML ({reason}): correct it.") from None
    if not isinstance(values, dict) or not isinstance(values.get("shots"), list):
        return None
    return published_of(values, str(file))


def comparable(figures: PublishedFigures, datasets: Sequence[str]) -> bool:
    """Return whether an average over these data sets is over the same as the published ones."""
    return set(datasets) == set(figures.datasets)
