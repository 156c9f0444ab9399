"""One injection: a sweep, the harm that is done to it, and whether anything was lost by it."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_ray.config.sweep import EXPERIMENT
from tests.faults.world import (
    CANDIDATES,
    PROJECT,
    SECONDS,
    TASKS,
    Ahead,
    Ended,
    Sweep,
    World,
    finished_banks,
    summary_of,
)
from tests.mlflow_servers import Door

if TYPE_CHECKING:
    from tests.faults.nodes import Cluster

# What a command that has no result says last: a sentence and nothing else.
_SENTENCE = re.compile(r"^(safe_ray: .{20,}|Interrupted; .{20,})$")
_ATTEMPTS = 4


class Impossible(Exception):
    """What a fault needs cannot be made on this machine; the message says what."""


@dataclass
class Lab:
    """The sweep that an injection is done to.

    Attributes:
        world: what all injections share.
        folder: an empty one of its own.
        random: decides everything that a seed decides.
        overrides: of the sweep's configuration.
        environment: variables of the driver.
        store: the folder of feature stores, where it is not the storage's own.
        conf: the configuration tree, where it is not the world's own.
        roots: processes whose descendants are Ray's, where the driver has not started it.
        door: what stands between the sweep and MLflow's server, if there is one.
        cluster: that the sweep joins, if it starts none.
        prefix: makes of a command the words that run it where the driver belongs.
        cut_off_seconds: how long a node is cut off.
        tracking: MLflow's URI without anything in between, where it is not the storage's database.
        mend: what to do before the command is given again, such as freeing a disk.
        after: further checks, once the sweep has come to its end.
        always: what to do at the end, however it comes.
        checks_summary: whether the summary is that of the undisturbed sweep.
        may_end: words of a sentence with which the sweep may end for good.
        said: what the commands have said so far, joined.
        statuses: how they ended.
    """

    world: World
    folder: Path
    random: random.Random
    overrides: list[str] = field(default_factory=lambda: ["cluster.num_cpus=2"])
    environment: dict[str, str] = field(default_factory=dict)
    store: Path | None = None
    conf: Path | None = None
    roots: list[int] = field(default_factory=list)
    tracking: str | None = None
    door: Door | None = None
    cluster: Cluster | None = None
    prefix: Callable[[list[str]], list[str]] = list
    cut_off_seconds: float = 60.0
    mend: list[Callable[[], None]] = field(default_factory=list)
    after: list[Callable[[], None]] = field(default_factory=list)
    always: list[Callable[[], None]] = field(default_factory=list)
    said: str = ""
    statuses: list[int] = field(default_factory=list)
    checks_summary: bool = True
    may_end: str = ""
    _running: Sweep | None = None
    _kept: dict[Path, int] = field(default_factory=dict)

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def sweep_folder(self) -> Path:
        return self.storage / "outputs" / "trial"

    def command(self, *overrides: str) -> list[str]:
        own = [f"tracking.uri={self.uri}", *self.overrides]
        own += [f"features.store={self.store}"] if self.store else []
        return self.prefix(self.world.command(self.storage, [*own, *overrides], self.conf))

    @property
    def uri(self) -> str:
        """Where the sweep writes its runs."""
        return self.door.uri if self.door else f"sqlite:///{self.storage}/mlflow.db"

    def running(self) -> Sweep:
        """Return the sweep, started again if it has ended."""
        if self._running is not None and self._running.is_running:
            return self._running
        if self._running is not None:
            self._look_at(self._running.end())
            self._mend()
        if not (self.storage / "mlflow.db").exists():
            self.world.copy_database(self.storage)
        self._running = self.world.start(self.command(), self.storage, self.environment, self.store)
        return self._running

    def reach(self, moment: str) -> Sweep:
        """Return the running sweep when it has come to a moment.

        A command that a fault ended is given again, once it is mended.
        """
        for _ in range(_ATTEMPTS):
            sweep = self.running()
            try:
                sweep.wait_for(moment)
            except Ahead:
                ended = sweep.end()
                if ended.status == 0:
                    raise
                continue
            return sweep
        raise AssertionError(f"the sweep does not come to {moment!r}: {self.said[-3000:]}")

    def finish(self) -> None:
        """Bring the sweep to its end, and see that it is as if nothing had happened.

        Raises:
            AssertionError: something is lost, or was not said in a sentence.
        """
        for _ in range(_ATTEMPTS):
            ended = (self._running or self.running()).end()
            self._look_at(ended)
            self._running = None
            self._mend()
            if ended.status == 0 and (self._is_recorded() or self._record()):
                break
            if ended.status == 1 and self.may_end and self.may_end in ended.said:
                break
        else:
            raise AssertionError(f"the sweep does not come to an end: {self.said[-4000:]}")
        if self.checks_summary:
            assert summary_of(self.sweep_folder) == self.world.summary, "another summary"
        for check in self.after:
            check()

    def _mend(self) -> None:
        while self.mend:
            self.mend.pop()()

    def _look_at(self, ended: Ended) -> None:
        """See that a command ended well or with a sentence, and that what was finished is there."""
        self.said += ended.said
        self.statuses.append(ended.status)
        assert "Traceback" not in ended.said, ended.said[-4000:]
        assert "Traceback" not in ended.printed, ended.printed[-4000:]
        if ended.status > 0:
            last = ended.said.strip().rpartition("\n")[2]
            assert _SENTENCE.match(last), f"no sentence, but: {ended.said[-2000:]}"
        now = finished_banks(self.sweep_folder)
        assert self._kept.items() <= now.items(), "finished banks are lost, or were trained again"
        self._kept = now

    def _record(self) -> bool:
        """Bring MLflow what it has missed, by the command for it or by the sweep's own."""
        if self.random.random() < 0.5:
            return False
        words = [sys.executable, "-m", "safe_ray.track", str(self.sweep_folder)]
        done = subprocess.run(
            [*words, f"tracking.uri={self.uri}"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            cwd=PROJECT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return self._is_recorded()

    def _is_recorded(self) -> bool:
        """Return whether MLflow has every task and every candidate once."""
        counts = self.recorded()
        wanted = {"task": len(TASKS), "candidate": len(TASKS) * CANDIDATES}
        return counts == wanted

    def recorded(self) -> Mapping[str, int]:
        """Return how many finished runs of each kind MLflow has.

        Raises:
            AssertionError: a task or a candidate has two runs.
        """
        from mlflow import MlflowClient

        client = MlflowClient(self.tracking or self.uri)
        experiment = client.get_experiment_by_name(self.experiment)
        counts: dict[str, int] = {}
        if experiment is None:
            return counts
        runs: list[Any] = list(client.search_runs([experiment.experiment_id], max_results=1000))
        parent = "mlflow.parentRunId"
        runs = [run for run in runs if run.data.tags["safe_ray.kind"] in ("task", "candidate")]
        names = [(run.data.tags.get(parent), run.info.run_name) for run in runs]
        assert len(set(names)) == len(names), f"a run was made twice: {sorted(names)}"
        for run in runs:
            if run.info.status == "FINISHED":
                kind = run.data.tags["safe_ray.kind"]
                counts[kind] = counts.get(kind, 0) + 1
        return counts

    @property
    def experiment(self) -> str:
        named = [o for o in self.overrides if o.startswith("tracking.experiment=")]
        return named[-1].partition("=")[2] if named else EXPERIMENT

    def abandon(self) -> None:
        """End what is still running."""
        for each in self.always:
            each()
        if self._running is not None and self._running.is_running:
            self._running.process.kill()
            self._running.process.wait(30)


def nothing(lab: Lab) -> AbstractContextManager[None]:
    """Prepare nothing."""
    return nullcontext()


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: what the table calls it.
        promise: what the program does about it, in a sentence.
        harm: does it to a sweep that runs, or makes sure of what the scene has done.
        scene: what must be there before the sweep starts, and is taken away at the end.
        elsewhere: another test of the same promise, as `file::function`, where this one is long.
    """

    name: str
    promise: str
    harm: Callable[[Lab], None]
    scene: Callable[[Lab], AbstractContextManager[None]] = nothing
    elsewhere: str = ""

    @property
    def where(self) -> str:
        """Where the injection is, and where else the promise is tested."""
        module = self.harm.__module__.replace(".", "/")
        also = f", `{self.elsewhere.partition('::')[0]}`" if self.elsewhere else ""
        return f"`{module}.py`{also}"


def inject(lab: Lab, *kinds: Kind) -> None:
    """Do some kinds of fault to one sweep, one after the other, and bring it to its end.

    Raises:
        AssertionError: something is lost.
        Impossible: a kind cannot be made here.
    """
    assert lab.world.summary
    with ExitStack() as scenes:
        scenes.callback(lab.abandon)
        for kind in kinds:
            scenes.enter_context(kind.scene(lab))
        for kind in kinds:
            kind.harm(lab)
        lab.finish()
