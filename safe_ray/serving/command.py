"""`python -m safe_ray.serve`: put heads behind a URL."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import ipaddress
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safe_ray.arguments import (
    HELP,
    VERSION,
    Arguments,
    Option,
    answer,
    parse,
    told_of_itself,
    usage,
)
from safe_ray.errors import InputError

if TYPE_CHECKING:
    from safe_ray.serving.settings import Settings

PORT = Option("--port", "where to listen (8000)", "N")
HOST = Option("--host", "the address to listen at (127.0.0.1: this machine alone)", "ADDRESS")
REPLICAS = Option("--replicas", "processes that hold the trunk; one for each GPU, or one", "N")
CPUS = Option("--cpus", "threads of each of them, on CPUs (all but one)", "N")
HEADS = Option("--heads", "heads that each of them keeps in memory (64)", "N")
BATCH = Option("--batch", "images that pass the trunk together (32)", "N")
UPLOAD = Option("--most-megabytes", "of one request (64)", "N")
PIXELS = Option("--most-megapixels", "of one image (50)", "N")
QUEUE = Option("--queue", "requests that wait beside as many that are worked at (64)", "N")
TIMEOUT = Option("--timeout", "seconds that a request may take (30)", "N")
IMPORT = Option("--import", "a module of your own that a head's method is in", "MODULE")
OPTIONS = (
    PORT, HOST, REPLICAS, CPUS, HEADS, BATCH, UPLOAD, PIXELS, QUEUE, TIMEOUT, IMPORT, HELP, VERSION,
)  # fmt: skip
USAGE = """usage: python -m safe_ray.serve HEADS... [options]

Answer with the heads of a sweep over HTTP: one trunk for all of its tasks. HEADS are a sweep's
folder (all of its tasks), a head's folder, or models:/<name>@best in the MLflow that
MLFLOW_TRACKING_URI names. A sweep that finds better heads, or an alias that moves, is noticed.
There is a page for people at /, and the interface for programs is described at /docs.

A Ray cluster is joined if RAY_ADDRESS is set, and else started on this machine.

examples:
  python -m safe_ray.serve outputs/demo
      on http://127.0.0.1:8000, for this machine alone
  curl -F images=@photo.jpg -F top=3 http://127.0.0.1:8000/v1/tasks/icon_kinds-2shot-seed1:predict
      the three most probable classes of an image
  python -m safe_ray.serve models:/mine@best --host 0.0.0.0 --port 80
      for everybody who reaches this machine: there is no password

options:"""

_ERROR = re.compile(r"safe_ray\.errors\.InputError[^:]*: (.+)")


@dataclass(frozen=True)
class Place:
    """Where to listen."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Of the page."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 130 after Ctrl-C or SIGTERM, which end it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: _run(parse(arguments, OPTIONS)), "Stopped serving.")


def _run(given: Arguments) -> int:
    if told_of_itself(given, lambda: usage(USAGE, OPTIONS)):
        return 0
    if not given.rest:
        raise InputError("Which heads? Write python -m safe_ray.serve outputs/<sweep>.")
    place = Place(given.value(HOST.name) or "127.0.0.1", _whole(given, PORT, 8000, 65_535))
    _check_extra()
    _check_host(place.host)
    if not os.environ.get("RAY_ADDRESS"):
        check_free(place)
    from safe_ray.files import resolve_path
    from safe_ray.prediction.heads import MODELS

    heads = [t if t.startswith(MODELS) else str(resolve_path(t)) for t in given.rest]
    serve_heads(heads, place, given, threading.Event().wait)
    return 0


def _check_extra() -> None:
    missing = [n for n in ("fastapi", "python_multipart") if importlib.util.find_spec(n) is None]
    if missing:
        raise InputError(
            f"Serving needs {' and '.join(missing)}: install the extra, pip install "
            "'safe-ray[serve]'."
        )


def _check_host(host: str) -> None:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return
    if host != "localhost":
        raise InputError(f"--host is {host!r}, and must be an address such as 127.0.0.1.")


