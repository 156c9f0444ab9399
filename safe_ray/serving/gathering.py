"""Calls that wait while others are computed are computed together next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Gathering(Generic[_Item, _Result]):
    """One thread that computes, and a queue before it that it takes as much of as it may.

    `serve.batch` closes a batch when a few milliseconds are over, whether or not anything is free
    to compute it; under load many small batches would wait one behind the other.

    Args:
        work: computes some items; it returns a result for each, and is called on one thread.
        size: of an item.
        most: what is taken together, unless the first item alone is larger.
    """

    def __init__(
        self,
        work: Callable[[Sequence[_Item]], Sequence[_Result]],
        size: Callable[[_Item], int],
        most: int,
    ) -> None:
        self._work = work
        self._size = size
        self._most = most
        self._waiting: deque[tuple[_Item, asyncio.Future[_Result]]] = deque()
        self._thread = ThreadPoolExecutor(1, "compute")
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, items: Sequence[_Item]) -> list[_Result]:
        """Return a result for each item."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await asyncio.gather(*futures)

    async def alone(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Compute something else on the same thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _run(self) -> None:
        while self._waiting:
            taken = self._take()
            if not taken:
                break
            try:
                results = await self.alone(self._work, [item for item, _ in taken])
            # Whatever it was, it belongs to those who wait for these items.
            except Exception as error:
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(taken, results, strict=True):
                # Whoever has stopped waiting has cancelled it.
                if not future.done():
                    future.set_result(result)

    def _take(self) -> list[tuple[_Item, asyncio.Future[_Result]]]:
        taken: list[tuple[_Item, asyncio.Future[_Result]]] = []
        total = 0
        while self._waiting:
            item, future = self._waiting[0]
            if taken and total + self._size(item) > self._most:
                break
            self._waiting.popleft()
            if future.done():
                continue
            total += self._size(item)
            taken.append((item, future))
        return taken
