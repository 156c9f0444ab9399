"""What is refused before anything heavy is imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from safe_ray.errors import InputError
from safe_ray.files import check_writable
from safe_ray.prediction.bundle_files import EXTRA

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_folder(folder: Path) -> None:
    """Refuse a place that holds something already, or cannot be written to.

    Raises:
        InputError: it does, or cannot.
    """
    check_writable(folder, "--out")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"--out is {folder}, which is not empty: name a new folder, or empty this one first."
        )


def check_packages(kind: str) -> None:
    """Refuse a format for which a package is missing.

    Raises:
        InputError: one is.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None] if kind == "onnx" else []
    if missing:
        raise InputError(f"--format onnx needs {', '.join(missing)}: {EXTRA}.")
