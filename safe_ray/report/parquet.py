"""`results.parquet`: one row a task and method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safe_ray.files import replacing
from safe_ray.report.summary import ZERO_SHOT, TaskResult, in_order

PARQUET_FILE = "results.parquet"

_BEFORE_BEST = {
    "dataset": "string",
    "shots": "int32",
    "seed": "int64",
    "method": "string",
    "title": "string",
    "backbone": "string",
    "episode_digest": "string",
    "test_accuracy": "float64",
    "test_macro_accuracy": "float64",
    "test_ece": "float64",
    "test_zero_shot": "float64",
    "test_macro_zero_shot": "float64",
    "test_ece_zero_shot": "float64",
    "test_samples": "int32",
}
_AFTER_BEST = {
    "validation_accuracy": "float64",
    "validation_mean_per_class": "float64",
    "validation_nll": "float64",
    "validation_gained": "int32",
    "validation_lost": "int32",
    "validation_gain_shown": "bool",
    "targets": "string",
    "protocol_selection": "string",
    "protocol_metric": "string",
    "protocol_choose_by": "string",
    "protocol_convention": "string",
    "protocol_prompts": "string",
    "protocol_refit": "bool",
    "protocol_cautious": "bool",
    "protocol_support_samples": "int32",
    "protocol_validation_samples": "int32",
    "protocol_train_digest": "string",
    "protocol_validation_digest": "string",
    "head": "string",
    "mlflow_run_id": "string",
}


def flat(result: TaskResult) -> dict[str, Any]:
    """Return a result as one row: `best.lr` as `best_lr` and so on, what is not finite as None.

    The shots of a task with all training images are 2147483647, which no class has.
    Accuracies are fractions, and macro accuracy is that of `mean_per_class`. The targets are one
    JSON object, as in `summary.json`.
    """
    entry, test, method = result.to_json(), result.test, result.method
    return {
        **{name: entry[name] for name in _BEFORE_BEST if name in entry and name != "test_ece"},
        "shots": result.shots,
        "test_accuracy": entry["test"][method],
        "test_macro_accuracy": entry["test_mean_per_class"][method],
        "test_ece": entry["test_ece"][method],
        "test_zero_shot": entry["test"][ZERO_SHOT],
        "test_macro_zero_shot": entry["test_mean_per_class"][ZERO_SHOT],
        "test_ece_zero_shot": entry["test_ece"][ZERO_SHOT],
        "test_samples": test.samples,
        **{f"best_{name}": value for name, value in entry["best"].items()},
        **{f"validation_{name}": value for name, value in entry["validation"].items()},
        "targets": json.dumps(entry["targets"]),
        **{f"protocol_{name}": value for name, value in asdict(result.protocol).items()},
        "head": result.head,
        "mlflow_run_id": result.mlflow_run_id,
    }


def write_parquet(results: Sequence[TaskResult], file: Path) -> None:
    """Write a row a task and method.

    There is a column `best_<name>` for every value that any winner has; other methods have null.

    Raises:
        InputError: the folder cannot be written to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(f"best_{name}" for result in results for name in result.best)
    types = {**_BEFORE_BEST, **dict.fromkeys(names, "float64"), **_AFTER_BEST}
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in types.items()])
    table = pa.Table.from_pylist([flat(result) for result in in_order(results)], schema=schema)
    with replacing(file) as temporary:
        pq.write_table(table, temporary)
