"""The members of a bank: what each is trained with, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from safe_ray.errors import InputError
from safe_ray.heads.optimiser import Moments
from safe_ray.poolings.base import HeadState
from safe_ray.specs import Values


@dataclass(frozen=True)
class Member:
    """One head of a bank to train.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled weight decay.
        epochs: passes over the support set; a member that is done leaves the bank.
        include: one flag a support sample, or None for all of them (see cross-validation).
        decay_to_start: decoupled decay towards the original pooling (see `PullToStart`).
        temperature: what the loss multiplies the logit scale with.
        distance_penalty: weight in the loss of the squared distance from the original pooling.
        logit_pull: weight in the loss of the mean absolute difference of its logits to the original
            pooling's.
    """

    lr: float = 1e-4
    weight_decay: float = 0.01
    epochs: int = 30
    include: tuple[bool, ...] | None = None
    decay_to_start: float = 0.0
    temperature: float = 1.0
    distance_penalty: float = 0.0
    logit_pull: float = 0.0

    @property
    def is_held(self) -> bool:
        """Whether anything holds it near the original pooling."""
        return any(getattr(self, name) for name in HOLDING)

    @classmethod
    def of(cls, values: Values, include: tuple[bool, ...] | None = None) -> Member:
        """Return the member that a candidate's values describe.

        Args:
            values: any of `QUANTITIES`; the others are as the fields' defaults have them.
            include: see the field.

        Raises:
            InputError: a name is not one of `QUANTITIES`.
        """
        unknown = sorted(set(values) - set(QUANTITIES))
        if unknown:
            raise InputError(
                f"The space names {', '.join(unknown)}, which training a pooling does not know: it "
                f"knows {', '.join(QUANTITIES)}."
            )
        known: dict[str, Any] = dict(values)
        if "epochs" in known:
            known["epochs"] = round(known["epochs"])
        return cls(**known, include=include)


QUANTITIES = (
    "lr",
    "weight_decay",
    "epochs",
    "decay_to_start",
    "distance_penalty",
    "logit_pull",
    "temperature",
)
"""The names of what a candidate may say of its training."""

HOLDING = ("decay_to_start", "distance_penalty", "logit_pull")
"""Those that hold a head near the original one."""


@dataclass
class MemberState:
    """How far one member has come: weights, optimiser state, mean loss of each epoch so far."""

    head: HeadState
    moments: Moments | None = None
    losses: list[float] = field(default_factory=list)
    failed: bool = False


@dataclass
class TrainingState:
    """All members after `epoch` whole epochs: what a checkpoint holds."""

    epoch: int
    members: list[MemberState]
