"""Tracking URIs, and whether somebody answers at them, decided in seconds instead of minutes.

MLflow retries a server that does not answer for about four minutes, and a database for about
five. A sweep must refuse such an address before anything expensive starts, so each address is
tried with a deadline before MLflow's own client is made. A server that is just starting gets time:
little while nobody listens at its port, more once somebody does and is only slow.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safe_ray.errors import InputError
from safe_ray.redaction import redacted

DEFAULT_URI = "sqlite:///mlflow.db"
REACH_SECONDS = 30.0
"""How long a server that has been reached may take to answer."""
LISTEN_SECONDS = 2.0
"""How long a port may stay closed: a server that is just starting opens it soon."""

ALONE_SECONDS = 120.0
"""How long a sweep waits for another one that makes a database's tables."""

_DATABASES = ("postgresql", "mysql", "mssql")
_SHORTEST_ALONE = 6
_SILENT_SECONDS, _PAUSE_SECONDS = 2.0, 0.25
_REMEDY = f"or keep the runs in a local file with tracking.uri={DEFAULT_URI}"


class AwayError(InputError):
    """MLflow does not answer, or refuses this client: later it may take the same again."""


def normalise_uri(uri: str, base: Path | None = None, setting: str = "tracking.uri") -> str:
    """Return `uri` in a form that does not depend on the working directory.

    Args:
        uri: `sqlite:///relative.db`, `sqlite:////absolute.db`, `http(s)://...`, `databricks...`, or
            a SQLAlchemy URI of PostgreSQL, MySQL or SQL Server.
        base: where a relative SQLite file starts, by default the working directory.
        setting: what names the URI, for the error.

    Raises:
        InputError: the URI is a folder (MLflow no longer writes its file store), has a scheme
            that MLflow has no store for, or is a SQLite database in memory.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme == "sqlite":
        name = uri.partition(":///")[2]
        if not name or name == ":memory:":
            raise InputError(
                f"{setting}={uri} names no file: write sqlite:///folder/mlflow.db for a "
                "relative path, or sqlite:////folder/mlflow.db (four slashes) for an absolute one."
            )
        path, _, query = name.partition("?")
        absolute = (base or Path.cwd()) / Path(path).expanduser()
        return f"sqlite:///{absolute}" + (f"?{query}" if query else "")
    if scheme in {"http", "https"}:
        return uri.rstrip("/")
    if scheme in _DATABASES or uri.startswith("databricks"):
        return uri
    if scheme in {"", "file"}:
        folder = uri.removeprefix("file://").removeprefix("file:").rstrip("/") or "."
        raise InputError(
            f"{setting}={uri} is a folder, and MLflow no longer keeps runs in folders: write "
            f"{setting}=sqlite:///{folder}/mlflow.db for a database file there."
        )
    raise InputError(
        f"{setting}={uri} has the scheme {scheme!r}, which MLflow keeps no runs in: use "
        f"http://host:port, postgresql://..., {_REMEDY}."
    )


def displayed(uri: str) -> str:
    """Return `uri` without the password that it may hold, to be printed or logged."""
    return redacted(uri)


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a `sqlite:///` URI, or None for any other URI."""
    if not uri.startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


def check_reachable(
    uri: str, seconds: float = REACH_SECONDS, say: Callable[[str], None] | None = None
) -> None:
    """Try until the normalised `uri` answers and can be written to.

    Args:
        uri: of the store.
        seconds: how long a server may take that accepts connections. One whose port is closed gets
            `LISTEN_SECONDS`, one whose name is unknown or that refuses this client no time at all.
        say: is told once what is waited for, and for how long, if that is worth a word.

    Raises:
        InputError: it does not answer in time; the sentence names the URI and what to do.
    """
    file = sqlite_file(uri)
    if file is not None:
        _check_sqlite(file)
    elif uri.startswith("http"):
        _patiently(uri, seconds, say, lambda left: _check_server(uri, left))
    elif urlsplit(uri).scheme.partition("+")[0] in _DATABASES:
        _patiently(uri, seconds, say, lambda left: _check_database(uri))


