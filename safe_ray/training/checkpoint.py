"""A bank's training state as tensors and JSON: weights, AdamW moments, losses and epoch.

It lies in one safetensors file, and travels between workers in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safe_ray.files import replacing
from safe_ray.heads.optimiser import Moments
from safe_ray.training.members import MemberState, TrainingState


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
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("owner") != owner:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return unpack(tensors, metadata["state"])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


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
    about = json.loads(text)
    members = []
    for index, facts in enumerate(about["members"]):
        head = _under(tensors, f"{index}.head.")
        moments = None
        if facts["updates"] is not None:
            first, second = (_under(tensors, f"{index}.{kind}.") for kind in ("first", "second"))
            moments = Moments(first, second, facts["updates"])
        losses = [float("nan") if loss is None else loss for loss in facts["losses"]]
        members.append(MemberState(head, moments, losses, facts["failed"]))
    return TrainingState(about["epoch"], members)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with the prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
