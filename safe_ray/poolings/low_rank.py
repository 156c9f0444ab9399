"""A pooling whose projections are tuned by a product of two thin matrices.

A weight W of a projection is `W_0 + U D` with U `[out, r]` and D `[r, in]`: W_0 stays as it is, U
begins at zero and D at random, so that training begins at the original pooling (LoRA, Hu et al.,
ICLR 2022). The difference to the original pooling takes `r (in + out)` numbers instead of
`in * out`.

The heads of a bank share W_0, which is held once, and where the family can (`SharedProducts`) the
products with it are shared, too: no head's W is ever formed, and there is no gradient of W's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from safe_ray.poolings.base import Cut, HeadState, Pooling

if TYPE_CHECKING:
    from safe_ray.heads.bank import Bank
    from safe_ray.heads.optimiser import BankOptimiser
    from safe_ray.heads.step import Step

UP, DOWN = ".up", ".down"


@runtime_checkable
class SharedProducts(Protocol):
    """A pooling that can pool with `W_0 + U D` without forming it."""

    def pool_low_rank(self, tokens: Tensor, shared: HeadState, factors: HeadState) -> Tensor:
        """Pool with K heads at once: `[K, N, D]`.

        Args:
            tokens: as `prepare` returns them.
            shared: the pooling's own parameters, of which the K heads have the same.
            factors: `<name>.up` `[K, out, r]` and `<name>.down` `[K, r, in]` of the weights that
                differ.
        """
        ...


@dataclass(frozen=True)
class LowRank:
    """The form in which a bank trains such heads, of any family's pooling; it is no tower's own.

    Attributes:
        base: the pooling.
        names: of the weights that are tuned.
    """

    groups: ClassVar[tuple[str, ...]] = ()
    inert: ClassVar[frozenset[str]] = frozenset()

    base: Pooling
    names: tuple[str, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the factors, which are all that is trained."""
        return tuple(name + end for name in self.names for end in (UP, DOWN))

    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        """See `Pooling`."""
        return False

    @classmethod
    def cut(cls, visual: nn.Module, image_size: int) -> Cut:
        """See `Pooling`."""
        raise ValueError("updates of low rank are a form of another pooling, which cuts the tower")

    def prepare(self, maps: Tensor) -> Tensor:
        """See `Pooling`."""
        return self.base.prepare(maps)

    def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`; the K heads must have the same W_0, of which the first one is read."""
        if not isinstance(self.base, SharedProducts):
            return self.base.pool(tokens, merged(state))
        factors = {name: tensor for name, tensor in state.items() if name.endswith((UP, DOWN))}
        shared = {name: tensor[0] for name, tensor in state.items() if name not in factors}
        return self.base.pool_low_rank(tokens, shared, factors)

    def attention(self, tokens: Tensor, state: HeadState) -> Tensor:
        """See `Pooling`."""
        return self.base.attention(tokens, merged(state))

    def activation_bytes(self, state: HeadState, batch_size: int) -> int:
        """See `Pooling`; weights that have to be merged, and their gradients, are on top."""
        merging = not isinstance(self.base, SharedProducts)
        weights = sum(state[name].numel() for name in self.names) if merging else 0
        return self.base.activation_bytes(state, batch_size) + 2 * 4 * weights

    def step(self, bank: Bank, optimiser: BankOptimiser) -> Step | None:
        """See `Pooling`: autograd finds the gradients of the factors."""
        return None


def weights_of(names: Sequence[str], original: HeadState) -> tuple[str, ...]:
    """Return which of the chosen parameters are matrices of projections.

    They are called weights, but for the last projection of open_clip's transformers, which has the
    name of a layer; a table of positions is no projection.
    """
    return tuple(
        name
        for name in names
        if original[name].dim() == 2 and (name.endswith("weight") or name.split(".")[-1] == "proj")
    )


def beginning(
    original: HeadState, names: Sequence[str], ranks: Sequence[int], seed: int
) -> list[dict[str, Tensor]]:
    """Return the states of candidates that have not been trained: their factors alone.

    All have those of the largest rank, padded with zeros: a row of D that is zero beside a
    column of U that is zero has no gradient, and stays so.

    Args:
        original: the original head.
        names: of the weights that are tuned.
        ranks: r of each candidate.
        seed: draws D, which is the same for all candidates but for its rows.
    """
    generator = torch.Generator().manual_seed(seed)
    largest = max(ranks)
    down = {
        name: torch.randn(largest, original[name].shape[1], generator=generator)
        / math.sqrt(original[name].shape[1])
        for name in names
    }
    states = []
    for rank in ranks:
        factors: dict[str, Tensor] = {}
        for name in names:
            factors[name + UP] = torch.zeros(original[name].shape[0], largest)
            factors[name + DOWN] = down[name].clone()
            factors[name + DOWN][rank:] = 0.0
        states.append(factors)
    return states


def merged(state: HeadState) -> dict[str, Tensor]:
    """Return the state of the pooling itself; the factors may have a leading axis of K."""
    plain = {name: tensor for name, tensor in state.items() if not name.endswith((UP, DOWN))}
    for name in list(plain):
        if name + UP in state:
            plain[name] = plain[name] + state[name + UP] @ state[name + DOWN]
    return plain


def factors_of(
    head: HeadState, original: HeadState, names: Sequence[str], rank: int
) -> dict[str, Tensor]:
    """Return the factors, of the given rank, of what a head differs by from the original one.

    U is an orthonormal basis of the difference's columns, found from random combinations of them,
    and D is the difference in that basis: exact but for rounding, where the difference has no
    higher rank.
    """
    generator = torch.Generator().manual_seed(0)
    factors: dict[str, Tensor] = {}
    for name in names:
        difference = head[name].double().cpu() - original[name].double().cpu()
        drawn = torch.randn(difference.shape[1], rank, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(difference @ drawn).Q
        factors[name + UP] = basis.float().contiguous()
        factors[name + DOWN] = (basis.t() @ difference).float().contiguous()
    return factors


def with_factors(original: HeadState, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the head that factors and the original head make."""
    device = next(iter(factors.values())).device
    moved = {name: tensor.to(device) for name, tensor in original.items()}
    return merged({**moved, **factors})
