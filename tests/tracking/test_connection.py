from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from safe_ray.errors import InputError
from safe_ray.tracking.connection import (
    check_reachable,
    displayed,
    normalise_uri,
    without_password,
)
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


def test_nor_are_they_in_what_others_say() -> None:
    uri = "https://me:secret@host:1/x"
    assert without_password(f"request to {uri} failed", uri) == (
        "request to https://me:***@host:1/x failed"
    )
    assert without_password("port:1@x", "http://host:1") == "port:1@x"


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


def test_a_server_that_accepts_and_says_nothing_is_waited_for_and_refused() -> None:
    said: list[str] = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(4)
        port = silent.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(InputError, match="No MLflow server answers"):
            check_reachable(f"http://me:secret@127.0.0.1:{port}", seconds=4.0, say=said.append)
        assert 3.9 < time.monotonic() - started < 10
    assert said == [
        f"Waiting up to 4 s for MLflow at http://me:***@127.0.0.1:{port} (no answer yet)."
    ]


class _Mlflow(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_server_whose_port_opens_a_little_later_is_waited_for() -> None:
    port = closed_port()
    opened: list[HTTPServer] = []

    def open_late() -> None:
        time.sleep(1.0)
        opened.append(HTTPServer(("127.0.0.1", port), _Mlflow))
        opened[0].serve_forever()

    threading.Thread(target=open_late, daemon=True).start()
    said: list[str] = []
    try:
        check_reachable(f"http://127.0.0.1:{port}", say=said.append)
    finally:
        opened[0].shutdown()
        opened[0].server_close()
    assert len(said) == 1
    assert "Waiting up to 2 s" in said[0]
    assert "refused" in said[0]


def test_a_server_that_hangs_up_while_it_starts_is_asked_again() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(4)
        port = busy.getsockname()[1]
        hung_up: list[int] = []

        def answer_at_last() -> None:
            for attempt in range(3):
                connection, _ = busy.accept()
                connection.recv(4096)
                if attempt == 2:
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                        b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"
                    )
                else:
                    hung_up.append(attempt)
                connection.close()

        thread = threading.Thread(target=answer_at_last, daemon=True)
        thread.start()
        check_reachable(f"http://127.0.0.1:{port}")
        thread.join(10)
    assert hung_up == [0, 1]


def test_a_name_that_nobody_knows_is_refused_at_once() -> None:
    assert_refused("http://no-such-host.invalid:5000", r"no-such-host\.invalid")


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
