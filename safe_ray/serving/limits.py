"""What a request may cost: an ASGI middleware that counts its bytes and its seconds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Limits:
    """Answers 413 to a body that is too large, 408 to one that is too slow, 504 if we are.

    Args:
        app: what answers otherwise.
        most_bytes: of a body, whether its length was announced or not.
        timeout: seconds from the first byte of the request to the last one of the answer.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, timeout: float) -> None:
        self._app = app
        self._most = most_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._most:
            await JSONResponse({"error": self._too_large()}, 413)(scope, receive, send)
            return
        state: dict[str, Any] = {"bytes": 0, "received": False, "answering": False}

        async def counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                state["bytes"] += len(message.get("body", b""))
                state["received"] = not message.get("more_body", False)
                if state["bytes"] > self._most:
                    raise HTTPException(413, self._too_large())
            return message

        async def noted(message: Message) -> None:
            state["answering"] = True
            await send(message)

        try:
            async with asyncio.timeout(self._timeout):
                await self._app(scope, counted, noted)
        except TimeoutError:
            if state["answering"]:
                raise
            status, what = (504, "answered") if state["received"] else (408, "uploaded")
            said = f"The request was not {what} within {self._timeout:g} s: try again later."
            await JSONResponse({"error": said}, status)(scope, receive, send)

    def _too_large(self) -> str:
        return (
            f"The request has more than {self._most} bytes, which is all that this server takes: "
            "send fewer or smaller images."
        )
