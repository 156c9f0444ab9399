"""A sweep in MLflow: one experiment, a run a task, a child run a candidate head.

    experiment
      run "system"                    kind sweep: versions and devices, as parameters
      run <task>                      kind task: the winner, the test report, artifact head/
        run <candidate>               kind candidate: hyper-parameters, curves, artifact head/
    registered model <sweep>-<task>   one version, the winner's head, with the alias `best`

The facts of the system stand on a run of their own and not in the experiment's tags: MLflow shows
a run's parameters as a table that can be searched and compared between two machines, and an
experiment's tags as a row of chips cut off at the window's edge. Runs of tasks stay at the top
level, so that the run list is the list of tasks.

Whatever moment the driver is killed at, the same calls again leave the same runs. Three things
make that so: a run is created in one transaction together with the tags that it is found by; it is
marked as ended only after all else is written, so that a run which is still "running" is known to
be half-written and is completed; and every metric of a run carries the time at which the run
began, so that the database recognises a row that it already has.

Only `MlflowClient` is used: the fluent interface keeps a stack of active runs a thread and obeys
MLFLOW_RUN_ID, both of which would move results into somebody else's run.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safe_ray.errors import InputError
from safe_ray.tracking.batches import Curve, log_batches, points_of
from safe_ray.tracking.connection import (
    AwayError,
    alone_with_database,
    check_reachable,
    displayed,
    failures,
    first_line,
    normalise_uri,
    prepare_environment,
    quiet_migration,
    without_password,
)
from safe_ray.tracking.experiments import open_experiment
from safe_ray.tracking.heads import HEAD_FOLDER, digest_of, folder_digest, mend_head, store_head
from safe_ray.tracking.runs import (
    BEGUN,
    CANDIDATE,
    FACTS,
    HEAD_DIGEST,
    KIND,
    PARENT_RUN,
    RUN,
    SWEEP,
    TASK,
    Known,
    find_runs,
    known_of,
    pages,
    quoted,
    without_params_of_ended,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

Heads = Literal["all", "best", "none"]

_VERSIONS_A_PAGE = 100
_REFUSALS = (400, 404, 409, 422)
"""The statuses that say that a request will never do; with any other it may do later."""


def model_name(sweep: str, task_id: str) -> str:
    """Return the name of a task's registered model, without what a `models:/` URI cannot hold."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"safe_ray-{sweep}-{task_id}").strip("-")


