"""`python -m safe_ray.datasets` as a person meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import safe_ray
from safe_ray.compose import packaged_tree
from safe_ray.datasets import main
from tests.data.coop_tree import entries, write_coop, write_images
from tests.data.official_tree import OFFICIAL, imagenet, write_classnames

ROOT = Path(safe_ray.__file__).resolve().parent.parent
NAMES = sorted(file.stem for file in (packaged_tree() / "dataset").glob("*.yaml"))
CLASSES = ["cat", "dog"]
COUNTS = {"train": 4, "val": 2, "test": 3}
IMAGES = len(CLASSES) * sum(COUNTS.values())


def test_help_answers_without_anything_heavy():
    program = (
        "import runpy, sys\n"
        "sys.argv = ['datasets', '--help']\n"
        "try:\n"
        "    runpy.run_module('safe_ray.datasets', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'optuna', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for word in ("--verify", "--root", "--config-dir", "data.root", "episodes"):
        assert word in done.stdout


def test_the_process_ends_with_the_status(tmp_path):
    command = [sys.executable, "-m", "safe_ray.datasets", "nothing_like_it", f"--root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def state_of(name: str, lines: list[str]) -> str:
    return next(line.split()[1] for line in lines if line.split()[0] == name)


def test_every_data_set_is_listed_with_what_is_there(tmp_path, capsys):
    OFFICIAL["dtd"](tmp_path)
    OFFICIAL["caltech101"](tmp_path)
    OFFICIAL["food101"](tmp_path)
    (tmp_path / "food-101/meta/train.txt").unlink()
    imagenet(tmp_path)
    assert main([f"data.root={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(tmp_path) in lines[0]
    states = {name: state_of(name, lines) for name in NAMES}
    assert states["dtd"] == states["caltech101"] == states["imagenet"] == "ready"
    assert states["food101"] == "incomplete"
    assert states["sun397"] == states["fgvc_aircraft"] == states["imagenet_r"] == "missing"
    assert states["game_icons"] == "ready"


def test_what_is_missing_is_listed_with_where_to_get_it(tmp_path, capsys):
    assert main(["--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    about = lines[next(i for i, line in enumerate(lines) if line.startswith("sun397 ")) :][1:4]
    assert about[0].strip() == f"missing: {tmp_path}/sun397/SUN397"
    assert "split_zhou_SUN397.json" in about[1]
    assert "ClassName.txt" in about[1]
    assert about[2].strip().startswith("get it from: ")
    assert "SUN397.tar.gz" in about[2]


def test_a_data_set_of_ones_own_is_listed_and_one_behind_a_uri_is_not_looked_at(tmp_path, capsys):
    folder = tmp_path / "conf/dataset"
    folder.mkdir(parents=True)
    (folder / "far.yaml").write_text("name: far\nformat: coop\npath: s3://nowhere/far\n")
    assert main(["--config-dir", str(tmp_path / "conf"), f"--root={tmp_path}"]) == 0
    assert state_of("far", capsys.readouterr().out.splitlines()) == "remote"


def test_names_are_counted_by_split_and_class_with_the_notes(tmp_path, capsys):
    OFFICIAL["eurosat"](tmp_path)
    imagenet(tmp_path)
    write_classnames(tmp_path / "imagenet")
    assert main(["eurosat", "imagenet", f"data.root={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines]
    assert lines[0] == "eurosat: 3 classes"
    assert any("split_zhou_EuroSAT.json" in line for line in lines)
    assert ["class", "train", "val", "test"] in table
    assert ["all", "classes", "15", "6", "9"] in table
    assert ["Sea", "or", "Lake", "5", "2", "3"] in table
    assert ["missile", "(n03773504)", "3", "0", "1"] in table
    assert ["missile", "(n04008634)", "3", "0", "1"] in table


@pytest.fixture
def tiny(tmp_path) -> tuple[Path, list[str]]:
    """Return a folder with the data set `tiny`, and the arguments that verify it."""
    split = entries(CLASSES, COUNTS)
    spec = write_coop(tmp_path, split)
    write_images(tmp_path, split)
    file = tmp_path / "conf/dataset/tiny.yaml"
    file.parent.mkdir(parents=True)
    content = {"name": spec.name, "format": spec.format, "path": spec.path}
    file.write_text(json.dumps({**content, "options": dict(spec.options)}))
    arguments = ["tiny", "--verify", "--root", str(tmp_path)]
    return tmp_path, [*arguments, "--config-dir", str(file.parents[1])]


def test_good_images_verify(tiny, capsys):
    assert main(tiny[1]) == 0
    out = capsys.readouterr().out
    assert f"All {IMAGES} images decode." in out
    assert "in another split as well (" in out


def test_bad_images_are_named_with_the_reason_and_the_status_is_1(tiny, capsys):
    root, arguments = tiny
    (root / "tiny/images/cat/train_1.png").write_bytes(b"<html>")
    (root / "tiny/images/dog/test_2.png").unlink()
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert f"2 of {IMAGES} images cannot be used:" in out
    assert "train: cat/train_1.png: not an image" in out
    assert "test: dog/test_2.png: " in out


def test_without_names_all_data_sets_that_are_there_are_verified(tiny, capsys):
    _, arguments = tiny
    assert main(arguments[1:]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "tiny: 2 classes" in lines
    assert "game_icons: 15 classes" in lines
    assert not any(line.startswith("dtd") for line in lines)
    sizes = [re.fullmatch(r"  All (\d+) images decode\.", line) for line in lines]
    assert len([found for found in sizes if found]) > 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dtdd"], ["no data set 'dtdd'", "mean 'dtd'"]),
        (["--verfy"], ["--verfy", "--help"]),
        (["search.bank=3"], ["'search.bank=3' has no effect here"]),
        (["data.roots=/data"], ["'data.roots'", "mean 'data.root'"]),
        (["--config-dir", "/nowhere"], ["/nowhere"]),
        (["dtd", "data.root=/nowhere"], ["no folder /nowhere/dtd", "dtd-r1.0.1.tar.gz"]),
        (["episodes"], ["SPLIT.json", "--help"]),
        (["episodes", "/nowhere/split.json"], ["/nowhere"]),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(arguments, words, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words)


def episodes_of(split: Path, capsys, *arguments: str) -> list[list[str]]:
    assert main(["episodes", str(split), *arguments]) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_episodes_of_a_split_file_are_a_table_and_need_no_images(tmp_path, capsys):
    split = tmp_path / "tiny/split_zhou_Tiny.json"
    write_coop(tmp_path, entries(CLASSES, {"train": 8, "val": 4, "test": 1}))
    rows = episodes_of(split, capsys, "--shots", "1", "4", "--seeds", "5", "6")
    assert rows[0] == ["shots", "seed", "train_digest", "validation_digest"]
    assert [row[:2] for row in rows[1:]] == [["1", "5"], ["1", "6"], ["4", "5"], ["4", "6"]]
    assert all(len(digest) == 16 for row in rows[1:] for digest in row[2:])
    assert len({row[2] for row in rows[1:]}) == 4
    assert len(episodes_of(split, capsys)) == 1 + 5 * 3


def test_episodes_follow_the_convention(tmp_path, capsys):
    split = tmp_path / "tiny/split_zhou_Tiny.json"
    write_coop(tmp_path, entries(CLASSES, {"train": 8, "val": 6}))
    arguments = ("--shots", "2", "--seeds", "1")
    coop = episodes_of(split, capsys, *arguments)
    assert episodes_of(split, capsys, *arguments, "--convention", "coop") == coop
    assert episodes_of(split, capsys, *arguments, "--convention", "clip_lora") != coop


def test_an_unknown_convention_is_refused_before_anything_is_printed(tmp_path, capsys):
    write_coop(tmp_path, entries(CLASSES, {"train": 8}))
    split = tmp_path / "tiny/split_zhou_Tiny.json"
    assert main(["episodes", str(split), "--convention", "copy"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "'copy'" in err
