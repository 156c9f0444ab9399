"""The tokenizers of text towers, and what they need beside open_clip."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import open_clip

from safe_ray.backbones.creation import first_line, quiet
from safe_ray.errors import InputError
from safe_ray.specs import BackboneSpec

_INSTALL = "pip install 'safe_ray[hf]'"


def check_text_tower(spec: BackboneSpec, config: Mapping[str, Any]) -> None:
    """Check that the text tower of a configuration can be built.

    Raises:
        InputError: it is one of transformers, which is not installed.
    """
    _check(spec, config, "hf_model_name", "text tower")


def check_tokenizer(spec: BackboneSpec, config: Mapping[str, Any]) -> None:
    """Check that there is what the tokenizer of a configuration needs.

    Raises:
        InputError: it is one of transformers, which is not installed.
    """
    _check(spec, config, "hf_tokenizer_name", "tokenizer")


def tokenizer_of(spec: BackboneSpec) -> Any:
    """Return open_clip's tokenizer of a model.

    Raises:
        InputError: it needs a package that is not there, or cannot be downloaded.
    """
    config = open_clip.get_model_config(spec.model) or {"text_cfg": {}}
    check_tokenizer(spec, config)
    try:
        with quiet():
            return open_clip.get_tokenizer(spec.model)
    # A model that is called SigLIP gets SigLIP's, whatever its configuration says.
    except ModuleNotFoundError as error:
        raise InputError(
            f"The tokenizer of the model {spec.model!r} of backbone {spec.name!r} needs "
            f"{error.name}: {_INSTALL}."
        ) from error
    # A download can fail in any way.
    except Exception as error:
        raise InputError(
            f"The tokenizer {config['text_cfg'].get('hf_tokenizer_name')!r} of backbone "
            f"{spec.name!r} cannot be had ({first_line(error)}): connect this machine once, so "
            "that it is kept."
        ) from error


def _check(spec: BackboneSpec, config: Mapping[str, Any], field: str, what: str) -> None:
    """Refuse what a field of the text tower names, unless transformers is there."""
    named = config["text_cfg"].get(field)
    if named and importlib.util.find_spec("transformers") is None:
        raise InputError(
            f"The {what} of the model {spec.model!r} of backbone {spec.name!r} is {named}, which "
            f"needs transformers: {_INSTALL}."
        )
