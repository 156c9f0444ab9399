"""The command as a person meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from safe_ray.exporting.command import main
from tests.exporting.heads import write_head


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("head"), "safe_a")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from safe_ray.exporting.command import main; main(['--help']); "
        "print([m for m in ('torch', 'open_clip', 'onnx', 'onnxruntime', 'ray', 'numpy') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for word in ("--out DIR", "--format", "--alpha", "--import", "open_clip", "onnx", "torch"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Which head?"),
        (["a", "b", "--out", "c"], "One head at a time."),
        (["{head}"], "Where to?"),
        (["{head}", "--out", "{new}", "--format", "tensorrt"], "--format is 'tensorrt'"),
        (["{head}", "--out", "{new}", "--alpha", "2"], "must lie between 0"),
        (["{head}", "--out", "{new}", "--alpha", "x"], "--alpha is 'x'"),
        (["{head}", "--out", "{full}"], "which is not empty"),
        (["{head}", "--out", "{full}/file"], "is a file"),
        (["{full}", "--out", "{new}"], "There is no head in"),
        (["{head}", "--out", "{new}"], "is not a linear classifier on pooled features"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    head: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    places = {"head": head, "new": tmp_path / "new", "full": tmp_path / "full"}
    assert main([each.format(**places) for each in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert len(said.err.splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["full"]


def test_what_was_written_is_named_with_its_size_and_its_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = write_head(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main([str(head), "--out", str(tmp_path / "empty")]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in lines[1:6]}
    assert named == {each.name for each in (tmp_path / "empty").iterdir()}
    assert lines[-1].split("to use it")[1].strip() == (
        f"python -m safe_ray.predict {tmp_path / 'empty'} <images>"
    )
    assert main([str(tmp_path / "empty"), "--out", str(tmp_path / "again")]) == 2
    assert "is a bundle already" in capsys.readouterr().err
