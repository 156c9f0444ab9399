"""What MLflow's pages say of a sweep's runs and models, as Markdown."""

from __future__ import annotations

import shlex

from safe_ray.report.summary import ZERO_SHOT, TaskResult, TestResult
from safe_ray.specs import shots_text
from safe_ray.tracking import links

_BEST = "best"


def task_note(
    result: TaskResult,
    sweep: str,
    command: str,
    experiment_id: str,
    name: str | None,
    version: str | None,
) -> str:
    """Return the note of a task's run: its table, its winner, how to load it and how to go on.

    Args:
        result: the entry of the summary.
        sweep: its name.
        command: that ran it; empty if nobody knows.
        experiment_id: MLflow's.
        name: of the registered model; None if there is none.
        version: of it that this winner is.
    """
    parts = [*_table(result), "", _winner(result)]
    if name is not None and version is not None:
        page = links.registered_model(name, version)
        parts += ["", f"**Model**: [`{name}` version {version}]({page})", "", *loading(name)]
    if command:
        parts += ["", "**Go on** with the sweep, with more candidates perhaps:", ""]
        parts += ["```sh", _resumed(command, sweep), "```"]
    parts += ["", "**Compare**: " + ", ".join(_filters(result, sweep, experiment_id)) + "."]
    return "\n".join(parts)


def version_note(result: TaskResult, sweep: str, name: str) -> str:
    """Return the note of a registered version, and of the model that it is a version of."""
    chosen = f"{_winner(result)} Sweep `{sweep}`."
    return "\n".join([*_table(result), "", chosen, "", *loading(name)])


def loading(name: str) -> list[str]:
    """Return the lines that say how a registered model is loaded, used and served."""
    uri = f"models:/{name}@{_BEST}"
    return [
        "```python",
        "import mlflow, pandas, pathlib",
        f'model = mlflow.pyfunc.load_model("{uri}")',
        'images = [file.read_bytes() for file in pathlib.Path("photos").glob("*.jpg")]',
        'model.predict(pandas.DataFrame({"image": images}))',
        "```",
        "```sh",
        f"python -m safe_ray.predict {uri} photos/",
        f"mlflow models serve --env-manager local --model-uri {uri} --port 5001",
        "```",
    ]


def _table(result: TaskResult) -> list[str]:
    head = f"| test, {result.test.samples} images | zero-shot | {result.title} |"
    rows = [head, "|---|--:|--:|", *_rows(result.test, result.method)]
    for target, test in result.targets.items():
        both = (test.accuracy[ZERO_SHOT], test.accuracy[result.method])
        rows.append(f"| accuracy on `{target}` | {both[0]:.1%} | {both[1]:.1%} |")
    return rows


def _rows(test: TestResult, method: str) -> list[str]:
    columns = {
        "accuracy": test.accuracy,
        "mean per class": test.mean_per_class,
        "calibration error": test.ece,
    }
    return [
        f"| {name} | {values[ZERO_SHOT]:.1%} | {values[method]:.1%} |"
        for name, values in columns.items()
    ]


def _winner(result: TaskResult) -> str:
    chosen = ", ".join(f"`{name}` {value:.4g}" for name, value in result.best.items())
    validation = result.validation
    shown = "" if validation.gain_shown else ", which do not show that it beats zero-shot"
    return (
        f"Chosen on {result.protocol.validation_samples} validation samples "
        f"(accuracy {validation.accuracy:.1%}{shown}): {chosen or 'there was nothing to choose'}."
    )


def _filters(result: TaskResult, sweep: str, experiment_id: str) -> list[str]:
    dataset = f'tags.dataset = "{result.dataset}"'
    conditions = {
        "all results of this sweep": f'tags.sweep = "{sweep}" AND tags.`safe_ray.kind` = "task"',
        f"all results on {result.dataset}": f'{dataset} AND tags.`safe_ray.kind` = "task"',
        "the candidates of this task": f'tags.sweep = "{sweep}" AND {dataset} '
        f'AND tags.shots = "{shots_text(result.shots)}" AND tags.seed = "{result.seed}" '
        f'AND tags.method = "{result.method}" AND tags.`safe_ray.kind` = "candidate"',
    }
    return [
        f"[{words}]({links.experiment(experiment_id, condition)})"
        for words, condition in conditions.items()
    ]


def _resumed(command: str, sweep: str) -> str:
    named = any(part.startswith("sweep=") for part in shlex.split(command))
    return command if named else f"{command} sweep={shlex.quote(sweep)}"
