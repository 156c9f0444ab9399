"""`summary.json`: a list with one entry a task, and the typed value behind an entry."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safe_ray.errors import InputError
from safe_ray.files import write_atomically
from safe_ray.specs import Metric

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class BestCandidate:
    """The winning candidate's hyper-parameters."""

    lr: float
    weight_decay: float
    epochs: int
    alpha: float


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
class Accuracies:
    """What is compared, by one metric, 0 to 1.

    Attributes:
        zero_shot: of the untouched model (alpha = 0).
        tuned_only: of the tuned pooling alone (alpha = 1).
        safe: of the blend at the chosen alpha.
    """

    zero_shot: float
    tuned_only: float
    safe: float


@dataclass(frozen=True)
class TestResult:
    """Accuracies, 0 to 1, on the whole test split.

    Attributes:
        zero_shot: of the untouched model (alpha = 0).
        tuned_only: of the tuned pooling alone (alpha = 1).
        safe: of the blend at the chosen alpha.
        samples: how many test images.
        mean_per_class: the same three by the mean over the classes of the accuracy in each, for
            classes with test images.
    """

    zero_shot: float
    tuned_only: float
    safe: float
    samples: int
    mean_per_class: Accuracies

    __test__ = False

    def by(self, metric: Metric) -> Accuracies:
        """Return the three by that metric."""
        if metric == "mean_per_class":
            return self.mean_per_class
        return Accuracies(self.zero_shot, self.tuned_only, self.safe)


@dataclass(frozen=True)
class Protocol:
    """How the task was posed, and by what its winner was chosen; never by a test sample.

    Attributes:
        selection: `coop` (a few validation samples a class), `cross` (folds of the support set) or
            `full` (the whole validation split).
        metric: what was asked for, `accuracy` or `mean_per_class`.
        choose_by: how the winner was chosen on them: `metric`, `nll` or `nll_prior` (see
            `safe_ray.heads.selection.Rule`).
        convention: of the sampling, a key of `safe_ray.data.episodes.CONVENTIONS`.
        prompts: `single`, `ensemble` or `descriptions`.
        support_samples: images that the head was tuned on.
        validation_samples: images that the validation accuracy is over.
        train_digest: of the support samples.
        validation_digest: of the drawn validation samples.
    """

    selection: str
    metric: str
    choose_by: str
    convention: str
    prompts: str
    support_samples: int
    validation_samples: int
    train_digest: str
    validation_digest: str


@dataclass(frozen=True)
class TaskResult:
    """One task's entry in `summary.json`.

    Attributes:
        targets: of the head on the test-only data sets that were asked for, by their names.
        head: folder of the winning head, with '/' and relative to the folder of `summary.json`, so
            that a sweep's folder can be moved.
        mlflow_run_id: the task's run, or None when nothing was tracked.
    """

    dataset: str
    shots: int
    seed: int
    episode_digest: str
    best: BestCandidate
    validation: ValidationResult
    test: TestResult
    targets: dict[str, TestResult]
    protocol: Protocol
    head: str
    mlflow_run_id: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values; what is not finite becomes null."""
        return _finite(asdict(self))

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> TaskResult:
        """Return the result that `to_json` wrote.

        Raises:
            InputError: a key is missing or unknown, or a value has the wrong type.
        """
        values = _read(cls, entry, "entry")
        return cls(
            **{
                **values,
                "best": BestCandidate(**_read(BestCandidate, values["best"], "best")),
                "validation": ValidationResult(
                    **_read(ValidationResult, values["validation"], "validation")
                ),
                "test": _read_test(values["test"], "test"),
                "targets": {
                    name: _read_test(value, f"target {name}")
                    for name, value in values["targets"].items()
                },
                "protocol": Protocol(**_read(Protocol, values["protocol"], "protocol")),
            }
        )


def write_summary(results: Sequence[TaskResult], folder: Path) -> Path:
    """Write `summary.json`, sorted by data set, shots and seed, and return its path."""
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
        entries = json.loads(file.read_bytes())
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
            results.append(TaskResult.from_json(entry))
        except InputError as error:
            raise InputError(f"{file}, entry {index}: {error}") from error
    return results


def in_order(results: Sequence[TaskResult]) -> list[TaskResult]:
    """Return the results sorted by data set, shots and seed."""
    return sorted(results, key=lambda result: (result.dataset, result.shots, result.seed))


# `asdict` and these types are all that JSON needs to be read back without guessing.
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float, type(None)),
    "bool": (bool,),
}


def _read_test(entry: Any, where: str) -> TestResult:
    values = _read(TestResult, entry, where)
    inner = _read(Accuracies, values["mean_per_class"], f"mean_per_class of {where}")
    return TestResult(**{**values, "mean_per_class": Accuracies(**inner)})


def _read(kind: type, entry: Any, where: str) -> dict[str, Any]:
    fields = {name: str(text) for name, text in kind.__annotations__.items()}
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is {entry!r}, not an object: run the sweep again.")
    if set(entry) != set(fields):
        missing = sorted(set(fields) - set(entry))
        unknown = sorted(set(entry) - set(fields))
        raise InputError(
            f"{where} lacks {missing} and has the unknown {unknown}: it was written by another "
            "version, so run the sweep again."
        )
    values: dict[str, Any] = dict(entry)
    for name, text in fields.items():
        expected = _TYPES.get(text)
        if expected is None:
            continue
        value: Any = values[name]
        if not isinstance(value, expected) or isinstance(value, bool) != (text == "bool"):
            raise InputError(f"{name} of {where} is {value!r}, not a {text}: run the sweep again.")
        if text == "float":
            values[name] = math.nan if value is None else float(values[name])
    return values


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
