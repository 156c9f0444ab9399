"""What one setting may be: numbers with bounds, names, folders and intervals to search."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    model_validator,
)

from safe_ray.files import is_uri, resolve_path


def one_or_many(value: Any) -> Any:
    """Return a single value as a tuple of one."""
    return (value,) if isinstance(value, str | int | float) else value


def without_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values, which must differ from each other."""
    repeated = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if repeated is not None:
        raise ValueError(f"names {repeated!r} twice: name each once")
    return values


def _safe_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"is {name!r}, and must be at most 100 letters, digits, dots, dashes and underscores, "
            "since it names a folder"
        )
    return name


def _part(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", name) or name == "all":
        raise ValueError(
            f"is {name!r}, and must be a part of the pooling, such as projection, or all alone"
        )
    return name


def _local_folder(value: Any) -> Any:
    """Return the absolute path; a URI would become a local folder with a strange name."""
    if isinstance(value, str) and is_uri(value):
        raise ValueError(
            f"is {value}, and must be a folder of the file system, such as a mounted share: only "
            "data sets may lie at a URI"
        )
    return resolve_path(value) if value else value


def _bytes(value: Any) -> Any:
    """Return a number of bytes; 64GiB, 64Gi, 64GB and 64G are read as Kubernetes reads them."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", value.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"is {value!r}, and must be bytes, or a size such as 64GiB or 512MiB")
    unit = (found[2] or "").upper()
    base = 1024 if unit.endswith("I") else 1000
    return int(float(found[1]) * base ** (" KMGT".index(unit[0]) if unit else 0))


PositiveInt = Annotated[int, Strict(), Field(ge=1)]
NaturalInt = Annotated[int, Strict(), Field(ge=0)]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**32)]
PositiveNumber = Annotated[float, Strict(), Field(gt=0)]
NaturalNumber = Annotated[float, Strict(), Field(ge=0)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=2**20)]
Fraction = Annotated[float, Strict(), Field(ge=0, lt=1)]
Flag = Annotated[bool, Strict()]
Name = Annotated[str, AfterValidator(_safe_name)]
Folder = Annotated[Path, BeforeValidator(_local_folder)]
Auto = Literal["auto"]
# A part of a pooling; which there are is known when the backbone is.
Parameter = Annotated[str, AfterValidator(_part)]


class Group(BaseModel):
    """What all groups share: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )


Settings = typing.TypeVar("Settings", bound=Group)


class FloatRange(Group):
    """An interval of real numbers to search."""

    low: Annotated[float, Strict()]
    high: Annotated[float, Strict()]
    log: Flag = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self)
        return self


class IntRange(Group):
    """An interval of integers to search, both ends included."""

    low: Annotated[int, Strict()]
    high: Annotated[int, Strict()]
    log: Flag = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self)
        return self


def _check_order(interval: FloatRange | IntRange) -> None:
    if not interval.low < interval.high:
        raise ValueError(
            f"searches from low={interval.low:g} to high={interval.high:g}: low must be below high"
        )
    if interval.log and interval.low <= 0:
        raise ValueError(
            f"searches on a logarithmic scale from low={interval.low:g}: low must be above 0 there"
        )


def within(
    minimum: float, maximum: float | None = None, above: bool = False
) -> Callable[[Any], Any]:
    """Return a check that a number, or an interval to search, keeps within bounds.

    Args:
        minimum: the smallest number that is allowed.
        maximum: the largest; None for no bound.
        above: the minimum itself is not allowed.
    """

    def check(value: Any) -> Any:
        ends = (
            (value.low, value.high) if isinstance(value, FloatRange | IntRange) else (value, value)
        )
        too_low = ends[0] <= minimum if above else ends[0] < minimum
        if too_low or (maximum is not None and ends[1] > maximum):
            bound = f"{'above' if above else 'at least'} {minimum:g}"
            bound = bound if maximum is None else f"between {minimum:g} and {maximum:g}"
            offending = ends[0] if too_low else ends[1]
            raise ValueError(f"reaches {offending:g}, and must stay {bound}")
        return value

    return check


def without_log(value: Any) -> Any:
    """Return the value, which must not be an interval on a logarithmic scale."""
    log = value.get("log") if isinstance(value, Mapping) else getattr(value, "log", False)
    if log:
        raise ValueError(
            "has log: true, which has no meaning there: every head is evaluated on an even grid of "
            "search.alpha_points, and its best point is taken. Leave log out"
        )
    return value


SearchedFloat = Annotated[float, Strict()] | FloatRange
SearchedInt = Annotated[int, Strict()] | IntRange
