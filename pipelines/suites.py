"""Suites: which tasks a benchmark runs, with which backbone and settings, beside which figures.

A suite is a file of `conf/suite`. It has groups of data sets, since not every data set has images
for all numbers of shots; each group is one sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from safe_ray.compose import ConfigTree, load_config
from safe_ray.config import (
    Flag,
    Group,
    Name,
    PositiveInt,
    Seed,
    SweepConfig,
    validate_settings,
)
from safe_ray.errors import InputError, nearest
from safe_ray.files import resolve_path
from safe_ray.report.published import ANY_SHOTS, Published, Reference
from safe_ray.specs import Task

SUITES = "suite"
REFERENCES = "reference"
FILE_SUFFIXES = (".yaml", ".yml")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str | int) else value


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"names {repeated[0]!r} twice: name each once")
    return values


Datasets = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_distinct)]


class SuiteGroup(Group):
    """Data sets that are run with every number of shots and seed of the group."""

    datasets: Datasets = Field(min_length=1)
    shots: Annotated[
        tuple[PositiveInt, ...], BeforeValidator(_listed), AfterValidator(_distinct)
    ] = Field(min_length=1)
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_listed), AfterValidator(_distinct)] = Field(
        min_length=1
    )


class SuiteFile(Group):
    """The content of `conf/suite/<name>.yaml`; its groups are checked one by one."""

    backbone: Name
    overrides: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    groups: tuple[dict[str, Any], ...] = Field(min_length=1)
    reference: str | None = None
    notes: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()


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
    shots: Annotated[
        tuple[PositiveInt, ...], BeforeValidator(_listed), AfterValidator(_distinct)
    ] = Field(min_length=1)
    datasets: Datasets = Field(min_length=1)
    methods: tuple[dict[str, Any], ...] = Field(min_length=1)


@dataclass(frozen=True)
class Suite:
    """A suite that has been read.

    Attributes:
        name: of its file.
        backbone: a file of `conf/backbone`.
        overrides: settings of every sweep, as on the command line.
        groups: one sweep each.
        reference: published figures, or None.
        notes: what a document of its results says first.
    """

    name: str
    backbone: str
    overrides: tuple[str, ...]
    groups: tuple[SuiteGroup, ...]
    reference: Reference | None
    notes: tuple[str, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """All data sets in the order in which the groups name them."""
        return tuple(dict.fromkeys(name for group in self.groups for name in group.datasets))


def split_suite(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take `suite=NAME` out of arguments: the last name that is given, or None, and the rest."""
    named = [argument for argument in arguments if argument.startswith("suite=")]
    rest = [argument for argument in arguments if argument not in named]
    return (named[-1].partition("=")[2] if named else None), rest


def load_suite(name: str, config_dir: str | Path | None = None) -> Suite:
    """Read a suite by the name of its file in `conf/suite`, or by a path that ends in .yaml.

    Raises:
        InputError: there is no such suite, or its content is wrong.
    """
    tree = ConfigTree.of(config_dir)
    file, values = _read(tree, SUITES, name)
    where = f"the suite {file.stem!r}"
    raw = validate_settings(SuiteFile, values, where)
    groups = tuple(
        validate_settings(SuiteGroup, group, f"group {number} of {where}")
        for number, group in enumerate(raw.groups)
    )
    reference = None if raw.reference is None else load_reference(raw.reference, config_dir)
    return Suite(file.stem, raw.backbone, raw.overrides, groups, reference, raw.notes)


def load_reference(name: str, config_dir: str | Path | None = None) -> Reference:
    """Read published figures by the name of their file in `conf/reference`, or by a path.

    Raises:
        InputError: there is no such file, or its content is wrong.
    """
    file, values = _read(ConfigTree.of(config_dir), REFERENCES, name)
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
            listed = ", ".join(map(str, reference.shots))
            raise InputError(f"{has} {shots} shots, which are not among its shots: {listed}.")
    for name in (name for cells in method.accuracies.values() for name in cells):
        if name not in reference.datasets:
            raise InputError(
                f"{has} {name!r}, which is not among its datasets."
                f"{nearest(name, reference.datasets)}"
            )


def _read(tree: ConfigTree, kind: str, name: str) -> tuple[Path, dict[str, Any]]:
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
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): correct {kind}=.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file} is not YAML: {reason}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} must hold settings such as `backbone: rn50`.")
    return file, {str(key): value for key, value in values.items()}


@dataclass(frozen=True)
class Plan:
    """What a benchmark will run.

    Attributes:
        suite: that was asked for.
        name: of the benchmark, and of its folder among the sweeps.
        sweeps: one a group.
    """

    suite: Suite
    name: str
    sweeps: tuple[SweepConfig, ...]

    @property
    def folder(self) -> Path:
        """Where the benchmark's own files are written; a single sweep's folder is the same."""
        return self.sweeps[0].storage / "outputs" / self.name

    @property
    def tasks(self) -> list[Task]:
        """All tasks of all sweeps."""
        return [task for sweep in self.sweeps for task in sweep.tasks.tasks()]


def plan(suite: Suite, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Plan:
    """Compose the sweeps of a suite.

    The sweep of a single group is called as the benchmark, those of several `<name>-0`, `<name>-1`
    and so on, in one MLflow experiment.

    Args:
        suite: what to run.
        overrides: of `safe_ray.tune`; they go over the suite's own. `sweep=` names the benchmark,
            which is otherwise called after the suite.
        config_dir: see `load_config`.

    Raises:
        InputError: a setting is wrong, or two groups share a task.
    """
    name = suite.name
    settings: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") == "sweep":
            name = value if value != "null" else suite.name
        else:
            settings.append(override)
    several = len(suite.groups) > 1
    sweeps = []
    for number, group in enumerate(suite.groups):
        own = [f"backbone={suite.backbone}", *_tasks(group)]
        own += [f"tracking.experiment={name}"] if several else []
        own += [*suite.overrides, f"sweep={name}-{number}" if several else f"sweep={name}"]
        sweeps.append(_compose(suite.name, own, settings, config_dir))
    made = Plan(suite, name, tuple(sweeps))
    task, count = Counter(made.tasks).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{count} groups of the suite {suite.name!r} have the task {task.id}: give every task "
            "to one group, and leave tasks.datasets and tasks.shots to the suite if it has several."
        )
    return made


def _tasks(group: SuiteGroup) -> list[str]:
    listed: Mapping[str, Sequence[Any]] = {
        "datasets": [repr(name) for name in group.datasets],
        "shots": group.shots,
        "seeds": group.seeds,
    }
    return [f"tasks.{key}=[{','.join(map(str, values))}]" for key, values in listed.items()]


def _compose(
    suite: str, own: Sequence[str], settings: Sequence[str], config_dir: str | Path | None
) -> SweepConfig:
    try:
        return load_config([*own, *settings], config_dir)
    except InputError:
        # Tell the suite's mistakes from those of the command line.
        try:
            load_config(own, config_dir)
        except InputError as error:
            raise InputError(f"In the suite {suite!r}: {error}") from None
        raise
