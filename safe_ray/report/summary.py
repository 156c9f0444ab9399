"""`summary.json`: a list with one entry a task and method, and the typed value behind an entry."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safe_ray.errors import InputError
from safe_ray.files import write_atomically
from safe_ray.outside import is_plain_name, read_json
from safe_ray.specs import ALL_SHOTS, Metric, Task

SUMMARY_FILE = "summary.json"
ZERO_SHOT = "zero_shot"
"""The key of the untouched model, and the name of the method that leaves it untouched."""

# An entry's accuracies on its own test split stand in the entry itself.
_TEST_KEYS = {
    "test": "accuracy",
    "test_mean_per_class": "mean_per_class",
    "test_ece": "ece",
    "test_samples": "samples",
}


@dataclass(frozen=True)
class ValidationResult:
    """What the winner was chosen by.

    Attributes:
        accuracy: 0 to 1, on the validation samples.
        mean_per_class: 0 to 1, the mean over the classes of the accuracy in each.
        nll: mean negative log-likelihood in nats.
        gained: validation samples that the winner gets right and zero-shot (alpha = 0) wrong.
        lost: validation samples that the winner gets wrong and zero-shot right.
        gain_shown: whether these two show a gain over zero-shot beyond chance, at 5% and one-sided
            (see `safe_ray.heads.selection.shows_gain`). The winner is the winner either way.
    """

    accuracy: float
    mean_per_class: float
    nll: float
    gained: int
    lost: int
    gain_shown: bool


@dataclass(frozen=True)
class TestResult:
    """What is measured on a whole test split.

    Each mapping has the key `zero_shot`, for the untouched model, and the method's name.

    Attributes:
        accuracy: 0 to 1, over all test images.
        mean_per_class: 0 to 1, the mean over the classes with test images of the accuracy in each.
        ece: 0 to 1, the expected calibration error over 15 bins of equal width.
        samples: how many test images.
    """

    accuracy: dict[str, float]
    mean_per_class: dict[str, float]
    ece: dict[str, float]
    samples: int

    __test__ = False

    def by(self, metric: Metric) -> dict[str, float]:
        """Return the accuracies by that metric."""
        return self.mean_per_class if metric == "mean_per_class" else self.accuracy


@dataclass(frozen=True)
class Protocol:
    """How the task was posed, and by what its winner was chosen; never by a test sample.

    Attributes:
        selection: `coop` (a few validation samples a class), `cross` (folds of the support set),
            `full` (the whole validation split) or `held_out` (a fifth of the training images).
        metric: what was asked for, `accuracy` or `mean_per_class`.
        choose_by: how the winner was chosen on them: `metric`, `nll`, `nll_prior` or
            `metric_nll_prior` (see `safe_ray.heads.selection.Rule`).
        convention: of the sampling, a key of `safe_ray.data.episodes.CONVENTIONS`.
        prompts: `single`, `ensemble` or `descriptions`.
        refit: whether winners were then trained again, on support and validation samples together.
        cautious: whether a winner whose gain is not shown gave way to zero-shot.
        support_samples: images that the head was tuned on, before that.
        validation_samples: images that the validation accuracy is over.
        train_digest: of the support samples.
        validation_digest: of the drawn validation samples.
    """

    selection: str
    metric: str
    choose_by: str
    convention: str
    prompts: str
    refit: bool
    cautious: bool
    support_samples: int
    validation_samples: int
    train_digest: str
    validation_digest: str


@dataclass(frozen=True)
class TaskResult:
    """What one method came to in one task: an entry in `summary.json`.

    Attributes:
        shots: labelled training images a class; `ALL_SHOTS`, written as `all`, for all of them.
        method: the method's name, such as `safe`.
        title: what tables call it, such as `SAFE`.
        backbone: the name of the model that was adapted.
        best: the winning candidate's values (`lr`, `epochs`, ...) and its knobs (`alpha`, ...), by
            name; a method that searches nothing has none.
        targets: of the head on the test-only data sets that were asked for, by their names.
        head: folder of the winning head, with '/' and relative to the folder of `summary.json`, so
            that a sweep's folder can be moved; None for a method that keeps nothing.
        mlflow_run_id: the task's run, or None when nothing was tracked.
    """

    dataset: str
    shots: int
    seed: int
    method: str
    title: str
    backbone: str
    episode_digest: str
    best: dict[str, float]
    validation: ValidationResult
    test: TestResult
    targets: dict[str, TestResult]
    protocol: Protocol
    head: str | None
    mlflow_run_id: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values; what is not finite becomes null."""
        entry: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if name == "shots":
                entry[name] = "all" if value == ALL_SHOTS else value
            elif name == "test":
                entry |= {key: value[field] for key, field in _TEST_KEYS.items()}
            else:
                entry[name] = value
        return _finite(entry)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TaskResult:
        """Return the result that `to_json` wrote.

        Raises:
            InputError: a key is missing or unknown, a value has the wrong type, or a test has no
                number for zero-shot or for the method.
        """
        fields = _fields(cls)
        fields.pop("test")
        of_test = {key: _fields(TestResult)[field] for key, field in _TEST_KEYS.items()}
        if isinstance(entry, Mapping) and entry.get("shots") == "all":
            entry = {**entry, "shots": ALL_SHOTS}
        values = _read({**fields, **of_test}, entry, "entry")
        test = TestResult(**{field: values.pop(key) for key, field in _TEST_KEYS.items()})
        made = cls(
            **{
                **values,
                "validation": ValidationResult(
                    **_read(_fields(ValidationResult), values["validation"], "validation")
                ),
                "test": test,
                "targets": {
                    name: TestResult(**_read(_fields(TestResult), value, f"target {name}"))
                    for name, value in values["targets"].items()
                },
                "protocol": Protocol(**_read(_fields(Protocol), values["protocol"], "protocol")),
            }
        )
        _check_methods(made.test, made.method, "test")
        for name, target in made.targets.items():
            _check_methods(target, made.method, f"target {name}")
        return made


