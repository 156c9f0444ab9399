"""Every setting with its type in words, as `--help` lists it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types

from safe_ray.config.fields import FloatRange, Group, IntRange
from safe_ray.config.sweep import SweepConfig


@dataclass(frozen=True)
class Knob:
    """One setting as `--help` shows it."""

    path: str
    type: str
    meaning: str


def groups() -> dict[str, type[Group]]:
    """Return the model of every group of settings by its name."""
    return {
        name: field.annotation
        for name, field in SweepConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group)
    }


def knobs() -> list[Knob]:
    """Return every setting, in the order of the models."""
    return list(_knobs(SweepConfig, ""))


def _knobs(model: type[Group], prefix: str) -> Iterator[Knob]:
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            yield from _knobs(field.annotation, f"{path}.")
        elif field.description:
            bounds = [
                item for item in field.metadata if isinstance(item, annotated_types.BaseMetadata)
            ]
            spelled = spell(field.annotation, bounds)
            if path in ("sweep", "storage"):
                spelled = f"{spelled} or null"
            yield Knob(path, spelled, field.description)


def spell(annotation: Any, metadata: Sequence[Any] = (), plural: bool = False) -> str:
    """Return a type in words that someone who does not program understands."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, *more = typing.get_args(annotation)
        unpacked = [part for item in more for part in (getattr(item, "metadata", None) or [item])]
        return spell(inner, [*metadata, *unpacked], plural)
    if origin in (typing.Union, types.UnionType):
        parts = [spell(part, (), plural) for part in typing.get_args(annotation)]
        return _either(sorted(parts, key=lambda part: (part.startswith("{"), part == "null")))
    if origin is Literal:
        return _either([str(choice) for choice in typing.get_args(annotation)])
    if origin is tuple:
        return f"a list of {spell(typing.get_args(annotation)[0], (), plural=True)}"
    if annotation in (FloatRange, IntRange):
        return "{low, high, log}"
    if isinstance(annotation, type) and issubclass(annotation, Group):
        return f"{{{', '.join(annotation.model_fields)}}}"
    if annotation is type(None):
        return "null"
    one, many = {
        int: ("an integer", "integers"),
        float: ("a number", "numbers"),
        bool: ("true or false", "true or false"),
        str: ("text", "names"),
        Path: ("a folder", "folders"),
    }.get(annotation, ("a group of settings", "groups of settings"))
    return " ".join([many if plural else one, *_bounds(metadata)])


def _either(parts: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    found = [
        f"{word} {bound}"
        for item in metadata
        for name, word in words.items()
        if (bound := getattr(item, name, None)) is not None
    ]
    if found:
        yield " and ".join(found)
