"""What processors can do, and which of them a process computes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

# An instruction set that a precision needs lest it be emulated, as `torch.cpu` names them.
_INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "avx10_2", "fp16_arith"),
}


def device_of(gpus: float) -> torch.device:
    """Return the device of a process that has reserved so many GPUs, or parts of one, with Ray.

    Ray shows a process no other GPUs than its own, so its first one is `cuda:0`.
    """
    return torch.device("cuda", 0) if gpus > 0 else torch.device("cpu")


def indexed(device: torch.device) -> torch.device:
    """Return the device as its tensors name it: `cuda` is `cuda:0`, or what the process has set.

    `torch.device("cuda")` and `torch.device("cuda:0")` are not equal.
    """
    if device.type != "cuda" or device.index is not None:
        return device
    current = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    return torch.device("cuda", current)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Let float32 be float32 on a GPU, too: by default a convolution there rounds to TF32."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32, products.allow_tf32 = False, False
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before


def has_instructions(precision: str, capabilities: Mapping[str, Any] | None) -> bool:
    """Whether a CPU computes in a precision by itself; what it emulates is many times slower.

    Args:
        precision: `fp32`, `bf16` or `fp16`.
        capabilities: of the CPU, as `torch.cpu.get_capabilities` names them; None if they are not
            known, which is no reason to refuse.
    """
    needed = _INSTRUCTIONS.get(precision, ())
    return not needed or capabilities is None or any(capabilities.get(name) for name in needed)


def cpu_capabilities() -> dict[str, Any] | None:
    """Return what torch says of this process's CPU; None if it is a torch that cannot say."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    return None if ask is None else dict(ask())
