"""A tiny backbone and data set, and the sweep that every fault is done to."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.conftest import write_backbone, write_config_dir, write_dataset, write_weights
from tests.mlflow_servers import migrated_database, running_server

PROJECT = Path(__file__).parents[2]
TASKS = ("shapes-2shot-seed1", "shapes-2shot-seed2")
CANDIDATES, BANK = 4, 2
BANKS = len(TASKS) * CANDIDATES // BANK
# Parts of a few maps and a checkpoint after every epoch, so that there is much to tear.
SETTINGS = (
    "backbone=tiny",
    "tasks.datasets=[shapes]",
    "tasks.shots=[2]",
    "tasks.seeds=[1,2]",
    "features.views=1",
    "features.batch_size=8",
    "features.rows_per_file=8",
    f"search.candidates={CANDIDATES}",
    f"search.bank={BANK}",
    "search.epochs={low: 40, high: 80}",
    "training.batch_size=8",
    "training.checkpoint_seconds=0",
)
# One sweep alone takes half a minute on two cores that are idle.
SECONDS = 600.0


@dataclass(frozen=True)
class Ended:
    """How a command has ended.

    Attributes:
        status: its exit status, negative if a signal ended it.
        said: standard error.
        printed: standard output.
    """

    status: int
    said: str
    printed: str


class Ahead(Exception):
    """The sweep has ended before the moment that was waited for."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that runs as a process of its own.

    Attributes:
        process: the driver.
        folder: of the sweep.
        store: the folder of the feature stores.
        logs: standard output and standard error.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    store: Path
    logs: tuple[Path, Path]

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return self.logs[1].read_text(errors="replace")

    def wait_for(self, moment: str, seconds: float = SECONDS) -> None:
        """Return when the sweep has come to a moment of `MOMENTS`.

        Raises:
            Ahead: it has ended without it.
        """
        deadline = time.monotonic() + seconds
        # What an earlier command has left is no moment of this one, before it has said a word.
        while not (self.said() and reached(self.folder, self.store, moment)):
            if not self.is_running:
                raise Ahead(f"the sweep ended before {moment!r}: {self.said()[-2000:]}")
            assert time.monotonic() < deadline, f"{moment!r} does not come: {self.said()[-2000:]}"
            time.sleep(0.02)

    def end(self, seconds: float = SECONDS) -> Ended:
        """Wait for the end."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.said()[-3000:]}") from None
        printed, said = (log.read_text(errors="replace") for log in self.logs)
        return Ended(status, said, printed)


MOMENTS = (
    "admitted",
    "named",
    "one part",
    "two parts",
    "all parts",
    "task written",
    "bank begun",
    "checkpoint",
    "one bank",
    "two banks",
    "three banks",
    "searched",
    "one test part",
    "summary",
)
"""What a sweep comes to, in this order, as its files show it."""

_ROWS_OF_SUPPORT, _ROWS_PER_PART = 51, 8
_SUPPORT_PARTS = -(-_ROWS_OF_SUPPORT // _ROWS_PER_PART)


def reached(folder: Path, store: Path, moment: str) -> bool:
    """Return whether a sweep has come to a moment."""
    parts = len(list(store.glob("*/part-*.arrow")))
    banks = len(finished_banks(folder))
    found = {
        "admitted": True,
        "named": (folder / "config.json").exists(),
        "one part": parts >= 1,
        "two parts": parts >= 2,
        "all parts": parts >= _SUPPORT_PARTS,
        "task written": any(folder.glob("tasks/*/task.json")),
        "bank begun": any(folder.glob("banks/*/*/*/job.json")),
        # A bank takes its checkpoint away when it is done.
        "checkpoint": any(folder.glob("banks/*/*/*/checkpoint.safetensors")) or banks >= 1,
        "one bank": banks >= 1,
        "two banks": banks >= 2,
        "three banks": banks >= 3,
        "searched": banks >= BANKS,
        "one test part": banks >= BANKS and parts > _SUPPORT_PARTS,
        "summary": (folder / "summary.json").exists(),
    }
    return found[moment]


def finished_banks(folder: Path) -> dict[Path, int]:
    """Return the outcomes of a sweep, and when each was written."""
    found = {}
    for file in folder.glob("banks/*/*/*/outcome.json"):
        with contextlib.suppress(FileNotFoundError):
            found[file] = file.stat().st_mtime_ns
    return found


def summary_of(folder: Path) -> list[dict[str, Any]]:
    """Return what two runs of one sweep have in common: every digit, and no name of a run."""
    entries = json.loads((folder / "summary.json").read_text())
    return [{k: v for k, v in entry.items() if k != "mlflow_run_id"} for entry in entries]


@dataclass
class World:
    """What all injections share.

    Attributes:
        folder: holds everything; what another world has left there is used.
    """

    folder: Path

    def __post_init__(self) -> None:
        self._ends = contextlib.ExitStack()
        (self.folder / "conf").mkdir(parents=True, exist_ok=True)
        backbone, dataset = write_backbone(self.folder), write_dataset(self.folder)
        write_config_dir(self.folder / "conf", backbone, dataset)
        self.weights = write_weights(backbone, self.folder)
        self.images = Path(dataset.path)

    @cached_property
    def database(self) -> Path:
        return migrated_database(self.folder)

    def copy_database(self, storage: Path) -> None:
        storage.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.database, storage / "mlflow.db")

    def command(
        self, storage: Path, overrides: Sequence[str] = (), conf: Path | None = None
    ) -> list[str]:
        """Return the words of a sweep's command."""
        return [
            *(sys.executable, "-m", "safe_ray.tune"),
            *("--config-dir", str(conf or self.folder / "conf")),
            *SETTINGS,
            f"backbone.pretrained={self.weights}",
            f"storage={storage}",
            "sweep=trial",
            *overrides,
        ]

    def start(
        self,
        command: Sequence[str],
        storage: Path,
        environment: Mapping[str, str] | None = None,
        store: Path | None = None,
        sweep: str = "trial",
    ) -> Sweep:
        """Start a sweep in a session of its own, as a terminal's other end would."""
        name = f"{storage.parent.name}-{secrets.token_hex(4)}"
        logs = (self.folder / f"{name}.out", self.folder / f"{name}.err")
        with logs[0].open("wb") as out, logs[1].open("wb") as err:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                cwd=PROJECT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        return Sweep(process, storage / "outputs" / sweep, store or storage / "features", logs)

    @cached_property
    def server(self) -> int:
        """The port of an MLflow server that lives as long as the world."""
        folder = self.folder / "server"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(self.database, folder / "server.db")
        return self._ends.enter_context(running_server(folder))

    def end(self) -> None:
        """End what lives as long as the world."""
        self._ends.close()

    @cached_property
    def undisturbed(self) -> Path:
        """The storage of a sweep that nothing was done to."""
        storage = self.folder / "undisturbed"
        if (storage / "outputs" / "trial" / "summary.json").exists():
            return storage
        self.copy_database(storage)
        own = ["cluster.num_cpus=2", f"tracking.uri=sqlite:///{storage}/mlflow.db"]
        command = self.command(storage, own)
        ended = self.start(command, storage).end()
        assert ended.status == 0, ended.said
        return storage

    @cached_property
    def summary(self) -> list[dict[str, Any]]:
        """What every injection has to end with."""
        return summary_of(self.undisturbed / "outputs" / "trial")