class Tracker:
    """Writes one sweep to MLflow, from one thread at a time.

    Args:
        uri: any tracking URI; a relative SQLite path starts at the working directory.
        experiment: name of the experiment, one a sweep.
        sweep: name of the sweep; runs are found again by it.
        heads: which heads are stored as artifacts. `all`: of every candidate and the winner;
            `best`: of the winner; `none`: of nobody, and no model is registered either.
        begun: tells the sweep from an earlier one of its name, whose runs are left alone.
        artifact_root: folder or URI for a new experiment's artifacts. None: `mlartifacts/` beside a
            SQLite database, otherwise what the server chooses.

    Attributes:
        uri: the tracking URI with an absolute path, as `mlflow ui --backend-store-uri` takes it.
        experiment_id: MLflow's, after `open`.

    Raises:
        InputError: the URI is one that MLflow cannot write (see `connection.normalise_uri`); and
            from every method, MLflow stopped answering or refused something.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        sweep: str,
        heads: Heads = "all",
        artifact_root: str | None = None,
        begun: str = "",
    ) -> None:
        self.uri = normalise_uri(uri)
        self.experiment = experiment
        self.sweep = sweep
        self.heads = heads
        self.artifact_root = artifact_root
        self.begun = begun
        self.experiment_id = ""
        self._client: MlflowClient | None = None
        self._tasks: dict[str, Known] = {}
        self._candidates: dict[str, dict[str, Known]] = {}

    def prepare(self) -> None:
        """Import what `open` needs, so that no other thread is in the middle of that later."""
        prepare_environment()
        import mlflow.store.tracking.rest_store
        import mlflow.utils.credentials
        import mlflow.utils.rest_utils
        import sqlalchemy  # noqa: F401

        if not self.uri.startswith("http"):
            import mlflow.store.model_registry.sqlalchemy_store
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    def open(self, say: Callable[[str], None] | None = None) -> None:
        """Reach the server or database, create the experiment, find the runs there are.

        Takes some seconds for a new SQLite database, whose tables it creates. Calling it again
        does nothing.

        Args:
            say: is told if a server is waited for.

        Raises:
            AwayError: nobody answers at the URI in time, or this client is refused.
            InputError: the database cannot be written, its schema is another version's, or the
                experiment was deleted.
        """
        if self._client is not None:
            return
        prepare_environment()
        check_reachable(self.uri, say=say)
        with (
            self._telling("open the experiment"),
            quiet_migration(),
            alone_with_database(self.uri),
        ):
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            self.experiment_id = open_experiment(
                client, self.experiment, self.uri, self.artifact_root
            )
            runs = find_runs(client, self.experiment_id, {**self._own, KIND: "task"})
            # MLflow lists the newest first: where a duplicate was made by hand, the oldest counts.
            self._tasks = {run.data.tags[TASK]: known_of(run) for run in runs}
        self._client = client

    def log_system(self, facts: Mapping[str, str]) -> None:
        """Record versions and devices, once: the same facts again find the run that holds them.

        Other facts, after an upgrade or on another machine, get a run of their own.
        """
        client = self._opened()
        with self._telling("record the system's versions"):
            known = self._system_run(client, facts)
            if not known.ended:
                log_batches(client, known, facts, [])
                client.set_terminated(known.run_id, "FINISHED")

    def log_page(self, facts: Mapping[str, str], file: Path) -> None:
        """Store a file, such as the report as a page, with the run that holds these facts.

        A file of the same name takes the place of an earlier one.
        """
        client = self._opened()
        with self._telling("store the report"):
            if file.is_file():
                client.log_artifact(self._system_run(client, facts).run_id, str(file))

    def _system_run(self, client: MlflowClient, facts: Mapping[str, str]) -> Known:
        digest = digest_of(json.dumps(dict(facts), sort_keys=True).encode())
        wanted = {SWEEP: self.sweep, KIND: "sweep", FACTS: digest}
        found = find_runs(client, self.experiment_id, wanted)
        return known_of(found[-1]) if found else self._create("system", wanted)

    def start_task(
        self,
        task_id: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> str:
        """Return the id of the task's run, which is created unless the sweep has it already."""
        client = self._opened()
        with self._telling(f"start the run of {task_id}"):
            known = self._tasks.get(task_id)
            if known is None:
                own = {**self._own, KIND: "task", TASK: task_id}
                known = self._create(name, {**tags, **own})
                self._tasks[task_id] = known
                self._candidates[task_id] = {}
            log_batches(client, known, params, [])
        return known.run_id

    def log_candidate(
        self,
        task_id: str,
        candidate_id: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        curves: Mapping[str, Curve],
        head: Path | None,
        failed: bool = False,
    ) -> str:
        """Record one candidate head as a child run of its task, and return the run's id.

        Args:
            task_id: a task that `start_task` was called for.
            candidate_id: unique within the task, the same whenever the sweep goes on.
            name: what the run is called in the UI.
            tags: data set, shots, seed, backbone, ...
            params: hyper-parameters.
            metrics: one number each.
            curves: numbers over steps; a sequence has the steps 0, 1, ..., a mapping names them.
                The names must differ from those of `metrics`. NaN is kept as NaN.
            head: the folder that is stored as artifact `head/` when all heads are, or None.
            failed: the candidate diverged; its run ends as FAILED.
        """
        client = self._opened()
        task = self._task(task_id)
        with self._telling(f"record the candidate {candidate_id} of {task_id}"):
            children = self._children(client, task_id)
            known = children.get(candidate_id)
            if known is not None and known.ended:
                if head is not None and self.heads == "all":
                    mend_head(known, head)
                return known.run_id
            if known is None:
                own = {
                    **self._own,
                    KIND: "candidate",
                    TASK: task_id,
                    CANDIDATE: candidate_id,
                    PARENT_RUN: task.run_id,
                }
                known = self._create(name, {**tags, **own})
                children[candidate_id] = known
            log_batches(client, known, params, points_of(metrics, curves, known.start_ms))
            if head is not None and self.heads == "all":
                store_head(client, known, head)
            client.set_terminated(known.run_id, "FAILED" if failed else "FINISHED")
            known.ended = True
            children[candidate_id] = without_params_of_ended(known)
        return known.run_id

    def finish_task(
        self,
        task_id: str,
        metrics: Mapping[str, float],
        params: Mapping[str, Any],
        head: Path | None,
        model_name: str | None,
        alias: str = "best",
        step: int = 0,
    ) -> str:
        """Record a task's result, register the winner's head, and return the id of the task's run.

        The metrics have a step, the number of candidates that the winner was chosen from, because
        a sweep can be given more: MLflow then shows the latest, and keeps those before it.

        The registered model's version is the artifact `head/` of the task's run, and carries the
        head's digest: the same head again is the same version. It has no MLmodel file: downloading
        a version needs none, and no flavour of MLflow could run a head without its backbone.
        Without a `model_name` the head is stored and nothing is registered; without a head there is
        nothing to store.
        """
        client = self._opened()
        known = self._task(task_id)
        with self._telling(f"record the result of {task_id}"):
            log_batches(client, known, params, points_of(metrics, {}, known.start_ms, step))
            if head is None or self.heads == "none":
                pass
            elif model_name is not None:
                self._register(client, known, head, model_name, alias)
            else:
                store_head(client, known, head)
            client.set_terminated(known.run_id, "FINISHED")
            known.ended = True
        return known.run_id

    def run_id(self, task_id: str) -> str:
        """Return the id of a task's run."""
        return self._task(task_id).run_id

    def known_runs(self) -> dict[str, str]:
        """Return the ids of the runs of tasks that are known to be there; any thread may ask."""
        return {task_id: known.run_id for task_id, known in list(self._tasks.items())}

    def close(self) -> None:
        """Forget the connection; `open` makes another."""
        self._client = None
        self._tasks.clear()
        self._candidates.clear()

    @property
    def _own(self) -> dict[str, str]:
        """The tags that tell this sweep's runs from all others."""
        return {SWEEP: self.sweep, **({BEGUN: self.begun} if self.begun else {})}

    def _opened(self) -> MlflowClient:
        if self._client is None:
            raise RuntimeError("Tracker.open() has not been called")
        return self._client

    def _task(self, task_id: str) -> Known:
        if task_id not in self._tasks:
            raise ValueError(f"start_task({task_id!r}, ...) has not been called")
        return self._tasks[task_id]

    def _children(self, client: MlflowClient, task_id: str) -> dict[str, Known]:
        if task_id not in self._candidates:
            tags = {KIND: "candidate", PARENT_RUN: self._task(task_id).run_id}
            runs = find_runs(client, self.experiment_id, tags)
            self._candidates[task_id] = {
                run.data.tags[CANDIDATE]: without_params_of_ended(known_of(run)) for run in runs
            }
        return self._candidates[task_id]

    def _create(self, name: str, tags: Mapping[str, str]) -> Known:
        run = self._opened().create_run(
            self.experiment_id,
            tags={key: str(value) for key, value in tags.items()},
            run_name=name,
        )
        return known_of(run)

    def _register(
        self, client: MlflowClient, known: Known, head: Path, name: str, alias: str
    ) -> None:
        digest = folder_digest(head)
        same: str | None = None
        for version in self._versions(client, name, known.run_id):
            if version.tags.get(HEAD_DIGEST) == digest:
                same = version.version
            else:
                # Its artifact is about to be replaced: it would name a head that is no more.
                client.delete_model_version(name, version.version)
        if same is None:
            store_head(client, known, head)
            same = client.create_model_version(
                name,
                source=f"runs:/{known.run_id}/{HEAD_FOLDER}",
                run_id=known.run_id,
                tags={SWEEP: self.sweep, RUN: known.run_id, HEAD_DIGEST: digest},
                await_creation_for=0,
            ).version
        else:
            mend_head(known, head)
        client.set_registered_model_alias(name, alias, str(same))

    def _versions(self, client: MlflowClient, name: str, run_id: str) -> list[Any]:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name, tags={SWEEP: self.sweep})
            return []
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions: list[Any] = []
        token: str | None = None
        for _ in pages():
            page = client.search_model_versions(
                f"name = {quoted(name)}", max_results=_VERSIONS_A_PAGE, page_token=token
            )
            versions.extend(version for version in page if version.tags.get(RUN) == run_id)
            token = page.token
            if not token:
                break
        return versions

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Turn whatever MLflow, its server or its disk does wrong into one sentence."""
        try:
            yield
        except failures() as error:
            kind = InputError if _is_refusal(error) else AwayError
            raise kind(
                f"MLflow at {displayed(self.uri)} could not {what} "
                f"({without_password(first_line(error), self.uri)}): see to it that it answers, "
                "and that this user may write there."
            ) from error


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow itself answered, and said that it will not take a request as it is."""
    from mlflow.exceptions import MlflowException, RestException

    if not isinstance(error, MlflowException):
        return False
    answered = isinstance(error, RestException) or error.__cause__ is None
    # What stands between may answer with pages of its own, while MLflow is away.
    words = str(error).startswith("API request to endpoint")
    return answered and not words and error.get_http_status_code() in _REFUSALS
