"""Of which types the fields of a head's card are, for whoever reads one that others wrote."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from safe_ray.outside import is_module_name, is_plain_name


def _module(name: str) -> str:
    if not is_module_name(name):
        raise ValueError("no dotted name of a module")
    return name


def _plain(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError("no name of a folder")
    return name


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Whole = Annotated[int, Field(ge=0, lt=2**63)]
_Module = Annotated[str, AfterValidator(_module)]
_Name = Annotated[str, AfterValidator(_plain)]


@dataclass(frozen=True)
class _Backbone:
    name: str = ""
    model: str | None = None
    pretrained: str | None = None
    model_config: str | None = None
    seed: _Whole = 0
    pooling: _Module | None = None
    digest: str | None = None
    part: str | None = None


@dataclass(frozen=True)
class _Method:
    module: _Module | None = None
    options: dict[str, Any] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class _Weights:
    file: str
    sha256: str


@dataclass(frozen=True)
class _Calibration:
    temperature: _Positive = 1.0


@dataclass(frozen=True)
class _Card:
    backbone: _Backbone
    dataset: _Name
    shots: _Whole | Literal["all"]
    seed: _Whole
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    templates: tuple[str, ...]
    method: _Method
    knobs: dict[str, _Finite]
    logit_scale: _Positive
    weights: _Weights
    calibration: _Calibration = field(default_factory=_Calibration)
    labels: tuple[int | str, ...] | None = None
    names: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] = ()
    called: tuple[str, ...] = ()


@functools.cache
def _adapter() -> TypeAdapter[_Card]:
    return TypeAdapter(_Card)


def wrong_fields(card: Mapping[str, Any]) -> list[str]:
    """Return the fields of a card, dotted, that hold something else than belongs there."""
    try:
        _adapter().validate_python(card)
    except ValidationError as error:
        return list(dict.fromkeys(".".join(map(str, one["loc"])) for one in error.errors()))
    return []
