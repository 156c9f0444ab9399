"""A mapping whose values are read when they are asked for, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Lazily(Mapping[_Key, _Value]):
    """What `read` gives for each of some keys.

    Args:
        keys: all of them.
        read: returns the value of one.
    """

    def __init__(self, keys: Collection[_Key], read: Callable[[_Key], _Value]) -> None:
        self._keys = keys
        self._read = read

    def __getitem__(self, key: _Key) -> _Value:
        if key not in self._keys:
            raise KeyError(key)
        return self._read(key)

    def __iter__(self) -> Iterator[_Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
