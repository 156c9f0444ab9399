"""A real MLflow server, and a door in front of it that closes, denies and dawdles."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start an MLflow server that keeps what it is told in a folder."""
    arguments = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    arguments += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    arguments += ["--artifacts-destination", str(folder / "stored")]
    with open(folder / "server.log", "ab") as log:
        return subprocess.Popen(
            arguments,
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def migrated_database(folder: Path) -> Path:
    """Return a database with MLflow's tables, which take seconds to create."""
    from safe_ray.tracking.mlflow import Tracker

    file = folder / "migrated" / "mlflow.db"
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        tracker = Tracker(f"sqlite:///{file}", "another experiment", "another sweep")
        tracker.open()
        tracker.close()
    return file


def end_server(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[int]:
    """Run a server for as long as the block lasts, and yield its port once it answers."""
    port = free_port()
    process = start_server(port, folder)
    try:
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            assert time.monotonic() < deadline, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.1)
        yield port
    finally:
        end_server(process)


class Door:
    """Stands at a port in front of a server, and passes on what is asked of it.

    Attributes:
        delay: seconds before each answer.
        denies: whether everybody is refused, with status 403.
        requests: how many there were.
        writes: after so many more writing requests the door closes, before it answers the last.
    """

    def __init__(self, server_port: int) -> None:
        self.port = free_port()
        self.delay = 0.0
        self.denies = False
        self.requests = 0
        self.writes: int | None = None
        self._server_port = server_port
        self._server: ThreadingHTTPServer | None = None
        self._moving = threading.Lock()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        with self._moving:
            assert self._server is None
            self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
            self._server.daemon_threads = True
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Nobody listens at the port any more."""
        with self._moving:
            server, self._server = self._server, None
            if server is not None:
                server.shutdown()
                server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_any(self) -> None:
                door.requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                time.sleep(door.delay)
                if door.denies:
                    return self._answer(403, "text/plain", b"Forbidden")
                connection = http.client.HTTPConnection("127.0.0.1", door._server_port, timeout=60)
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in ("host", "connection")
                }
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if door.writes is not None and self.command == "POST" and "search" not in self.path:
                    door.writes -= 1
                    if door.writes <= 0:
                        door.writes = None
                        door.close()
                        # It was done, and nobody will know.
                        self.close_connection = True
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return None
                return self._answer(
                    answer.status, answer.getheader("Content-Type") or "text/plain", content
                )

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = do_any

            def _answer(self, status: int, kind: str, content: bytes) -> None:
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler
