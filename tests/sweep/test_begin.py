"""What is refused before anything that takes seconds is imported, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.specs import BackboneSpec, DatasetSpec
from tests.conftest import TINY_MODEL

SLOW_TO_IMPORT = ("torch", "ray", "mlflow", "open_clip", "optuna")
PROGRAM = f"""
import sys
from safe_ray.{{verb}} import COMMAND
from safe_ray.cli import main
status = main(COMMAND, sys.argv[1:])
imported = [name for name in {SLOW_TO_IMPORT} if name in sys.modules]
print("imported:", *imported)
sys.exit(status)
"""


def refuse(verb: str, *arguments: str) -> str:
    """Return what is said about a mistake that is found without importing what is slow."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(verb=verb), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stdout == "imported:\n"
    *_, said = done.stderr.strip().splitlines()
    assert said.startswith("safe_ray: ")
    return said


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: DatasetSpec) -> Path:
    """Files that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("wrong")
    rows = pq.read_table(tiny_dataset.path).to_pylist()
    next(row for row in rows if row["split"] == "test")["image"] = b"no image"
    (folder / "dataset").mkdir()
    for name, written in (("broken", rows), ("gone", None)):
        file = folder / f"{name}.parquet"
        if written is not None:
            pq.write_table(pa.Table.from_pylist(written), file)
        content = {"format": "parquet", "path": str(file)}
        (folder / "dataset" / f"{name}.yaml").write_text(json.dumps(content))
    (folder / "file").write_text("a file where a folder should be")
    (folder / "empty.pt").touch()
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / f"{TINY_MODEL}.json").write_text("{")
    return folder


@pytest.mark.parametrize("verb", ["tune", "extract"])
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backbone.pretrained=/nope"], ["no weights file '/nope'", "backbone.pretrained"]),
        (["backbone.pretrained={place}/empty.pt"], ["empty.pt", "it is empty"]),
        (["backbone.pretrained={place}/cut.safetensors"], ["cut.safetensors", "cannot be read"]),
        (["backbone.model_config={place}/" + TINY_MODEL + ".json"], ["not readable JSON"]),
        (["storage={place}/file/below"], ["storage is", "{place}/file is a file"]),
        (["features.store={place}/file"], ["features.store is", "is a file"]),
        (["tracking.uri=sqlite:///{place}/file/x.db"], ["tracking.uri is", "is a file"]),
        (["tracking.uri=mlruns"], ["tracking.uri=mlruns is a folder"]),
        (["tasks.datasets=[gone]"], ["'gone'", "there is no file {place}/gone.parquet"]),
        (["tasks.datasets=[broken]"], ["1 of ", "data.skip_bad=true"]),
        (["evaluation.targets=[broken]"], ["evaluation.targets names 'broken'"]),
    ],
)
def test_a_mistake_is_found_before_anything_slow_is_imported(
    place: Path,
    tmp_path: Path,
    tiny_backbone: BackboneSpec,
    verb: str,
    overrides: list[str],
    words: list[str],
) -> None:
    storage = tmp_path / "new"
    said = refuse(
        verb,
        f"--config-dir={place}",
        "backbone.name=tiny",
        f"backbone.model={TINY_MODEL}",
        "backbone.pretrained=null",
        f"backbone.model_config={tiny_backbone.model_config}",
        "tasks.datasets=[broken]",
        f"storage={storage}",
        "sweep=mine",
        *(override.format(place=place) for override in overrides),
    )
    for word in words:
        assert word.format(place=place) in said
    # What was found out about sound images is worth keeping; a sweep's name is not taken.
    kept = [file.name for file in storage.rglob("*") if file.is_file()] if storage.exists() else []
    assert set(kept) <= {"inventory.arrow"}
    assert not (storage / "outputs").exists()


def begun(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


RESTART = """
import sys
from safe_ray.cli import RESTART, Command, main, restarts
def run(config, flags):
    print("anew" if restarts(flags, [config]) else "goes on")
sys.exit(main(Command("tune", "", (), run, RESTART), sys.argv[1:]))
"""


def restart(tmp_path: Path, *flags: str, typed: str | None = None) -> tuple[int, str]:
    """Run a command that only says whether it begins anew; `typed` is typed on a terminal."""
    ours, theirs = pty.openpty()
    os.write(ours, (typed or "").encode())
    done = subprocess.run(
        [sys.executable, "-c", RESTART, "sweep=mine", f"storage={tmp_path}", *flags],
        stdin=subprocess.DEVNULL if typed is None else theirs,
        capture_output=True,
        text=True,
        timeout=120,
    )
    os.close(ours)
    os.close(theirs)
    return done.returncode, done.stdout + done.stderr


def test_a_restart_asks_first(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    status, said = restart(tmp_path, "--restart", typed="y\n")
    assert status == 0
    assert f"Remove {folder} with every head in there" in said
    assert said.endswith("anew\n")
    status, said = restart(tmp_path, "--restart", typed="\n")
    assert status == 2
    assert f"{folder} is as it was" in said


def test_a_restart_where_nobody_can_be_asked_needs_yes(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    status, said = restart(tmp_path, "--restart")
    assert status == 2
    assert said.startswith(f"safe_ray: --restart removes {folder}")
    assert restart(tmp_path, "--restart", "--yes") == (0, "anew\n")


def test_a_restart_of_nothing_asks_nothing(tmp_path: Path) -> None:
    assert restart(tmp_path, "--restart") == (0, "anew\n")
    assert restart(tmp_path) == (0, "goes on\n")
    status, said = restart(tmp_path, "--yes")
    assert status == 2
    assert "--yes agrees to --restart" in said
