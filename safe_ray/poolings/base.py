"""What a family of attention poolings is, and how the right one is found for a tower."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from safe_ray.errors import InputError
from safe_ray.outside import is_module_name

if TYPE_CHECKING:
    from safe_ray.heads.bank import Bank
    from safe_ray.heads.optimiser import BankOptimiser
    from safe_ray.heads.step import Step

HeadState = Mapping[str, Tensor]
"""One head: the pooling's parameters by the tower's own names."""

NAME = "POOLING"

PROJECTION = "projection"
"""What every family calls its output projection, beside its own word for it."""

QUERIES = "queries"
"""The part that is the absorbed queries alone (see `safe_ray.poolings.queries`)."""


@dataclass(frozen=True)
class Cut:
    """An image tower in two: what stays frozen, and what is tuned.

    Attributes:
        trunk: images `[N, 3, S, S]` -> tokens `[N, L, C]`; frozen.
        pooling: the pooling as a function of tokens and a state.
        state: its parameters under the tower's own names.
        prefix: what precedes these names in the whole model's state dict, such as
            `visual.attnpool.`; `visual.` where the pooling is spread over the tower.
        tokens: L.
        width: C.
        embed_dim: D, the size of what the pooling returns.
        identity: what decides the trunk's function besides its weights, as JSON values.
    """

    trunk: nn.Module
    pooling: Pooling
    state: dict[str, Tensor]
    prefix: str
    tokens: int
    width: int
    embed_dim: int
    identity: Mapping[str, Any]


class Pooling(Protocol):
    """One family's pooling, with the integers that shape it as fields of a frozen dataclass.

    It holds no weights: `pool` is a pure function of tokens and a state. Two poolings are equal
    when they are the same function, and `to_json` is all that a worker needs to have it, too.
    """

    groups: ClassVar[tuple[str, ...]]
    """The parts that may be chosen for training; a part stands for every name that begins with it,
    unless the family is `Grouped`.
    """

    inert: ClassVar[frozenset[str]]
    """Names of parameters whose gradient is exactly zero."""

    # A family may have four more class variables, which `projection_of`, `leading_of`, `alone_of`
    # and `select_parameters` read:
    #   projection: the part that is the output projection, which every family calls `projection`.
    #   leading: how many tokens of a map come before those of the grid, such as a class token; a
    #     field, if towers of the family differ in it.
    #   queried: whether its absorbed queries can be trained alone, as the part `queries`.
    #   alone: what such a tower has, where that is no more than an output projection; "all" is
    #     refused then.

    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        """Return whether a tower is of this family."""
        ...

    @classmethod
    def cut(cls, visual: nn.Module, image_size: int) -> Cut:
        """Cut a tower, which is used up.

        Args:
            visual: open_clip's image tower.
            image_size: the side of its images, in pixels.

        Raises:
            ValueError: its parts do not fit each other; the message says which.
        """
        ...

    def prepare(self, maps: Tensor) -> Tensor:
        """Return the tokens that `pool` takes, from dense maps `[N, L, C]` of any dtype.

        They are float32, or float64 if the maps are.
        It is what does not depend on a head, so that the heads of a bank share it.
        """
        ...

    def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
        """Pool with K heads at once: the state has a leading axis of K; returns `[K, N, D]`.

        `pool_each` makes it of a function of one head.
        """
        ...

    def attention(self, tokens: Tensor, state: HeadState) -> Tensor:
        """Return how much each token of the map counts in what each head of attention pools.

        A token that is made of others, such as their mean, counts as they do: its weight is
        theirs, in the shares in which it is made of them. So the weights of a map add up to 1.
        Those of the grid alone (`leading_of`) may add up to less: a class token has seen the whole
        image and no place of it, so that its weight is nobody else's.

        Args:
            tokens: as `prepare` returns them, of N maps.
            state: with a leading axis of K.

        Returns:
            `[K, N, H, L]`, not negative, in the dtype of the tokens: of K states, N maps, H heads
            of attention and the L tokens of the map.
        """
        ...

    def activation_bytes(self, state: HeadState, batch_size: int) -> int:
        """Return about how many bytes one head keeps between a step's forward and backward pass."""
        ...

    def step(self, bank: Bank, optimiser: BankOptimiser) -> Step | None:
        """Return a hand-written training step for the bank's device, or None for autograd's."""
        ...


@runtime_checkable
class Grouped(Protocol):
    """A pooling whose parts have other words than those with which its parameters' names begin."""

    @classmethod
    def group_of(cls, name: str) -> str | None:
        """Return the part that a parameter belongs to, one of `groups`."""
        ...


@runtime_checkable
class Graphable(Protocol):
    """A pooling whose `prepare` or `pool` a graph cannot hold, since they write into memory."""

    def pool_in_graph(self, maps: Tensor, state: HeadState) -> Tensor:
        """Pool with K heads at once by operations that have no effect but their result.

        Args:
            maps: `[N, L, C]` float32; N may be symbolic.
            state: with a leading axis of K.

        Returns:
            `[K, N, D]`.
        """
        ...


def pool_in_graph(pooling: Pooling, maps: Tensor, state: HeadState) -> Tensor:
    """Pool as `Graphable` says, where the family is one, and by `prepare` and `pool` elsewhere."""
    if isinstance(pooling, Graphable):
        return pooling.pool_in_graph(maps, state)
    return pooling.pool(pooling.prepare(maps), state)


