"""Creating a model with open_clip, and saying why it cannot be created."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict

from safe_ray.backbones.files import read_model_config
from safe_ray.errors import InputError, nearest
from safe_ray.files import resolve_path
from safe_ray.specs import BackboneSpec

NAMED_KEYS = 3


def register_config(spec: BackboneSpec, file: Path) -> None:
    """Make the architecture of a file known to open_clip.

    Raises:
        InputError: see `read_model_config`.
    """
    read_model_config(spec, file)
    # Registered every time: of two files with one name, the latest registered counts.
    open_clip.add_model_config(file)


def config_of(spec: BackboneSpec) -> dict[str, Any]:
    """Return open_clip's configuration of the model.

    Raises:
        InputError: open_clip does not know it.
    """
    known = open_clip.list_models()
    if spec.model not in known:
        raise InputError(
            f"Backbone {spec.name!r} uses the model {spec.model!r}, which open_clip "
            f"{open_clip.__version__} does not have: correct backbone.model, or define it with "
            f"backbone.model_config=<file>.json.{nearest(spec.model, known)}"
        )
    return open_clip.get_model_config(spec.model)


def tag_or_file(spec: BackboneSpec) -> tuple[str | None, Path | None]:
    """Return the tag or the file that `spec.pretrained` names, or neither.

    Raises:
        InputError: there is no such tag and no such file.
    """
    if spec.pretrained is None:
        return None, None
    if open_clip.is_pretrained_cfg(spec.model, spec.pretrained):
        return spec.pretrained, None
    file = resolve_path(spec.pretrained)
    if file.is_file():
        return None, file
    tags = open_clip.list_pretrained_tags_by_model(spec.model)
    tagged = f"its tags are {', '.join(map(repr, tags))}" if tags else "it has no tags"
    what = "weights file" if "/" in spec.pretrained or file.suffix else "tag or weights file"
    raise InputError(
        f"Backbone {spec.name!r} has no {what} {spec.pretrained!r} for the model {spec.model!r} "
        f"({tagged}): correct backbone.pretrained.{nearest(spec.pretrained, tags)}"
    )


def create(spec: BackboneSpec, pretrained: str | None, quick_gelu: bool) -> Any:
    """Return the model with its weights; without any, with the random ones of `spec.seed`.

    Raises:
        InputError: why open_clip could not create it.
    """
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        try:
            return open_clip.create_model(
                spec.model, pretrained, force_quick_gelu=quick_gelu, pretrained_text=False
            )
        # Configurations and files can be wrong in any way; each is explained below.
        except Exception as error:
            raise InputError(_why_not(spec, pretrained, error)) from error


def _why_not(spec: BackboneSpec, pretrained: str | None, error: Exception) -> str:
    """Return the sentence on why open_clip did not create the model."""
    try:
        model = open_clip.create_model(spec.model, pretrained_text=False)
    except Exception as config_error:
        return (
            f"open_clip cannot build the model {spec.model!r} ({first_line(config_error)}): "
            f"correct {spec.model_config or 'backbone.model'}."
        )
    if pretrained is None or not Path(pretrained).is_file():
        return (
            f"The weights {pretrained!r} of the model {spec.model!r} cannot be had "
            f"({first_line(error)}): connect this machine, or name a local safetensors file with "
            "backbone.pretrained=<file>."
        )
    try:
        found = {name: tuple(tensor.shape) for name, tensor in load_state_dict(pretrained).items()}
    except Exception as file_error:
        # torch would tell a person to switch off the check that makes loading safe.
        torchs = isinstance(file_error, UnpicklingError)
        reason = "it does not hold tensors alone" if torchs else first_line(file_error)
        return (
            f"The weights file {pretrained} of backbone {spec.name!r} cannot be read "
            f"({reason}): give safetensors, or a PyTorch state dict."
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differences = [
        f"{name} is {list(found[name])} instead of {list(wanted[name])}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    differences += [f"{name} is missing" for name in wanted if name not in found]
    differences += [f"{name} is unknown" for name in found if name not in wanted]
    more = len(differences) - NAMED_KEYS
    return (
        f"The weights file {pretrained} does not fit the model {spec.model!r}: "
        f"{', '.join(differences[:NAMED_KEYS]) or first_line(error)}"
        f"{f' and {more} more differences' if more > 0 else ''}; choose the model that the "
        "weights were trained as."
    )


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or what it is."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep open_clip from writing to the root logger, which it would even configure."""
    root = logging.getLogger()
    silent = logging.NullHandler()
    disabled = root.manager.disable
    root.addHandler(silent)
    logging.disable(max(disabled, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(disabled)
        root.removeHandler(silent)
