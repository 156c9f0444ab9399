"""An MLflow server, and a door before it that is shut, slow or refuses whoever comes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from tests.clusters import free_ports

Mode = Literal["open", "shut", "slow", "refusing"]
_SLOW_SECONDS = 10.0
# Headers that belong to one connection, and not to what passes over it.
_OF_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class Door:
    """Passes requests on to a server, or does not.

    Attributes:
        port: where it listens; nobody does while it is shut.
        mode: what it does with a request.
    """

    def __init__(self, target: int) -> None:
        (self.port,) = free_ports(1)
        self.mode: Mode = "shut"
        self._target = target
        self._server: ThreadingHTTPServer | None = None

    def become(self, mode: Mode) -> None:
        if mode == "shut":
            self.close()
        self.mode = mode
        if mode != "shut" and self._server is None:
            self._open()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _open(self) -> None:
        door = self

        class Handler(BaseHTTPRequestHandler):
            # One request a connection: none that was opened before lives on behind a shut door.
            protocol_version = "HTTP/1.0"

            def log_message(self, *_: object) -> None:
                pass

            def _pass_on(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(size) if size else None
                mode = door.mode
                if mode == "slow":
                    time.sleep(_SLOW_SECONDS)
                if mode in ("refusing", "shut"):
                    self.send_error(403)
                    return
                status, headers, answer = door.ask(self.command, self.path, self.headers, body)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in headers:
                        if name.lower() not in _OF_CONNECTION:
                            self.send_header(name, value)
                    self.send_header("content-length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass_on

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def ask(
        self, method: str, path: str, headers: object, body: bytes | None
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the server behind, and return its answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._target}{path}", data=body, method=method
        )
        for name, value in headers.items():  # type: ignore[attr-defined]
            if name.lower() not in _OF_CONNECTION:
                request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.getheaders(), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, list(error.headers.items()), error.read()
        except OSError:
            return 502, [], b""


@dataclass
class Server:
    """An MLflow server of the test's own."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def start_server(folder: Path) -> Server:
    """Start a server on the database `mlflow.db` of a folder, and return when it answers."""
    (port,) = free_ports(1)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
        *("--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "stored")),
    ]
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server = Server(port, process)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{server.uri}/health", timeout=60),
        ):
            return server
        time.sleep(0.2)
    server.end()
    raise AssertionError((folder / "server.log").read_text()[-3000:])
