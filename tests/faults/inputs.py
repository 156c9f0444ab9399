"""Harm to what a sweep starts from: images, candidates, the clock, and folders of others."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.disks import store_folder
from tests.faults.lab import Impossible, Lab
from tests.faults.world import summary_of


@contextlib.contextmanager
def own_images(lab: Lab) -> Iterator[None]:
    """Give the sweep a copy of the data set that may be damaged."""
    lab.conf = lab.folder / "conf"
    shutil.copytree(lab.world.folder / "conf", lab.conf)
    images = lab.folder / "shapes.parquet"
    shutil.copyfile(lab.world.images, images)
    file = lab.conf / "dataset" / "shapes.yaml"
    file.write_text(json.dumps({**json.loads(file.read_text()), "path": str(images)}))
    yield


def corrupt_image(lab: Lab) -> None:
    """One image of the test split, all of which a sweep needs, is cut off."""
    file = lab.folder / "shapes.parquet"
    whole = file.read_bytes()
    rows = pq.read_table(file).to_pylist()
    row = lab.random.choice([row for row in rows if row["split"] == "test"])
    row["image"] = row["image"][: lab.random.randrange(len(row["image"]) // 2)]
    pq.write_table(pa.Table.from_pylist(rows), file)

    def restore() -> None:
        file.write_bytes(whole)

    lab.mend.append(restore)
    ended = lab.running().end()
    assert ended.status == 2, ended.said
    assert row["path"] in ended.said
    assert "data.skip_bad=true" in ended.said


@contextlib.contextmanager
def diverging_candidates(lab: Lab) -> Iterator[None]:
    """Search learning rates of which many are beyond all reason."""
    lab.overrides += ["search.lr={low: 1e-4, high: 1e+12, log: true}"]
    lab.overrides += [f"search.seed={lab.random.randrange(1000)}"]
    lab.checks_summary, lab.may_end = False, " candidates diverged (begin another sweep"
    yield


def diverge(lab: Lab) -> None:
    """Candidates whose loss is no number are left out, and their neighbours learn as if alone."""

    def check() -> None:
        import torch

        from safe_ray.training.job import BankJob, run_bank
        from safe_ray.training.outcome import BankOutcome

        torch.set_num_threads(1)
        failed, sound = 0, set()
        for number, folder in enumerate(sorted(lab.sweep_folder.glob("banks/*/*/*"))):
            outcome = BankOutcome.load(folder)
            assert outcome is not None
            alone = [each for each in outcome.candidates if not each.failed]
            failed += len(outcome.candidates) - len(alone)
            sound |= {each.values["lr"] for each in alone}
            if not alone or len(alone) == len(outcome.candidates):
                continue
            values = tuple(each.values for each in alone)
            job = BankJob(
                str(lab.sweep_folder), outcome.task_id, outcome.group, 900 + number, values
            )
            run_bank(job, torch.device("cpu"))
            again = BankOutcome.load(job.folder)
            assert again is not None
            assert [each.losses for each in again.candidates] == [each.losses for each in alone]
        assert failed, "no candidate diverged"
        assert "candidates diverged and were left out" in lab.said
        if sound:
            for entry in summary_of(lab.sweep_folder):
                assert entry["best"]["lr"] in sound

    lab.after.append(check)


_CLOCK = """
import os, time
_now, _now_ns, _file = time.time, time.time_ns, os.environ["SAFE_RAY_TEST_CLOCK"]
_read_at, _shift = float("-inf"), 0
def _jump():
    global _read_at, _shift
    if time.monotonic() - _read_at > 0.2:
        _read_at = time.monotonic()
        with open(_file) as file:
            _shift = int(file.read() or 0)
    return _shift
def _time():
    return _now() + _jump()
def _time_ns():
    return _now_ns() + _jump() * 1_000_000_000
for name, shifted in (("time", _time), ("time_ns", _time_ns)):
    # Ray sends functions that hold it to its workers, by its name.
    shifted.__module__, shifted.__name__, shifted.__qualname__ = "time", name, name
    setattr(time, name, shifted)
"""


@contextlib.contextmanager
def clock(lab: Lab) -> Iterator[None]:
    """Let Python's clock of all processes of the sweep be shifted by what a file says."""
    code = lab.folder / "clock"
    code.mkdir()
    (code / "sitecustomize.py").write_text(_CLOCK)
    shift = lab.folder / "shift"
    shift.write_text("0")
    lab.environment["SAFE_RAY_TEST_CLOCK"] = str(shift)
    lab.environment["PYTHONPATH"] = str(code)
    yield


def jump(lab: Lab) -> None:
    lab.reach(lab.random.choice(["one part", "bank begun", "one bank", "searched"]))
    hours = lab.random.choice([-1, 1]) * lab.random.uniform(1, 24 * 400)
    temporary = lab.folder / "shift.new"
    temporary.write_text(str(int(hours * 3600)))
    temporary.replace(lab.folder / "shift")


def second_of_the_name(lab: Lab) -> None:
    """A second command for the same sweep is refused at once, and the first goes on."""
    lab.reach(lab.random.choice(["admitted", "named", "one part", "bank begun", "one bank"]))
    second = lab.world.start(lab.command(), lab.storage, lab.environment).end()
    assert second.status == 2, second.said
    assert "Traceback" not in second.said
    (line,) = second.said.strip().splitlines()
    assert line.startswith("safe_ray: ")
    assert "sweep=<name>" in line


@contextlib.contextmanager
def read_only_store(lab: Lab) -> Iterator[None]:
    """Mount the undisturbed sweep's feature store read-only."""
    store = store_folder(lab)
    store.mkdir(parents=True)
    for words in (
        ["mount", "--bind", str(lab.world.undisturbed / "features"), str(store)],
        ["mount", "-o", "remount,bind,ro", str(store)],
    ):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            subprocess.run(["umount", "-l", str(store)], capture_output=True, check=False)
            raise Impossible(f"nothing can be mounted here: {done.stderr.strip()}")
    lab.store = store
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)


def share_store(lab: Lab) -> None:
    """Another sweep reads the same store at the same time, and comes to the same end.

    A third, whose images the store lacks, is refused before it takes its name.
    """
    lab.running()
    time.sleep(lab.random.uniform(0, 3))
    other, third = lab.folder / "other", lab.folder / "third"
    ended = {}
    for storage, overrides in ((other, []), (third, ["tasks.seeds=[1,2,3]"])):
        lab.world.copy_database(storage)
        own = [word.replace(str(lab.storage), str(storage)) for word in lab.command()]
        ended[storage] = lab.world.start([*own, *overrides], storage, lab.environment).end()
    assert ended[other].status == 0, ended[other].said
    assert summary_of(other / "outputs" / "trial") == lab.world.summary
    assert ended[third].status == 2, ended[third].said
    assert f"features.store is {lab.store}, which cannot be written to" in ended[third].said
    assert not (third / "outputs").exists()
