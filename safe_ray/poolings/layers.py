"""Layers of K heads at once, and the activations that towers have between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

QUICK = 1.702


def _quick_gelu(inputs: Tensor) -> Tensor:
    return inputs * torch.sigmoid(QUICK * inputs)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": partial(nn.functional.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
}
# timm's and open_clip's own layers; torch's says by a field which one it is.
_NAMED = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


def activation_of(layer: nn.Module) -> str:
    """Return the key of `ACTIVATIONS` that a tower's activation is.

    Raises:
        ValueError: it is another one.
    """
    if isinstance(layer, nn.GELU):
        return "gelu" if layer.approximate == "none" else "gelu_tanh"
    name = type(layer).__name__
    if name not in _NAMED:
        raise ValueError(f"its MLP has the activation {name}, and not a GELU")
    return _NAMED[name]


def differentiate_activation(name: str, gradient: Tensor, inputs: Tensor) -> Tensor:
    """Return the gradient of what an activation was given, from that of what it returned."""
    if name == "quick_gelu":
        gate = torch.sigmoid(QUICK * inputs)
        return gradient * gate * (1.0 + QUICK * inputs * (1.0 - gate))
    form = "tanh" if name == "gelu_tanh" else "none"
    found: Tensor = torch.ops.aten.gelu_backward(gradient, inputs, approximate=form)
    return found


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply K linear layers: inputs `[K, N, in]`, weight `[K, out, in]`, bias `[K, out]`."""
    if bias is None:
        return torch.bmm(inputs, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))


def layer_norm(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Apply K layer norms: inputs `[K, N, C]`, weight and bias `[K, C]`."""
    normal = nn.functional.layer_norm(inputs, inputs.shape[-1:], eps=eps)
    return torch.addcmul(bias.unsqueeze(1), normal, weight.unsqueeze(1))
