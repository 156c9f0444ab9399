"""What `python -m safe_ray.serve` refuses, in one sentence and before it starts anything."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from safe_ray.serving.command import main


def refusal(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


def test_a_port_in_use_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refusal([str(tmp_path), "--port", str(port)], capsys)
    assert said == (
        f"safe_ray: Another program listens at 127.0.0.1:{port}: end it, or name another port with "
        "--port."
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Which heads?"),
        (["outputs/none"], "There is no head in"),
        (["a", "--port", "70000"], "--port is '70000'"),
        (["a", "--port", "none"], "--port is 'none'"),
        (["a", "--host", "my computer"], "--host is 'my computer'"),
        (["a", "--host", "192.0.2.1"], "cannot be listened at"),
        (["a", "--prot", "80"], "Did you mean '--port'"),
        (["models:/mine@best"], "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: Sequence[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # The usual port may well be in use here.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    more = [] if "--port" in arguments else ["--port", port]
    assert words in refusal([*arguments, *more] if arguments else [], capsys)


def test_help_imports_neither_ray_nor_torch(capsys: pytest.CaptureFixture[str]) -> None:
    import subprocess

    code = (
        "import sys; from safe_ray.serving.command import main; status = main(['--help']); "
        "sys.exit(status or bool({'ray', 'torch', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--most-megapixels" in done.stdout
