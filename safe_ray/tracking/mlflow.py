"""A sweep in MLflow: a run a task, a child run a candidate head, in the project's experiment.

    experiment <project>
      run <task>                      kind task: the winner, the test report, artifact head/
        run <candidate>               kind candidate: hyper-parameters, curves, artifact head/
      model                           of the winner; see `safe_ray.tracking.models`
    experiment <project>-systems
      run "system"                    kind sweep: versions and devices, as parameters
    registered model <backbone, data set, shots>, a version a winner, with the alias `best`

The facts of the system stand on runs and not in the experiment's tags: MLflow shows a run's
parameters as a table that can be searched and compared between two machines, and an experiment's
tags as a row of chips cut off at the window's edge. Runs of tasks stay at the top level, so that
the run list is the list of tasks.

Whatever moment the driver is killed at, the same calls again leave the same runs. Three things
make that so: a run is created in one transaction together with the tags that it is found by; it is
marked as ended only after all else is written, so that a run which is still "running" is known to
be half-written and is completed; and every metric carries the time at which it was measured, as the
sweep's files have it, so that the database recognises a row that it already has.

Only `MlflowClient` is used: the fluent interface keeps a stack of active runs a thread and obeys
MLFLOW_RUN_ID, both of which would move results into somebody else's run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safe_ray.tracking.batches import Curve, log_batches, points_of
from safe_ray.tracking.connection import (
    alone_with_database,
    check_reachable,
    normalise_uri,
    prepare_environment,
    quiet_migration,
)
from safe_ray.tracking.experiments import (
    NOTE,
    open_experiment,
    systems_of,
    tags_of_results,
    tags_of_systems,
)
from safe_ray.tracking.heads import digest_of, mend_head, store_head
from safe_ray.tracking.inputs import DataInput, linked, log_inputs
from safe_ray.tracking.models import Candidate, log_model, register
from safe_ray.tracking.runs import (
    BEGUN,
    CANDIDATE,
    FACTS,
    KIND,
    PARENT_RUN,
    SWEEP,
    TASK,
    Known,
    find_runs,
    known_of,
    without_params_of_ended,
)
from safe_ray.tracking.telling import telling
from safe_ray.tracking.times import UNKNOWN, Load, Span

if TYPE_CHECKING:
    from mlflow import MlflowClient

Heads = Literal["all", "best", "none"]


class Tracker:
    """Writes one sweep to MLflow, from one thread at a time.

    Args:
        uri: any tracking URI; a relative SQLite path starts at the working directory.
        experiment: name of the experiment, which sweeps may share.
        sweep: name of the sweep; runs are found again by it.
        heads: which heads are stored as artifacts. `all`: of every candidate and the winner;
            `best`: of the winner; `none`: of nobody, and no model is registered either.
        begun: tells the sweep from an earlier one of its name, whose runs are left alone.
        artifact_root: folder or URI for a new experiment's artifacts. None: `mlartifacts/` beside a
            SQLite database, otherwise what the server chooses.
        source: tags of every run: who ran the sweep, and how (see `safe_ray.tracking.source`).

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
        source: Mapping[str, str] | None = None,
    ) -> None:
        self.uri = normalise_uri(uri)
        self.experiment = experiment
        self.sweep = sweep
        self.heads = heads
        self.artifact_root = artifact_root
        self.begun = begun
        self.source = dict(source or {})
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
            import mlflow.store.tracking.sqlalchemy_store
        import mlflow.pyfunc  # noqa: F401

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
                client, self.experiment, self.uri, self.artifact_root, tags_of_results()
            )
            runs = find_runs(client, self.experiment_id, {**self._own, KIND: "task"})
            # MLflow lists the newest first: where a duplicate was made by hand, the oldest counts.
            self._tasks = {run.data.tags[TASK]: known_of(run) for run in runs}
        self._client = client

    def log_system(self, facts: Mapping[str, str], load: Load | None = None) -> str:
        """Record versions and devices, once: the same facts again find the run that holds them.

        Other facts, after an upgrade or on another machine, get a run of their own.

        Args:
            facts: by their names.
            load: of the driver's machine, so far.

        Returns:
            The id of the run.
        """
        client = self._opened()
        with self._telling("record the system's versions"):
            known = self._system_run(client, facts)
            points = [] if load is None else points_of({}, load.curves, 0, times=load.times)
            if points or not known.ended:
                log_batches(client, known, facts, points)
            if not known.ended:
                client.set_terminated(known.run_id, "FINISHED")
        return known.run_id

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
        # It is opened late: a sweep without results needs none.
        experiment_id = open_experiment(
            client,
            systems_of(self.experiment),
            self.uri,
            self.artifact_root,
            tags_of_systems(self.experiment),
        )
        wanted = {SWEEP: self.sweep, KIND: "sweep", FACTS: digest}
        found = find_runs(client, experiment_id, wanted)
        if found:
            return known_of(found[-1])
        return self._create(self.sweep, wanted, experiment_id=experiment_id)

    def start_task(
        self,
        task_id: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        inputs: Sequence[DataInput] = (),
        span: Span = UNKNOWN,
    ) -> str:
        """Return the id of the task's run, which is created unless the sweep has it already.

        Args:
            task_id: unique within the sweep.
            name: what the run is called in the UI.
            tags: data set, shots, seed, backbone, ...
            params: how the task was posed.
            inputs: its data sets.
            span: when its first bank began, if that is known.
        """
        client = self._opened()
        with self._telling(f"start the run of {task_id}"):
            known = self._tasks.get(task_id)
            if known is None:
                own = {**self._own, KIND: "task", TASK: task_id}
                known = self._create(name, {**tags, **own}, span)
                self._tasks[task_id] = known
                self._candidates[task_id] = {}
            log_batches(client, known, params, [])
            if not known.ended:
                log_inputs(client, known.run_id, inputs)
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
        span: Span = UNKNOWN,
        times: Mapping[str, Sequence[int]] | None = None,
        running: bool = False,
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
            span: when its bank began and ended.
            times: when the points of a curve were known, by the name of the curve.
            running: it is still being trained; what is known so far is written.
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
                known = self._create(name, {**tags, **own}, span)
                children[candidate_id] = known
            points = points_of(metrics, curves, span.ended or known.start_ms, times=times)
            fresh = [each for each in points if (each.key, each.step) not in known.sent]
            log_batches(client, known, params, fresh)
            if running:
                known.sent |= {(each.key, each.step) for each in fresh}
                return known.run_id
            if head is not None and self.heads == "all":
                store_head(client, known, head)
            client.set_terminated(
                known.run_id, "FAILED" if failed else "FINISHED", end_time=span.ended
            )
            known.ended = True
            children[candidate_id] = without_params_of_ended(known)
        return known.run_id

    def abandon_candidate(self, task_id: str, candidate_id: str) -> None:
        """End the run of a candidate whose bank was given up; a later sweep may complete it."""
        client = self._opened()
        with self._telling(f"end the candidate {candidate_id} of {task_id}"):
            known = self._children(client, task_id).get(candidate_id)
            if known is not None and not known.ended:
                client.set_terminated(known.run_id, "KILLED")

    def finish_task(
        self,
        task_id: str,
        metrics: Mapping[str, float],
        params: Mapping[str, Any],
        head: Path | None,
        winner: Candidate | None,
        step: int = 0,
        span: Span = UNKNOWN,
        inputs: Sequence[DataInput] = (),
        note: Callable[[str, str | None], str] | None = None,
    ) -> str:
        """Record a task's result, register the winner's head, and return the id of the task's run.

        The metrics have a step, the number of candidates that the winner was chosen from, because
        a sweep can be given more: MLflow then shows the latest, and keeps those before it. Those
        that begin with the name of a data set's use are linked with it, and with the model.

        The head is the artifact `head/` of the task's run. A version of the registered model
        carries the head's digest: the same head of the same run again is the same version.

        Args:
            task_id: a task that `start_task` was called for.
            metrics: one number each.
            params: more parameters.
            head: the folder of the winner's head; None if there is nothing to store.
            winner: what is registered, if anything.
            step: see above.
            span: when its last bank ended.
            inputs: its data sets.
            note: makes what MLflow's page of the run says, of the experiment's id and the version
                that was registered.
        """
        client = self._opened()
        known = self._task(task_id)
        kept = head is not None and self.heads != "none"
        with self._telling(f"record the result of {task_id}"):
            model_id = None
            if kept and winner is not None:
                model_id = log_model(client, self.experiment_id, known, winner)
            points = points_of(metrics, {}, span.ended or known.start_ms, step)
            log_inputs(client, known.run_id, inputs)
            log_batches(client, known, params, linked(points, inputs, model_id))
            version = None
            if kept and winner is not None:
                version = register(client, known, winner, model_id)
            elif kept and head is not None:
                store_head(client, known, head)
            if note is not None:
                client.set_tag(known.run_id, NOTE, note(self.experiment_id, version))
            client.set_terminated(known.run_id, "FINISHED", end_time=span.ended)
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

    def _create(
        self,
        name: str,
        tags: Mapping[str, str],
        span: Span = UNKNOWN,
        experiment_id: str | None = None,
    ) -> Known:
        run = self._opened().create_run(
            experiment_id or self.experiment_id,
            start_time=span.began,
            tags={key: str(value) for key, value in {**self.source, **tags}.items()},
            run_name=name,
        )
        return known_of(run)

    def _telling(self, what: str) -> AbstractContextManager[None]:
        return telling(self.uri, what)
