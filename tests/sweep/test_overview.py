"""A first look says everything that is known before a sweep, and leaves no trace."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from safe_ray.compose import load_config
from safe_ray.config import SweepConfig
from safe_ray.datasets import main
from safe_ray.errors import InputError
from safe_ray.sweep import data
from safe_ray.sweep.estimate import wanted_views
from safe_ray.sweep.overview import dry_run, show_overview, size
from tests.conftest import SHAPES, draw_shape

NAMES = sorted(SHAPES)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    folder = tmp_path / "photos" / "shapes"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for variant in range(8):
            (folder / name / f"{variant}.png").write_bytes(draw_shape(name, variant))
    return folder


def config_for(shapes: Path, config_dir: Path, *overrides: str) -> SweepConfig:
    place = f"storage={shapes.parents[1] / 'storage'}"
    return load_config([f"data={shapes}", "backbone=tiny", place, *overrides], config_dir)


def test_classes_splits_assumptions_images_disk_and_time_are_said(
    shapes: Path, tiny_config_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shapes / NAMES[1] / "wrong.png").write_bytes(draw_shape(NAMES[0], 0))
    found = show_overview(config_for(shapes, tiny_config_dir, "features.views=3"))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    table = [line.split() for line in lines]
    assert lines[0] == "shapes: 5 classes"
    assert ["class", "train", "val", "test"] in table
    assert [*NAMES[0].split(), "6", "0", "2"] in table
    assert ["all", "classes", "30", "0", "11"] in table
    assert any(line.startswith(f"shapes: {shapes} is read as format 'folder'") for line in lines)
    assert any("30% of each class, 11 images in all, were held out" in line for line in lines)
    assert any("cross-validation, 4 folds of the 30 support images" in line for line in lines)
    assert "All 41 images decode." in lines
    assert any("1 image is in another class as well (1 in the same" in line for line in lines)
    assert any("wrong.png" in line for line in lines)
    # The image that is there twice, in the training split and in the test split, has one map less.
    (missing,) = re.findall(r"for (\d+) dense maps of 4\.0 KiB", "\n".join(lines))
    assert int(missing) == 30 * 4 + 11 - 1
    assert any(line.startswith("Time, a rough estimate: ") for line in lines)
    assert (found.bad, found.needed_bad) == (0, [])


def test_a_dry_run_leaves_no_file(shapes: Path, tiny_config_dir: Path) -> None:
    before = sorted(shapes.parents[1].rglob("*"))
    dry_run(config_for(shapes, tiny_config_dir))
    assert sorted(shapes.parents[1].rglob("*")) == before


def test_a_dry_run_refuses_bad_images_that_the_sweep_would_use(
    shapes: Path, tiny_config_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shapes / NAMES[0] / "0.png").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"^1 of 40 images cannot be used: .*/0\.png \(not an im"):
        dry_run(config_for(shapes, tiny_config_dir))
    assert "Time, a rough estimate" in capsys.readouterr().out
    dry_run(config_for(shapes, tiny_config_dir, "data.skip_bad=true"))
    assert "nothing was written or started" in capsys.readouterr().out


def test_a_bad_image_that_no_task_draws_is_listed_and_stops_nothing(
    shapes: Path, tiny_config_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(shapes, tiny_config_dir, "tasks.shots=[1]")
    manifests = data.read_manifests(config)
    episodes = data.draw_episodes(config, manifests)
    used = {path for _, path in wanted_views(config, manifests, episodes)}
    spare = next(
        path for path in manifests["shapes"].split("train")["path"].to_pylist() if path not in used
    )
    (shapes / spare).write_bytes(b"x")
    dry_run(config)
    assert f"train: {spare}: not an image" in capsys.readouterr().out


def test_the_data_sets_command_takes_the_same_look(
    shapes: Path, tiny_config_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"data={shapes}", "backbone=tiny", "--config-dir", str(tiny_config_dir)]
    assert main([*arguments, f"storage={shapes.parents[1]}"]) == 0
    assert "What is assumed:" in capsys.readouterr().out
    (shapes / NAMES[0] / "0.png").write_bytes(b"")
    assert main([*arguments, f"storage={shapes.parents[1]}"]) == 1
    assert "1 of 40 images cannot be used" in capsys.readouterr().out
    assert main([*arguments, "dtd"]) == 2
    assert "'dtd'" in capsys.readouterr().err


def test_a_dry_run_starts_no_ray(shapes: Path, tiny_config_dir: Path) -> None:
    program = (
        "import sys\n"
        "import ray\n"
        "def refuse(*args, **options):\n"
        "    raise AssertionError('Ray was started')\n"
        "ray.init = refuse\n"
        "from safe_ray.cli import main\n"
        "from safe_ray.tune import COMMAND\n"
        "status = main(COMMAND, sys.argv[1:])\n"
        "assert not ray.is_initialized()\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "--dry-run",
            "--config-dir",
            str(tiny_config_dir),
            f"data={shapes}",
            "backbone=tiny",
            f"storage={shapes.parents[1] / 'storage'}",
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("This was a dry run")
    assert not (shapes.parents[1] / "storage").exists()


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 * 2**40, "5.0 TiB")],
)
def test_bytes_are_said_in_words(count: int, words: str) -> None:
    assert size(count) == words
