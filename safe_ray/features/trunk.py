"""The trunk over the pixels of views, and the actor that holds it and writes parts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safe_ray.errors import InputError
from safe_ray.features.memory import keep_freed_memory
from safe_ray.features.parts import write_part
from safe_ray.specs import BackboneSpec
from safe_ray.visibility import check_sight

if TYPE_CHECKING:
    import torch

    from safe_ray.backbones.openclip import Backbone


class PartExtractor:
    """The actor: holds the trunk, and turns each batch of views into one part of the store."""

    def __init__(
        self,
        spec: dict[str, Any],
        trunk_digest: str,
        folder: str,
        precision: str,
        batch_size: int,
        threads: int,
        device: str,
        beacon: dict[str, Any] | None = None,
    ) -> None:
        import threading

        self._folder = Path(folder)
        self._trunk_lock = threading.Lock()
        self._precision = precision
        self._batch_size = batch_size
        self._threads = threads
        self._device = device
        self._problem: InputError | None = None
        keep_freed_memory()
        # Raised by the first call: an exception here would only say that the actor died.
        try:
            check_sight(beacon)
            self._backbone = _load_trunk(BackboneSpec(**spec), trunk_digest, device, threads)
        except InputError as error:
            self._problem = error

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write one part; return its `path`, `rows`, and the `seconds` that it took."""
        import torch

        if self._problem is not None:
            raise self._problem
        start = time.monotonic()
        with self._trunk_lock:
            # OpenMP counts threads per calling thread, and Ray calls from several.
            torch.set_num_threads(self._threads)
            maps = dense_maps(
                self._backbone, batch["pixels"], self._precision, self._batch_size, self._device
            )
        path = write_part(self._folder, batch["sample"].tolist(), batch["view"].tolist(), maps)
        return {
            "path": np.array([path.name]),
            "rows": np.array([len(maps)]),
            "seconds": np.array([time.monotonic() - start]),
        }


def dense_maps(
    backbone: Backbone, pixels: np.ndarray, precision: str, batch_size: int, device: str
) -> np.ndarray:
    """Run the trunk over uint8 pixels `[n, 3, S, S]`; return float16 `[n, L, C]`.

    Every forward pass takes `batch_size` images, the last one padded: kernels choose their order of
    summation by the shape, and a row's last bit would otherwise depend on how many came with it.
    (It still depends on the batch size, the number of threads and the device.)
    """
    import torch

    out: np.ndarray | None = None
    for start in range(0, len(pixels), batch_size):
        rows = pixels[start : start + batch_size]
        block = np.zeros((batch_size, *pixels.shape[1:]), np.uint8)
        block[: len(rows)] = rows
        try:
            tokens = run_trunk(backbone, torch.from_numpy(block), precision, torch.device(device))
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"The trunk has no memory on its device for {batch_size} images at once: "
                f"give features.batch_size={max(1, batch_size // 2)} or less."
            ) from error
        halves = tokens[: len(rows)].cpu().numpy()
        if out is None:
            out = np.empty((len(pixels), *halves.shape[1:]), np.float16)
        out[start : start + len(rows)] = halves
    if out is None:
        raise ValueError("There are no pixels to run the trunk over.")
    return out


def run_trunk(
    backbone: Backbone, pixels: torch.Tensor, precision: str, device: torch.device
) -> torch.Tensor:
    """Run the trunk, which is on `device`, over uint8 pixels `[n, 3, S, S]` from anywhere.

    Returns:
        float16 `[n, L, C]` on the device.
    """
    import torch

    from safe_ray.data.views import normalise
    from safe_ray.devices import full_precision

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with (
        torch.inference_mode(),
        full_precision(),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
    ):
        moved = pixels.to(device, memory_format=torch.channels_last)
        images = normalise(moved, backbone.preprocessing)
        tokens = backbone.trunk(images.contiguous(memory_format=torch.channels_last))
        return tokens.to(torch.float16)


def _load_trunk(spec: BackboneSpec, digest: str, device: str, threads: int) -> Backbone:
    import torch

    from safe_ray.backbones.openclip import load_backbone

    torch.set_num_threads(threads)
    backbone = load_backbone(spec, device=device, parts=("trunk",))
    if backbone.trunk_digest != digest:
        raise InputError(
            f"The weights of backbone {spec.name} differ between the nodes of the cluster: give "
            "every node the same file."
        )
    backbone.trunk.to(memory_format=torch.channels_last)
    return backbone
