"""Tracking URIs, and whether somebody answers at them, decided in seconds instead of minutes.

MLflow retries a server that does not answer for about four minutes, and a database for about
five. A sweep must refuse such an address before anything expensive starts, so each address is
tried once, with a deadline, before MLflow's own client is made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from safe_ray.errors import InputError

DEFAULT_URI = "sqlite:///mlflow.db"
REACH_SECONDS = 5.0

_DATABASES = ("postgresql", "mysql", "mssql")
_REMEDY = f"or keep the runs in a local file with tracking.uri={DEFAULT_URI}"


def normalise_uri(uri: str, base: Path | None = None) -> str:
    """Return `uri` in a form that does not depend on the working directory.

    Args:
        uri: `sqlite:///relative.db`, `sqlite:////absolute.db`, `http(s)://...`, `databricks...`, or
            a SQLAlchemy URI of PostgreSQL, MySQL or SQL Server.
        base: where a relative SQLite file starts, by default the working directory.

    Raises:
        InputError: the URI is a folder (MLflow no longer writes its file store), has a scheme
            that MLflow has no store for, or is a SQLite database in memory.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme == "sqlite":
        name = uri.partition(":///")[2]
        if not name or name == ":memory:":
            raise InputError(
                f"tracking.uri={uri} names no file: write sqlite:///folder/mlflow.db for a "
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
            f"tracking.uri={uri} is a folder, and MLflow no longer keeps runs in folders: write "
            f"tracking.uri=sqlite:///{folder}/mlflow.db for a database file there."
        )
    raise InputError(
        f"tracking.uri={uri} has the scheme {scheme!r}, which MLflow keeps no runs in: use "
        f"http://host:port, postgresql://..., {_REMEDY}."
    )


def displayed(uri: str) -> str:
    """Return `uri` without the password that it may hold, to be printed or logged."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a `sqlite:///` URI, or None for any other URI."""
    if not uri.startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


def check_reachable(uri: str, seconds: float = REACH_SECONDS) -> None:
    """Try once whether the normalised `uri` answers and can be written to.

    Raises:
        InputError: it does not within `seconds`; the sentence names the URI and what to do.
    """
    file = sqlite_file(uri)
    if file is not None:
        _check_sqlite(file)
    elif uri.startswith("http"):
        _within(seconds, lambda: _check_server(uri, seconds), uri)
    elif urlsplit(uri).scheme.partition("+")[0] in _DATABASES:
        _within(seconds, lambda: _check_database(uri), uri)


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
        raise InputError(
            f"The MLflow server at {shown} wants to know who is asking (status 401): set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    if response.status_code == 403:
        raise InputError(
            f"The MLflow server at {shown} refuses this client (status 403): check the user's "
            "permissions, and that the server was started with --allowed-hosts for this name."
        )
    kind = response.headers.get("content-type", "")
    if response.status_code != 200 or "json" not in kind:
        raise InputError(
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


def _within(seconds: float, check: Callable[[], None], uri: str) -> None:
    """Run `check` with a deadline that also holds for name look-ups, which have no timeout."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            check()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="mlflow-reach", daemon=True)
    thread.start()
    thread.join(seconds)
    if not thread.is_alive() and not raised:
        return
    if raised and isinstance(raised[0], InputError):
        raise raised[0]
    reason = first_line(raised[0]) if raised else f"no answer in {seconds:.0f} s"
    raise InputError(
        f"No MLflow server answers at {displayed(uri)} ({reason}): start it, correct tracking.uri, "
        f"{_REMEDY}."
    ) from (raised[0] if raised else None)


def first_line(error: BaseException, length: int = 160) -> str:
    """Return the innermost cause of `error` in one short line."""
    innermost, seen = error, {id(error)}
    while True:
        cause = innermost.__cause__ or innermost.__context__
        if cause is None or id(cause) in seen:
            break
        seen.add(id(cause))
        innermost = cause
    text = (str(innermost).strip() or type(innermost).__name__).splitlines()[0]
    return text if len(text) <= length else text[: length - 3] + "..."


@contextlib.contextmanager
def quiet_migration() -> Iterator[None]:
    """Hold back the hundred lines that the first use of a new database logs."""
    names = ("alembic", "mlflow")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def prepare_environment() -> None:
    """Set how long MLflow's client waits, where the person has not: half a minute, not four.

    The sweep runs without anybody asking for MLflow's usage reports, so those are off too.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
