"""What a request may cost, in bytes and seconds; no server is needed to see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import FastAPI, Request

from safe_ray.serving.limits import Limits

MOST = 1000


def application(seconds: float) -> FastAPI:
    app = FastAPI()
    app.add_middleware(Limits, most_bytes=MOST, timeout=seconds)

    @app.post("/echo")
    async def echo(request: Request, wait: float = 0.0) -> dict[str, int]:
        size = len(await request.body())
        await asyncio.sleep(wait)
        return {"size": size}

    return app


def answer(
    app: FastAPI,
    chunks: Sequence[bytes],
    announced: int | str | None = None,
    query: str = "",
    pause: float = 0.0,
) -> tuple[int, dict[str, Any]]:
    """Send a body in pieces, and return the status and the JSON that come back."""
    headers = [] if announced is None else [(b"content-length", str(announced).encode())]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/echo",
        "raw_path": b"/echo",
        "query_string": query.encode(),
        "headers": headers,
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }
    sent: list[dict[str, Any]] = []
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        if not left:
            await asyncio.sleep(60)
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(app(scope, receive, send), 60))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body)


def test_what_is_within_the_limits_passes() -> None:
    assert answer(application(30), [b"x" * 400, b"y" * 600], MOST) == (200, {"size": 1000})


@pytest.mark.parametrize("announced", [MOST + 1, "many", "-1"])
def test_a_length_that_is_too_large_or_none_is_refused_unread(announced: int | str) -> None:
    status, said = answer(application(30), [], announced)
    assert status == 413
    assert "more than 1000 bytes" in said["error"]


@pytest.mark.parametrize("announced", [None, 10])
def test_bytes_are_counted_whatever_was_announced(announced: int | None) -> None:
    status, said = answer(application(30), [b"x" * 600, b"y" * 600], announced)
    assert status == 413
    assert "send fewer or smaller images" in str(said)


def test_an_upload_that_dawdles_is_told_so() -> None:
    status, said = answer(application(0.2), [b"x"] * 400, pause=0.05)
    assert (status, said["error"][:34]) == (408, "The request was not uploaded withi")


def test_an_answer_that_takes_too_long_is_told_so() -> None:
    status, said = answer(application(0.2), [b"x"], query="wait=30")
    assert (status, said["error"][:34]) == (504, "The request was not answered withi")
