"""A bank's training state as tensors and JSON: weights, AdamW moments, losses and epoch.

It lies in one safetensors file, and travels between workers in the same form.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safe_ray.files import replacing
from safe_ray.heads.optimiser import Moments
from safe_ray.outside import check_file, parse_json
from safe_ray.training.members import MemberState, TrainingState

_MOST_EPOCHS = 10**9


def save_state(path: Path, state: TrainingState, owner: str) -> None:
    """Write the state so that a reader finds the old one or this one whole.

    Args:
        path: the file.
        state: what `train_bank` passes to `on_checkpoint`.
        owner: a digest of what is being trained; `load_state` asks for the same.
    """
    tensors, about = pack(state)
    metadata = {"owner": owner, "state": about}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_state(path: Path, owner: str) -> TrainingState | None:
    """Read a state back, or return None if there is none for this `owner` that can be read."""
    try:
        check_file(path, sys.maxsize)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("owner") != owner:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return unpack(tensors, metadata["state"])
    # A file that somebody else wrote can have anything in place of anything.
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError):
        return None


def goes_on(state: TrainingState, start: TrainingState, moving: Sequence[str]) -> bool:
    """Return whether training can go on from `state` where it would begin with `start`.

    Args:
        state: what a checkpoint held.
        start: of the same bank, before its first epoch.
        moving: the names of the parameters that training changes.
    """
    return (
        len(state.members) == len(start.members)
        and 0 <= state.epoch <= _MOST_EPOCHS
        and len({member.moments is None for member in state.members if not member.failed}) <= 1
        and all(
            _goes_on(member, first, moving, state.epoch)
            for member, first in zip(state.members, start.members, strict=True)
        )
    )


def _goes_on(member: MemberState, first: MemberState, moving: Sequence[str], epoch: int) -> bool:
    wanted = {name: tensor.shape for name, tensor in first.head.items()}
    states = [(member.head, wanted)]
    if member.moments is not None:
        moved = {name: wanted[name] for name in moving}
        states += [(member.moments.first, moved), (member.moments.second, moved)]
        if member.moments.updates < 0:
            return False
    return len(member.losses) <= epoch and all(
        {name: tensor.shape for name, tensor in found.items()} == shapes
        and all(tensor.dtype == torch.float32 for tensor in found.values())
        for found, shapes in states
    )


def pack(state: TrainingState) -> tuple[dict[str, Tensor], str]:
    """Return the state as named tensors, and as JSON what is no tensor."""
    tensors: dict[str, Tensor] = {}
    about = []
    for index, member in enumerate(state.members):
        for name, tensor in member.head.items():
            tensors[f"{index}.head.{name}"] = tensor.contiguous().clone()
        if member.moments is not None:
            for name, tensor in member.moments.first.items():
                tensors[f"{index}.first.{name}"] = tensor.contiguous()
            for name, tensor in member.moments.second.items():
                tensors[f"{index}.second.{name}"] = tensor.contiguous()
        updates = None if member.moments is None else member.moments.updates
        # JSON has no NaN, and a failed member has a loss that is one.
        losses = [loss if loss == loss else None for loss in member.losses]
        about.append({"losses": losses, "failed": member.failed, "updates": updates})
    return tensors, json.dumps({"epoch": state.epoch, "members": about})


def unpack(tensors: Mapping[str, Tensor], text: str) -> TrainingState:
    """Return the state that `pack` took apart."""
    about = parse_json(text)
    members = []
    for index, facts in enumerate(about["members"]):
        head = _under(tensors, f"{index}.head.")
        moments = None
        if facts["updates"] is not None:
            first, second = (_under(tensors, f"{index}.{kind}.") for kind in ("first", "second"))
            moments = Moments(first, second, _whole(facts["updates"]))
        losses = [float("nan") if loss is None else float(loss) for loss in facts["losses"]]
        members.append(MemberState(head, moments, losses, bool(facts["failed"])))
    return TrainingState(_whole(about["epoch"]), members)


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with the prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
