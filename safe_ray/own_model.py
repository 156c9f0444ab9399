"""A model of open_clip's on the command line: `backbone.model=NAME backbone.pretrained=TAG`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from safe_ray.errors import InputError

_GROUP, _MODEL = "backbone", "model"


def with_own_model(backbone: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the backbone, in which nothing is left of the file's own model.

    The file that was composed may define an architecture, and has a name and weights. Where the
    command line names another model than that architecture's, they are not that model's.

    Args:
        backbone: as it was composed.
        overrides: of the command line.

    Raises:
        InputError: a model is named, and no weights for it.
    """
    given = {text.lstrip("+").partition("=")[0] for text in overrides}
    settings = dict(backbone)
    defined = settings.get("model_config")
    if f"{_GROUP}.{_MODEL}" not in given or f"{_GROUP}.model_config" in given or not defined:
        return settings
    model = str(settings.get(_MODEL))
    if PurePosixPath(str(defined)).stem == model:
        return settings
    if f"{_GROUP}.pretrained" not in given:
        raise InputError(
            f"backbone.model={model} has no weights yet: add backbone.pretrained=<tag or file>, or "
            "backbone.pretrained=null for random ones."
        )
    settings["model_config"] = None
    if f"{_GROUP}.name" not in given:
        settings["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", model)
    return settings
