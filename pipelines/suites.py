"""Suites: which tasks a benchmark runs, with which backbone and settings, beside which figures.

A suite is a file of `conf/suite`. It has groups of data sets, since not every data set has images
for all numbers of shots; each group is one sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from safe_ray.comparison.references import (
    Datasets,
    ShotCounts,
    distinct,
    listed,
    load_reference,
    read_values,
)
from safe_ray.compose import ConfigTree, load_config
from safe_ray.config import (
    Group,
    Name,
    Seed,
    SweepConfig,
    validate_settings,
)
from safe_ray.errors import InputError
from safe_ray.report.published import Reference
from safe_ray.specs import Task

SUITES = "suite"


class SuiteGroup(Group):
    """Data sets that are run with every number of shots and seed of the group."""

    datasets: Datasets = Field(min_length=1)
    shots: ShotCounts = Field(min_length=1)
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(listed), AfterValidator(distinct)] = Field(
        min_length=1
    )


class SuiteFile(Group):
    """The content of `conf/suite/<name>.yaml`; its groups are checked one by one."""

    backbone: Name
    overrides: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    groups: tuple[dict[str, Any], ...] = Field(min_length=1)
    reference: str | None = None
    notes: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()


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
    file, values = read_values(tree, SUITES, name)
    where = f"the suite {file.stem!r}"
    raw = validate_settings(SuiteFile, values, where)
    groups = tuple(
        validate_settings(SuiteGroup, group, f"group {number} of {where}")
        for number, group in enumerate(raw.groups)
    )
    reference = None if raw.reference is None else load_reference(raw.reference, config_dir)
    return Suite(file.stem, raw.backbone, raw.overrides, groups, reference, raw.notes)


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
    and so on, in one MLflow experiment, the project's.

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
