"""Queries of a pooling as parameters of their own: what `training.parameters=[queries]` trains.

Where the projections of query and key are absorbed, a head of attention asks a token by one vector
u of the token's size (see `safe_ray.poolings.absorbed` and `constant_query`). Here u becomes u + d,
with a d for each head of attention that begins at zero, and nothing else is trained: H times C
numbers, and no product with a large matrix has a gradient.

A bank's heads share all else, which is held once.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from safe_ray.poolings.base import QUERIES, HeadState, Pooling


@runtime_checkable
class Queried(Protocol):
    """A pooling whose absorbed queries can be trained alone.

    `pool` and `attention` add `state["queries"]`, `[K, H, C]`, to them where it is there.
    """

    num_heads: int

    def tokens_width(self, state: HeadState) -> int:
        """Return C, from the state of one head."""
        ...

    def with_queries(self, state: HeadState, queries: Tensor) -> dict[str, Tensor]:
        """Return the state of one head whose absorbed queries are larger by `[H, C]`.

        It has the tower's own names alone where they can say it, and `queries` where they cannot.
        """
        ...


def beginning(
    pooling: Pooling, original: HeadState, trained: tuple[str, ...]
) -> tuple[HeadState, HeadState]:
    """Return the state that a head begins with, and what all heads of its bank share.

    Args:
        pooling: what is tuned.
        original: the original head.
        trained: what is trained of it (see `safe_ray.poolings.base.select_parameters`).
    """
    if trained != (QUERIES,):
        return original, {}
    assert isinstance(pooling, Queried)
    some = next(iter(original.values()))
    return {QUERIES: some.new_zeros(pooling.num_heads, pooling.tokens_width(original))}, original


def ended(pooling: Pooling, original: HeadState, head: HeadState) -> HeadState:
    """Return the whole head that training made of what `beginning` returned."""
    if set(head) != {QUERIES}:
        return head
    assert isinstance(pooling, Queried)
    moved = {name: tensor.to(head[QUERIES].device) for name, tensor in original.items()}
    return pooling.with_queries(moved, head[QUERIES])


def kept(head: HeadState) -> HeadState:
    """Return what a file needs to have of a head: no more than the queries where they are all."""
    return {QUERIES: head[QUERIES]} if QUERIES in head else head