def _check_sqlite(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except (OSError, sqlite3.Error) as error:
        raise InputError(
            f"The MLflow database {file} cannot be written ({error}): make its folder writable, or "
            "name another file with tracking.uri=sqlite:///<file>."
        ) from error


def _check_server(uri: str, seconds: float) -> None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    response = http_request(
        get_default_host_creds(uri),
        "/api/2.0/mlflow/experiments/search",
        "GET",
        params={"max_results": 1},
        max_retries=0,
        timeout=seconds,
        raise_on_status=False,
    )
    shown = displayed(uri)
    if response.status_code == 401:
        raise AwayError(
            f"The MLflow server at {shown} wants to know who is asking (status 401): set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    if response.status_code == 403:
        raise AwayError(
            f"The MLflow server at {shown} refuses this client (status 403): check the user's "
            "permissions, and that the server was started with --allowed-hosts for this name."
        )
    kind = response.headers.get("content-type", "")
    if response.status_code != 200 or "json" not in kind:
        raise AwayError(
            f"What answers at {shown} is not an MLflow server (status {response.status_code}): "
            f"check tracking.uri, start one there with `mlflow server`, {_REMEDY}."
        )


def _check_database(uri: str) -> None:
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    except ModuleNotFoundError as error:
        raise InputError(
            f"tracking.uri={displayed(uri)} needs the Python package {error.name!r}: install it, "
            f"{_REMEDY}."
        ) from error
    with engine.connect():
        pass


def _patiently(
    uri: str,
    seconds: float,
    say: Callable[[str], None] | None,
    check: Callable[[float], None],
) -> None:
    """Repeat `check`, which is given the seconds that are left, until it passes or time is up."""
    began = time.monotonic()
    waiting = False

    def wait_for(reason: str, limit: float) -> None:
        nonlocal waiting
        if not waiting and say is not None:
            say(f"Waiting up to {limit:.0f} s for MLflow at {displayed(uri)} ({reason}).")
        waiting = True

    while True:
        left = began + seconds - time.monotonic()
        attempt = _Attempt(check, left)
        if not attempt.ended(min(_SILENT_SECONDS, left)):
            wait_for("no answer yet", seconds)
        ended = attempt.ended(began + seconds - time.monotonic())
        error = attempt.error
        if ended and error is None:
            return
        if isinstance(error, InputError):
            raise error
        reason = f"no answer in {seconds:.0f} s"
        limit = seconds
        if error is not None:
            reason = without_password(first_line(error), uri)
            limit = min(seconds, _patience(error))
        if time.monotonic() - began >= limit:
            raise AwayError(
                f"No MLflow server answers at {displayed(uri)} ({reason}): start it, correct "
                f"tracking.uri, {_REMEDY}."
            ) from error
        wait_for(reason, limit)
        time.sleep(_PAUSE_SECONDS)


def _patience(error: BaseException) -> float:
    """Return for how many seconds an address with this error is worth another try."""
    cause = innermost(error)
    if isinstance(cause, socket.gaierror):
        return 0.0
    if isinstance(cause, ConnectionRefusedError) or "refused" in str(cause):
        return LISTEN_SECONDS
    return REACH_SECONDS


class _Attempt:
    """A check in a thread of its own, because looking up a name has no timeout."""

    def __init__(self, check: Callable[[float], None], seconds: float) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(check, seconds), name="mlflow-reach", daemon=True
        )
        self._thread.start()

    def ended(self, within: float) -> bool:
        """Wait for at most `within` seconds, and return whether the check has ended."""
        self._thread.join(max(0.0, within))
        return not self._thread.is_alive()

    def _run(self, check: Callable[[float], None], seconds: float) -> None:
        try:
            check(seconds)
        except Exception as error:
            self.error = error


def failures() -> tuple[type[Exception], ...]:
    """Return what MLflow's client raises when MLflow, its server or its disk does something wrong.

    Half of it is what the client makes of an answer that is none of MLflow's.
    """
    import requests
    from alembic.util import CommandError
    from google.protobuf.json_format import Error as FormatError
    from google.protobuf.message import Error as ProtocolError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (
        MlflowException,
        requests.RequestException,
        SQLAlchemyError,
        CommandError,
        OSError,
        FormatError,
        ProtocolError,
        ArithmeticError,
        AttributeError,
        LookupError,
        SystemError,
        TypeError,
        ValueError,
    )


def innermost(error: BaseException) -> BaseException:
    """Return what began the chain of causes that ended with `error`."""
    seen = {id(error)}
    while True:
        cause = error.__cause__ or error.__context__
        if cause is None or id(cause) in seen:
            return error
        seen.add(id(cause))
        error = cause


def without_password(text: str, uri: str) -> str:
    """Return a text in which the password of `uri` may stand without it."""
    password = urlsplit(uri).password
    for secret in {password, unquote(password)} if password else ():
        # Alone, a short one could stand in a text for another reason.
        text = text.replace(f":{secret}@", ":***@")
        text = text.replace(secret, "***") if len(secret) >= _SHORTEST_ALONE else text
    return redacted(text)


def first_line(error: BaseException, length: int = 160) -> str:
    """Return the innermost cause of `error` in one short line."""
    cause = innermost(error)
    text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return text if len(text) <= length else text[: length - 3] + "..."


@contextlib.contextmanager
def quiet_migration() -> Iterator[None]:
    """Hold back the hundred lines that the first use of a new database logs."""
    # MLflow sets the level of its loggers when it is imported.
    import mlflow  # noqa: F401

    names = ("alembic", "mlflow")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def alone_with_database(uri: str, seconds: float = ALONE_SECONDS) -> Iterator[None]:
    """Keep other sweeps from a database file meanwhile, if it is one.

    Two that make its tables at the same time get into each other's way. It is the folder that is
    locked. Where that cannot be done, or another sweep holds it for longer than `seconds`, the
    block is entered all the same.
    """
    file = sqlite_file(uri)
    with contextlib.ExitStack() as stack:
        if file is not None:
            with contextlib.suppress(OSError):
                folder = os.open(file.parent, os.O_RDONLY)
                stack.callback(os.close, folder)
                _lock(folder, seconds)
        yield


def _lock(descriptor: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return None
            time.sleep(_PAUSE_SECONDS)


def prepare_environment() -> None:
    """Set how long MLflow's client waits, where the person has not: half a minute, not four.

    It repeats nothing by itself. What was not answered may have been done all the same, so that
    whoever repeats it has to look first: a run that is created twice is there twice.

    The sweep runs without anybody asking for MLflow's usage reports, so those are off too.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Two lines a run, amid the progress; the program says once where all of them are.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