def pool_each(
    pool_one: Callable[[Tensor, HeadState], Tensor], tokens: Tensor, state: HeadState
) -> Tensor:
    """Pool with K stacked heads by `torch.vmap` of the pooling of one head.

    Args:
        pool_one: tokens and one head's state to `[N, D]`.
        tokens: shared by all heads.
        state: each tensor with a leading axis of K.

    Returns:
        `[K, N, D]`.
    """
    names = list(state)

    def one(*tensors: Tensor) -> Tensor:
        return pool_one(tokens, dict(zip(names, tensors, strict=True)))

    pooled: Tensor = torch.vmap(one)(*(state[name] for name in names))
    return pooled


def select_parameters(
    pooling: Pooling | type[Pooling], groups: Sequence[str] | str, names: Sequence[str]
) -> tuple[str, ...]:
    """Return which of a state's names the `groups` stand for.

    Args:
        pooling: what is tuned.
        groups: "all", or some of the pooling's; `projection` is the output projection of any, and
            `queries`, for which there is no name in the state, stands alone.
        names: of the state.

    Raises:
        InputError: a group is not one of the pooling's, stands for none of the names, or none is
            given; or there is no more than an output projection, and "all" is asked for.
    """
    alone = alone_of(pooling)
    if groups == "all" and alone:
        raise InputError(
            f"The model {alone}: choose methods that tune the output projection, such as "
            "tuned_projection and prolip, or none, such as tip_adapter_f, or give "
            f"training.parameters=[{PROJECTION}]."
        )
    queried = bool(getattr(pooling, "queried", False))
    if queried and tuple(groups) == (QUERIES,):
        return (QUERIES,)
    if queried and groups != "all" and QUERIES in groups:
        raise InputError(
            f"training.parameters={list(groups)} trains other parts beside {QUERIES}, which are "
            f"trained alone: give [{QUERIES}], or leave them out."
        )
    own = projection_of(pooling)
    group_of = {name: _group_of(name, pooling) for name in names}
    # Towers of a family may differ in what they have, such as a head behind the pooling.
    present = [group for group in pooling.groups if group in group_of.values()]
    chosen = tuple(present if groups == "all" else groups)
    chosen = tuple(own if group == PROJECTION and own else group for group in chosen)
    unknown = [group for group in chosen if group not in present]
    if unknown or not chosen:
        more = (*((PROJECTION,) if own else ()), *((QUERIES,) if queried else ()))
        words = dict.fromkeys((*present, *more))
        raise InputError(
            f"training.parameters={list(chosen)} names {unknown or 'nothing'}, which this pooling "
            f"has not: choose among {', '.join(words)}, or all."
        )
    return tuple(name for name, group in group_of.items() if group in chosen)


def projection_of(pooling: Pooling | type[Pooling]) -> str | None:
    """Return the pooling's own word for its output projection, or None if it has no linear one."""
    own: str | None = getattr(pooling, "projection", None)
    return own


def alone_of(pooling: Pooling | type[Pooling]) -> str:
    """Return what a tower has that has no more than an output projection; "" if it has more."""
    return str(getattr(pooling, "alone", ""))


def leading_of(pooling: Pooling) -> int:
    """Return how many tokens of a map come before those of the grid."""
    return int(getattr(pooling, "leading", 0))


def _group_of(name: str, pooling: Pooling | type[Pooling]) -> str | None:
    if isinstance(pooling, Grouped):
        return pooling.group_of(name)
    groups = pooling.groups
    return next((g for g in groups if name == g or name.startswith(f"{g}.")), None)


def families() -> Iterator[type[Pooling]]:
    """Yield the families that come with the package, those with no more than a projection last."""
    import safe_ray.poolings

    found = [
        getattr(importlib.import_module(module.name), NAME, None)
        for module in pkgutil.iter_modules(safe_ray.poolings.__path__, "safe_ray.poolings.")
    ]
    yield from sorted(filter(None, found), key=lambda family: bool(alone_of(family)))


def find_pooling(visual: nn.Module, module: str | None = None) -> type[Pooling] | None:
    """Return the family of a tower, or None if there is none.

    Args:
        visual: open_clip's image tower.
        module: a module that defines `POOLING`, to be asked instead of the package's families.

    Raises:
        InputError: there is no such module, or it defines no pooling.
    """
    candidates = families() if module is None else [family_in(module)]
    return next((family for family in candidates if family.matches(visual)), None)


def family_in(module: str) -> type[Pooling]:
    """Return the family that a module defines.

    Raises:
        InputError: there is no such module, or it defines no pooling.
    """
    if not is_module_name(module):
        raise InputError(f"backbone.pooling={module!r} is no module: give its dotted name.")
    try:
        family: type[Pooling] | None = getattr(importlib.import_module(module), NAME, None)
    except ImportError as error:
        raise InputError(
            f"backbone.pooling={module} cannot be imported ({error}): name a module on Python's "
            "path."
        ) from error
    if family is None:
        raise InputError(
            f"backbone.pooling={module} defines no {NAME}: assign the family's class to that name."
        )
    return family


def to_json(pooling: Pooling) -> dict[str, Any]:
    """Return a pooling as JSON values: the module of its family, and its integers."""
    values: dict[str, Any] = asdict(pooling)  # type: ignore[call-overload]
    return {"module": type(pooling).__module__, **values}


def from_json(value: Mapping[str, Any]) -> Pooling:
    """Return the pooling that `to_json` described.

    Raises:
        InputError: its family is not installed here.
    """
    fields = {name: field for name, field in value.items() if name != "module"}
    family = family_in(str(value.get("module")))
    try:
        return family(**fields)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A pooling of {family.__module__} cannot have the shape {fields} ({error}): give the "
            "command that wrote it again."
        ) from error
