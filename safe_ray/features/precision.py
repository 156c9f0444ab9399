"""The trunk's arithmetic: what a cluster's GPUs can do, all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from safe_ray.cluster import ask_nodes, working_nodes
from safe_ray.features import plan

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def resolve_precision(precision: Precision) -> Precision:
    """Return `fp32`, `bf16` or `fp16`; `auto` is decided by the GPUs that hold the trunk.

    They are those of the cluster if Ray has been started, and all of them can do what is returned;
    without Ray, those that this process sees.
    """
    import ray

    if precision != "auto":
        return precision
    if not ray.is_initialized():
        return precision_here()
    nodes = [node for node in working_nodes() if plan.holds_trunk_on_gpu(node["Resources"])]
    return least_precision(ask_nodes(precision_here, nodes))


def least_precision(precisions: Sequence[Precision]) -> Precision:
    """Return what all of several nodes can do, each given by the best of its GPUs' precisions."""
    ascending = ("fp32", "fp16", "bf16")
    return min(precisions, key=ascending.index, default="fp32")


def precision_here() -> Precision:
    """Return the best precision that all GPUs of this node have; `fp32` without any."""
    import torch

    def of(device: int) -> Precision:
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"

    return least_precision([of(device) for device in range(torch.cuda.device_count())])
