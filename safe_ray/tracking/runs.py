"""The runs of a sweep: the tags that they are found by, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from safe_ray.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KIND, SWEEP, TASK, CANDIDATE = (
    "safe_ray.kind",
    "safe_ray.sweep",
    "safe_ray.task",
    "safe_ray.candidate",
)
BEGUN = "safe_ray.begun"
FACTS, RUN, HEAD_DIGEST = "safe_ray.facts", "safe_ray.run", "safe_ray.head"
PARENT_RUN = "mlflow.parentRunId"

_RUNS_A_PAGE = 1000
_MOST_PAGES = 1000
_ENDED = {"FINISHED", "FAILED"}


@dataclass(slots=True)
class Known:
    """What is known of a run without asking again.

    Attributes:
        sent: key and step of the points that MLflow was given while the run went on.
    """

    run_id: str
    start_ms: int
    artifact_uri: str
    ended: bool
    params: frozenset[str]
    sent: set[tuple[str, int]] = field(default_factory=set)


def known_of(run: Run) -> Known:
    """Return what a run that MLflow returned says of itself."""
    return Known(
        run_id=run.info.run_id,
        start_ms=run.info.start_time,
        artifact_uri=run.info.artifact_uri,
        ended=run.info.status in _ENDED,
        params=frozenset(run.data.params),
    )


def without_params_of_ended(known: Known) -> Known:
    """Forget what an ended candidate is not asked for again: there are very many of them."""
    return replace(known, params=frozenset(), sent=set()) if known.ended else known


def find_runs(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> list[Run]:
    """Return the runs of an experiment that have all of the tags, the newest first."""
    runs: list[Run] = []
    token: str | None = None
    condition = " and ".join(f"tags.`{key}` = {quoted(value)}" for key, value in tags.items())
    for _ in pages():
        page = client.search_runs(
            [experiment_id], condition, max_results=_RUNS_A_PAGE, page_token=token
        )
        runs.extend(page)
        token = page.token
        if not token:
            break
    return runs


def pages() -> Iterator[int]:
    """Count the pages of an answer.

    Raises:
        InputError: they are more than those of any sweep.
    """
    yield from range(_MOST_PAGES)
    raise InputError(
        f"The MLflow server answers with more than {_MOST_PAGES} pages: use another server, or "
        "another experiment."
    )


def quoted(text: str) -> str:
    """Quote a value for MLflow's filter language, which has no escape for its own quote."""
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text:
        return f'"{text}"'
    raise InputError(f"The name {text!r} holds both kinds of quotes: leave one of them out.")
