"""What waits while something is computed is computed together next."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from safe_ray.serving.gathering import Gathering

PATIENCE = 30.0


class Work:
    """Doubles numbers when it is let, and remembers which came together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.let = threading.Event()
        self.begun = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.set()
        assert self.let.wait(PATIENCE)
        if 13 in numbers:
            raise ValueError("13")
        return [2 * number for number in numbers]


async def begun(work: Work) -> None:
    assert await asyncio.to_thread(work.begun.wait, PATIENCE)


def test_calls_that_wait_make_the_next_batch() -> None:
    async def scene() -> None:
        work = Work()
        gathering = Gathering(work, lambda _: 1, most=4)
        first = asyncio.create_task(gathering([1]))
        await begun(work)
        others = [asyncio.create_task(gathering([number])) for number in range(2, 8)]
        await asyncio.sleep(0)
        work.let.set()
        assert await first == [2]
        assert await asyncio.gather(*others) == [[2 * number] for number in range(2, 8)]
        assert work.batches == [[1], [2, 3, 4, 5], [6, 7]]

    asyncio.run(scene())


def test_a_large_item_goes_alone_and_none_is_too_large() -> None:
    async def scene() -> None:
        work = Work()
        work.let.set()
        gathering = Gathering(work, lambda number: number, most=10)
        assert await gathering([4, 5, 30, 2]) == [8, 10, 60, 4]
        assert work.batches == [[4, 5], [30], [2]]

    asyncio.run(scene())


def test_a_failure_is_told_to_those_who_wait_for_it_and_the_rest_goes_on() -> None:
    async def scene() -> None:
        work = Work()
        work.let.set()
        gathering = Gathering(work, lambda _: 1, most=1)
        with pytest.raises(ValueError, match="13"):
            await gathering([13])
        assert await gathering([4]) == [8]

    asyncio.run(scene())


def test_what_nobody_waits_for_is_not_computed() -> None:
    async def scene() -> None:
        work = Work()
        gathering = Gathering(work, lambda _: 1, most=4)
        first = asyncio.create_task(gathering([1]))
        await begun(work)
        second = asyncio.create_task(gathering([2]))
        third = asyncio.create_task(gathering([3]))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        work.let.set()
        assert await first == [2]
        assert await third == [6]
        assert work.batches == [[1], [3]]

    asyncio.run(scene())
