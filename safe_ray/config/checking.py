"""Plain values checked against the models; what is wrong is said in one sentence."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from safe_ray.config.fields import Group, Settings
from safe_ray.config.listing import spell
from safe_ray.config.settings import DatasetConfig, MethodConfig
from safe_ray.config.sweep import SweepConfig
from safe_ray.errors import InputError, nearest


def validate(values: Mapping[str, Any]) -> SweepConfig:
    """Check plain values and return the configuration.

    Raises:
        InputError: the first values that are wrong, each with what it must be.
    """
    try:
        return SweepConfig.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(_sentence(error, SweepConfig)) from None


def validate_dataset(name: str, values: Mapping[str, Any]) -> DatasetConfig:
    """Check the content of `conf/dataset/<name>.yaml`.

    Raises:
        InputError: the first values that are wrong, each with what it must be.
    """
    try:
        return DatasetConfig.model_validate({"name": name, **values})
    except ValidationError as error:
        raise InputError(f"In the data set {name!r}: {_sentence(error, DatasetConfig)}") from None


def validate_method(name: str, values: Mapping[str, Any]) -> MethodConfig:
    """Check the content of `conf/method/<name>.yaml`.

    Raises:
        InputError: the first values that are wrong, each with what it must be.
    """
    return validate_settings(MethodConfig, {"name": name, **values}, f"the method {name!r}")


def validate_settings(model: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Check the content of a file that is not part of a sweep's own configuration.

    Raises:
        InputError: the first values that are wrong, each with what it must be and `where` it is.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(f"In {where}: {_sentence(error, model)}") from None


def _sentence(error: ValidationError, root: type[Group]) -> str:
    """Return one sentence about the first three settings that are wrong."""
    found: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path, field_type, known = _locate(problem["loc"], root)
        kind = problem["type"]
        if path in found and kind != "value_error":
            continue
        if kind == "extra_forbidden":
            where = path.rpartition(".")[0]
            key = str(problem["loc"][-1])
            prefix = f"{where} has" if where else "There is"
            found[path] = f"{prefix} no setting {key!r}{_hint(key, known)}"
        elif kind == "missing":
            found.setdefault(path, f"{path} is missing: it must be {field_type}")
        elif kind == "value_error":
            found[path] = f"{path} {problem['ctx']['error']}"
        elif kind == "too_short":
            found[path] = f"{path} is empty: it must name at least one"
        else:
            # Behind the place in a list, pydantic names the branch of a union.
            in_list = any(isinstance(part, int) for part in problem["loc"][-2:]) and "[" not in path
            verb = "holds" if in_list else "is"
            found[path] = f"{path} {verb} {show(problem['input'])}, and must be {field_type}"
    sentences = list(found.values())[:3]
    return "; ".join(sentence.rstrip(".?") for sentence in sentences) + "."


def _hint(key: str, known: list[str]) -> str:
    close = nearest(key, known).strip().rstrip("?")
    return f" (did you mean {close.removeprefix('Did you mean ')}?)" if close else ""


def _locate(loc: tuple[int | str, ...], root: type[Group]) -> tuple[str, str, list[str]]:
    """Return a wrong setting's dotted path, its type in words, and its siblings' names."""
    model: type[Group] = root
    path: list[str] = []
    kind = "a group of settings"
    for part in loc:
        if isinstance(part, int) and path:
            path[-1] += f"[{part}]"
            kind = spell(model)
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        path.append(str(part))
        field = fields.get(str(part))
        if field is None:
            return ".".join(path), "", list(fields)
        inner = _group_in(field.annotation)
        if inner is not None:
            model = inner
            listed = typing.get_origin(field.annotation) is tuple
            kind = spell(field.annotation) if listed else kind
            continue
        return ".".join(path), spell(field.annotation, list(field.metadata)), list(fields)
    return ".".join(path), kind, list(model.model_fields)


def _group_in(annotation: Any) -> type[Group] | None:
    """Return the group of settings that a field holds, itself or in a list."""
    if typing.get_origin(annotation) is tuple:
        annotation = typing.get_args(annotation)[0]
    return annotation if isinstance(annotation, type) and issubclass(annotation, Group) else None


def show(value: Any) -> str:
    """Return a value as JSON, as it would be typed."""
    return json.dumps(value, default=str, ensure_ascii=False)