def task_id(result: TaskResult) -> str:
    """Return the name of an entry's task."""
    return Task(result.dataset, result.shots, result.seed).id


def write_summary(results: Sequence[TaskResult], folder: Path) -> Path:
    """Write `summary.json`, in the order of `in_order`, and return its path."""
    file = folder / SUMMARY_FILE
    entries = [result.to_json() for result in in_order(results)]
    write_atomically(file, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
    return file


def read_summary(file: Path) -> list[TaskResult]:
    """Read a `summary.json`, or the one in a sweep's folder.

    Raises:
        InputError: there is none, or it is not one.
    """
    file = file / SUMMARY_FILE if file.is_dir() else file
    try:
        entries = read_json(file, follow=False)
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}): name the folder of a sweep that has ended."
        ) from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): run the sweep again.") from error
    if not isinstance(entries, list):
        raise InputError(f"{file} is not a list of tasks: name a sweep's {SUMMARY_FILE}.")
    results = []
    for index, entry in enumerate(entries):
        try:
            made = TaskResult.from_json(entry)
            if made.head is not None and not _lies_in_outputs(made.head):
                raise InputError(f"head is {made.head!r}, out of its folder: run the sweep again.")
            results.append(made)
        except InputError as error:
            raise InputError(f"{file}, entry {index}: {error}") from error
    return results


def in_order(results: Sequence[TaskResult]) -> list[TaskResult]:
    """Return the results sorted by data set, shots and seed.

    The methods of a task keep the order in which they are given.
    """
    return sorted(results, key=lambda result: (result.dataset, result.shots, result.seed))


# `asdict` and these types are all that JSON needs to be read back without guessing.
_NUMBERS = "dict[str, float]"
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float, type(None)),
    "bool": (bool,),
    _NUMBERS: (Mapping,),
    "dict[str, TestResult]": (Mapping,),
}


def _fields(kind: type) -> dict[str, str]:
    """Return a dataclass's fields, each with its type as it is written."""
    return {name: str(text) for name, text in kind.__annotations__.items()}


def _read(fields: Mapping[str, str], entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is {entry!r}, not an object: run the sweep again.")
    if set(entry) != set(fields):
        missing = sorted(set(fields) - set(entry))
        unknown = sorted(set(entry) - set(fields))
        raise InputError(
            f"{where} lacks {missing} and has the unknown {unknown}: it was written by another "
            "version, so run the sweep again."
        )
    return {name: _value(text, entry[name], name, where) for name, text in fields.items()}


def _value(text: str, value: Any, name: str, where: str) -> Any:
    expected = _TYPES.get(text)
    if expected is None:
        return value
    fits: bool = isinstance(value, expected)
    if not fits or isinstance(value, bool) != (text == "bool"):
        kind = "mapping" if expected == (Mapping,) else text
        raise InputError(f"{name} of {where} is {value!r}, not a {kind}: run the sweep again.")
    if text == "float":
        return math.nan if value is None else float(value)
    if text == _NUMBERS:
        return {
            key: _value("float", item, key, f"{name} of {where}") for key, item in value.items()
        }
    return value


def _lies_in_outputs(path: str) -> bool:
    """Whether a relative path leads to what a summary's folder holds, or to a folder beside it.

    The summary of a suite names the heads of the sweeps beside it.
    """
    first, *rest = path.split("/")
    parts = rest if first == ".." and len(rest) > 1 else [first, *rest]
    return all(map(is_plain_name, parts))


def _check_methods(test: TestResult, method: str, where: str) -> None:
    """Refuse a test that is not of zero-shot and of the method, and of these alone."""
    expected = sorted({ZERO_SHOT, method})
    for name, values in asdict(test).items():
        if isinstance(values, dict) and sorted(values) != expected:
            raise InputError(
                f"{name} of {where} is of {sorted(values)}, not of {expected}: run the sweep again."
            )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