def check_free(place: Place) -> None:
    """Refuse a place where another program listens, or that is none of this machine's.

    Raises:
        InputError: it cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        # As the server will: connections that have just ended are not in its way.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((place.host, place.port))
            tried.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"Another program listens at {place.host}:{place.port}: end it, or name "
                    "another port with --port."
                ) from error
            raise InputError(
                f"{place.host}:{place.port} cannot be listened at ({error.strerror}): name "
                "another --port, or --host."
            ) from error


def serve_heads(
    heads: Sequence[str], place: Place, given: Arguments, wait: Callable[[], object]
) -> None:
    """Start the application, say where it is, and take it down when `wait` ends.

    Args:
        heads: see `Settings.heads`; folders are absolute.
        place: where to listen.
        given: the options.
        wait: returns, or raises, when it has served long enough.

    Raises:
        InputError: no heads, or a cluster or a server that cannot be used.
    """
    from safe_ray.serving.catalogue import read_catalogue

    entries = read_catalogue(heads)
    folders = [entry.folder for entry in entries.values()]
    from safe_ray.cluster import connect

    print(f"Starting to serve {len(entries)} task{'s' * (len(entries) != 1)} ...", flush=True)
    resources = connect(None, None, folders)
    settings = _settings(heads, given, resources.cpus, resources.gpus)
    with _running(settings, place):
        print(f"  page       {place.url}")
        print(f"  interface  {place.url}/docs")
        print(f"  tasks      {', '.join(list(entries)[:5])}{' ...' * (len(entries) > 5)}")
        print(f"  try        curl -F images=@photo.jpg {place.url}/v1/tasks/{next(iter(entries))}"
              ":predict")  # fmt: skip
        print("Ctrl-C ends it.", flush=True)
        wait()


def _settings(heads: Sequence[str], given: Arguments, cpus: float, gpus: float) -> Settings:
    from safe_ray.serving.settings import Settings

    imported = given.value(IMPORT.name)
    # One core is left to decoding and to HTTP.
    here = max(1, min(int(cpus), os.cpu_count() or 1) - 1)
    return Settings.from_json(
        {
            "heads": heads,
            "replicas": _whole(given, REPLICAS, int(gpus) or 1),
            "cpus": _whole(given, CPUS, 1 if gpus else here),
            "gpus": 1.0 if gpus else 0.0,
            "heads_in_memory": _whole(given, HEADS, 64),
            "batch": _whole(given, BATCH, 32),
            "most_bytes": _whole(given, UPLOAD, 64) * 2**20,
            "most_pixels": _whole(given, PIXELS, 50) * 10**6,
            "queue": _whole(given, QUEUE, 64),
            "at_once": _whole(given, QUEUE, 64),
            "timeout": _whole(given, TIMEOUT, 30),
            "trusted": () if imported is None else (imported,),
        }
    )  # fmt: skip


def _whole(given: Arguments, option: Option, default: int, most: int = 100_000) -> int:
    text = given.value(option.name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise InputError(f"{option.name} is {text!r}, and must be a whole number from 1 to {most}.")
    return int(text)


@contextlib.contextmanager
def _running(settings: Settings, place: Place) -> Iterator[None]:
    """Have the application run within the block.

    Raises:
        InputError: it does not start.
    """
    from ray import serve

    from safe_ray import job
    from safe_ray.serving.app import NAME, build

    if not job.is_submitted():
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        logging.getLogger("ray").setLevel(logging.CRITICAL)
    there = serve.status()
    own = not there.proxies and not there.applications
    if NAME in there.applications:
        raise InputError(
            f"The cluster serves an application {NAME} already: end it, or use another cluster."
        )
    _start(serve, place, settings)
    try:
        serve.run(build(settings.to_json()), name=NAME, route_prefix="/")
    except RuntimeError as error:
        reason = _reason(serve.status(), str(error))
        raise InputError(f"The server did not start: {reason}") from error
    try:
        yield
    finally:
        _take_down(serve, NAME, own)


def _take_down(serve: Any, name: str, own: bool) -> None:
    """End the application, and Serve with it if nobody else uses it.

    Of a cluster that was joined it would go on otherwise. What has to be told within the second
    that is left after SIGTERM is told first, and Ray's remarks about its own end are not shown.
    """
    import ray

    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        serve.delete(name, _blocking=False)
        if own:
            serve.shutdown()
        ray.shutdown()


def _start(serve: Any, place: Place, settings: Settings) -> None:
    from ray.serve.exceptions import RayServeException

    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": place.host,
                "port": place.port,
                # Ours is said in a sentence, and comes first.
                "request_timeout_s": settings.timeout + 5,
            },
        )
    except (RayServeException, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise InputError(
            f"Ray Serve could not be started at {place.host}:{place.port} ({reason}): name another "
            "port with --port."
        ) from error


def _reason(status: Any, otherwise: str) -> str:
    """Return the sentence that a replica ended with, out of the tracebacks that Serve keeps."""
    texts = [
        found.message
        for application in status.applications.values()
        for found in (application, *application.deployments.values())
    ]
    for text in texts:
        matches = _ERROR.findall(text.replace("\\n", "\n"))
        if matches:
            return str(matches[-1])
    return (otherwise.strip() or "its log says why").splitlines()[0]
