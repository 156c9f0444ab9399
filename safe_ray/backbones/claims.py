"""Which of open_clip's models can be tuned, by which family, and at what size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from torch.overrides import TorchFunctionMode

from safe_ray.backbones.creation import first_line
from safe_ray.backbones.openclip import cut_tower, empty_tower, side_of
from safe_ray.errors import InputError
from safe_ray.poolings.base import Cut
from safe_ray.specs import BackboneSpec

# What initialises weights in place; without memory it changes nothing.
_DRAWS = frozenset(
    ("add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_")
)
_BYTES = 2
_PACKAGE = "safe_ray.poolings."


@dataclass(frozen=True)
class Claim:
    """What there is to tune of one model.

    Attributes:
        model: open_clip's name of it.
        family: the module of the family that claims it, without the package where it is ours; ""
            if none does.
        why: why it is left out; "" if it is not.
        pixels: the side of an image.
        tokens: of a dense map.
        width: of a token.
        tuned: how many numbers the pooling has.
    """

    model: str
    family: str = ""
    why: str = ""
    pixels: int = 0
    tokens: int = 0
    width: int = 0
    tuned: int = 0

    @property
    def view_bytes(self) -> int:
        """Of one view's dense map in the feature store, fp16."""
        return self.tokens * self.width * _BYTES


def claim(model: str) -> Claim:
    """Return which family claims one of open_clip's models, or why none does.

    Nothing is downloaded, and no weight has memory.
    """
    try:
        tower, cut = cut_on_paper(model)
    except InputError as error:
        return Claim(model, why=str(error))
    # What a model of another version of open_clip or timm lacks can be anything.
    except Exception as error:
        return Claim(model, why=f"Its image tower cannot be built: {first_line(error)}.")
    return claim_of(model, tower, cut)


def claim_of(model: str, tower: Any, cut: Cut) -> Claim:
    """Return the claim of a model that `cut_on_paper` has cut."""
    return Claim(
        model=model,
        family=type(cut.pooling).__module__.removeprefix(_PACKAGE),
        pixels=side_of(tower),
        tokens=cut.tokens,
        width=cut.width,
        tuned=sum(tensor.numel() for tensor in cut.state.values()),
    )


def cut_on_paper(model: str) -> tuple[Any, Cut]:
    """Return the image tower of a model, used up, and what it was cut into, on the meta device.

    Raises:
        InputError: no family knows it, or its parts do not fit each other.
    """
    with _NothingDrawn():
        tower = empty_tower(open_clip.get_model_config(model))
    return tower, cut_tower(tower, side_of(tower), BackboneSpec(model, model))


class _NothingDrawn(TorchFunctionMode):
    """Leave out what would fill tensors that have no memory: most of the time of building them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if (
            getattr(func, "__name__", "") in _DRAWS
            and isinstance(first, torch.Tensor)
            and first.is_meta
        ):
            return first
        return func(*args, **(kwargs or {}))
