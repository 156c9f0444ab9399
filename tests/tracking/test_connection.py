from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from safe_ray.errors import InputError
from safe_ray.tracking.connection import check_reachable, displayed, normalise_uri
from safe_ray.tracking.mlflow import Tracker


def test_a_relative_sqlite_file_is_made_absolute(tmp_path: Path) -> None:
    assert normalise_uri("sqlite:///mlflow.db", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert normalise_uri("sqlite:////data/mlflow.db", tmp_path) == "sqlite:////data/mlflow.db"


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "postgresql+psycopg2://u:p@host/db", "databricks://profile"]
)
def test_other_stores_are_left_as_they_are(uri: str) -> None:
    assert normalise_uri(uri) == uri


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:mlruns", "file:///data/mlruns", ""])
def test_a_folder_is_refused_with_the_database_to_use_instead(uri: str) -> None:
    with pytest.raises(InputError, match=r"sqlite:///.*mlflow\.db"):
        normalise_uri(uri)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "redis://host"])
def test_a_store_that_keeps_nothing_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri="):
        normalise_uri(uri)


def test_passwords_are_not_shown() -> None:
    assert displayed("https://me:secret@host:1/x") == "https://me:***@host:1/x"
    assert displayed("http://host:5000") == "http://host:5000"


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assert_refused(uri: str, words: str, seconds: float = 7.0) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=words) as caught:
        check_reachable(uri)
    assert time.monotonic() - started < seconds
    assert "\n" not in str(caught.value)
    assert "sqlite:///mlflow.db" in str(caught.value)


@pytest.fixture(scope="module", autouse=True)
def _imported_before_the_clock_starts() -> None:
    import mlflow.utils.rest_utils  # noqa: F401


def test_a_server_that_is_not_there_is_refused_in_seconds() -> None:
    port = closed_port()
    assert_refused(f"http://127.0.0.1:{port}", rf"127\.0\.0\.1:{port} .*refused.*start it")


def test_the_tracker_refuses_it_too() -> None:
    with pytest.raises(InputError, match="start it"):
        Tracker(f"http://127.0.0.1:{closed_port()}", "e", "s").open()


def test_a_server_that_accepts_and_says_nothing_is_refused_in_seconds() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(4)
        assert_refused(f"http://127.0.0.1:{silent.getsockname()[1]}", "No MLflow server answers")


def test_a_database_server_that_is_not_there_is_refused() -> None:
    # The driver of PostgreSQL is not among the dependencies; either sentence names the remedy.
    uri = f"postgresql://me:secret@127.0.0.1:{closed_port()}/mlflow"
    with pytest.raises(InputError, match=r"sqlite:///mlflow\.db") as caught:
        check_reachable(uri)
    assert "secret" not in str(caught.value)


class _Stranger(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(type(self).status)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "words"),
    [(200, "not an MLflow server"), (404, "not an MLflow server"), (503, "not an MLflow server")],
)
def test_something_else_that_answers_is_recognised(stranger: str, status: int, words: str) -> None:
    _Stranger.status = status
    assert_refused(stranger, words)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "MLFLOW_TRACKING_TOKEN"), (403, "--allowed-hosts")]
)
def test_a_server_that_refuses_says_what_it_wants(stranger: str, status: int, words: str) -> None:
    _Stranger.status = status
    with pytest.raises(InputError, match=words):
        check_reachable(stranger)


def test_a_database_file_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(InputError, match=r"cannot be written \(file is not a database\)"):
        check_reachable(f"sqlite:///{file}")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="make its folder writable"):
        check_reachable(f"sqlite:///{tmp_path}/file/mlflow.db")
