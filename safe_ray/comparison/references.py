"""Files of `conf/reference`: published figures, read and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from safe_ray.compose import ConfigTree
from safe_ray.config import Flag, Group, Name, PositiveInt, validate_settings
from safe_ray.errors import InputError, nearest
from safe_ray.files import resolve_path
from safe_ray.outside import read_yaml
from safe_ray.report.published import ANY_SHOTS, Published, Reference

REFERENCES = "reference"
FILE_SUFFIXES = (".yaml", ".yml")


def listed(value: Any) -> Any:
    """Return a tuple of a single name or number, and anything else as it is."""
    return (value,) if isinstance(value, str | int) else value


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return values that no two of are equal.

    Raises:
        ValueError: two are.
    """
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"names {repeated[0]!r} twice: name each once")
    return values


Datasets = Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(distinct)]
ShotCounts = Annotated[tuple[PositiveInt, ...], BeforeValidator(listed), AfterValidator(distinct)]

PerCent = Annotated[float, Field(gt=0, le=100)]
ShotsOrAny = Annotated[int, Field(ge=ANY_SHOTS)]
Text = Annotated[str, Field(min_length=1)]


class PublishedFile(Group):
    """One method of `conf/reference/<name>.yaml`; its figures are in per cent, by shots."""

    method: Text
    source: Text
    protocol: Text
    chosen_on_test: Flag | None
    prompts: Literal["templates", "descriptions"]
    checked: Literal["at_source", "second_hand"]
    averages: dict[ShotsOrAny, PerCent] = Field(default_factory=dict)
    accuracies: dict[ShotsOrAny, dict[str, PerCent]] = Field(default_factory=dict)


class ReferenceFile(Group):
    """The content of `conf/reference/<name>.yaml`; its methods are checked one by one."""

    backbone: Name
    shots: ShotCounts = Field(min_length=1)
    datasets: Datasets = Field(min_length=1)
    methods: tuple[dict[str, Any], ...] = Field(min_length=1)


def load_reference(name: str, config_dir: str | Path | None = None) -> Reference:
    """Read published figures by the name of their file in `conf/reference`, or by a path.

    Raises:
        InputError: there is no such file, or its content is wrong.
    """
    file, values = read_values(ConfigTree.of(config_dir), REFERENCES, name)
    return reference_of(values, f"the reference {file.stem!r}")


def reference_of(values: Mapping[str, Any], where: str) -> Reference:
    """Check plain values, those of a file or of a `Reference`, and return the reference.

    Raises:
        InputError: what is wrong, and `where` it is.
    """
    raw = validate_settings(ReferenceFile, values, where)
    methods = []
    for number, content in enumerate(raw.methods):
        method = validate_settings(PublishedFile, content, f"method {number} of {where}")
        _check_places(method, raw, where)
        methods.append(Published(**method.model_dump()))
    return Reference(raw.backbone, raw.shots, raw.datasets, tuple(methods))


def _check_places(method: PublishedFile, reference: ReferenceFile, where: str) -> None:
    """Refuse figures of shots or of a data set that the reference does not list."""
    has = f"In {where}, {method.method!r} has a figure for"
    for shots in (*method.averages, *method.accuracies):
        if shots not in (ANY_SHOTS, *reference.shots):
            known = ", ".join(map(str, reference.shots))
            raise InputError(f"{has} {shots} shots, which are not among its shots: {known}.")
    for name in (name for cells in method.accuracies.values() for name in cells):
        if name not in reference.datasets:
            raise InputError(
                f"{has} {name!r}, which is not among its datasets."
                f"{nearest(name, reference.datasets)}"
            )


def read_values(tree: ConfigTree, kind: str, name: str) -> tuple[Path, dict[str, Any]]:
    """Read a YAML file by its name in a folder of settings, or by a path that ends in .yaml.

    Returns:
        The file, and what it holds.

    Raises:
        InputError: there is no such file, or it holds no settings.
    """
    if name.endswith(FILE_SUFFIXES):
        file: Path | None = resolve_path(name)
    else:
        file = tree.find(kind, name)
    if file is None:
        known = tree.choices(kind)
        raise InputError(
            f"There is no {kind}={name}."
            + (nearest(name, known) or f" The choices are: {', '.join(known)}.")
            + f" (A file of your own is written {kind}=<path>.yaml.)"
        )
    try:
        values = read_yaml(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): correct {kind}=.") from None
    except ValueError as error:
        raise InputError(f"{file} is not YAML: {error}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} must hold settings such as `backbone: rn50`.")
    return file, {str(key): value for key, value in values.items()}
