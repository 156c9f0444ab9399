"""The files of a backbone, looked at without torch, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_ray.errors import InputError
from safe_ray.files import names_file, resolve_path
from safe_ray.outside import read_json
from safe_ray.specs import BackboneSpec

CONFIG_KEYS = ("embed_dim", "vision_cfg", "text_cfg")


def check_files(spec: BackboneSpec) -> None:
    """Check the files that a backbone names, as far as that takes no time.

    Raises:
        InputError: a weights file is missing, empty or unreadable, or damaged safetensors; or the
            file of the architecture is wrong (see `read_model_config`).
    """
    if spec.model_config is not None:
        read_model_config(spec, resolve_path(spec.model_config))
    if spec.pretrained is not None and names_file(spec.pretrained):
        _check_weights(spec, resolve_path(spec.pretrained))


def read_model_config(spec: BackboneSpec, file: Path) -> Mapping[str, Any]:
    """Return the architecture that `spec.model_config` defines.

    Raises:
        InputError: the file is not readable JSON, lacks a key, or is not named after the model.
    """
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The model configuration {file} of backbone {spec.name!r} is not readable JSON "
            f"({error}): correct backbone.model_config."
        ) from error
    missing = [key for key in CONFIG_KEYS if not isinstance(config, Mapping) or key not in config]
    if missing:
        raise InputError(
            f"The model configuration {file} of backbone {spec.name!r} lacks {missing[0]!r}: it "
            f"needs {', '.join(CONFIG_KEYS)}, as open_clip's own configurations have."
        )
    if file.stem != spec.model:
        raise InputError(
            f"Backbone {spec.name!r} uses the model {spec.model!r}, but {file} defines "
            f"{file.stem!r}, for open_clip takes the name from the file: rename one of them."
        )
    return dict(config)


def _check_weights(spec: BackboneSpec, file: Path) -> None:
    if not file.is_file():
        raise InputError(
            f"Backbone {spec.name!r} has no weights file {str(file)!r}: correct "
            "backbone.pretrained, which is a file, or one of open_clip's tags such as openai."
        )
    try:
        with file.open("rb") as source:
            empty = not source.read(1)
        reason = "it is empty" if empty else _damage(file)
    except OSError as error:
        reason = error.strerror or type(error).__name__
    if reason:
        raise InputError(
            f"The weights file {file} of backbone {spec.name!r} cannot be read "
            f"({reason}): give safetensors, or a PyTorch state dict."
        )


def _damage(file: Path) -> str:
    """Return what is wrong with a safetensors file by its header and its length, or ""."""
    if file.suffix != ".safetensors":
        return ""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            return ""
    except SafetensorError as error:
        return str(error)
