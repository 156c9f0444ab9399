"""A tuned head as two files that any open_clip program can use.

`head.safetensors` holds the pooling's parameters under open_clip's own names, float32, so that
`load_state_dict(load_file("head.safetensors"), strict=False)` of the part of the model that the
card names (`visual.attnpool` of a ResNet, `visual` of a transformer) is all it takes to load it.
A method with an adapter keeps that beside them, under names that begin with `adapter.`.
`head.json`, the card, holds what else is needed to use it and to know where it came from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from safe_ray.errors import InputError
from safe_ray.files import link_file, sha256_hex, write_atomically
from safe_ray.heads.card import wrong_fields
from safe_ray.outside import GIB, MIB, read_file, read_json
from safe_ray.poolings.base import QUERIES, HeadState

FORMAT_VERSION = 1
LARGEST_CARD = 16 * MIB
LARGEST_WEIGHTS = 4 * GIB
WEIGHTS_FILE = "head.safetensors"
CARD_FILE = "head.json"

CARD_KEYS = (
    "backbone",
    "dataset",
    "shots",
    "seed",
    "class_names",
    "templates",
    "method",
    "knobs",
    "logit_scale",
    "preprocessing",
    "episode",
    "hyper_parameters",
    "metrics",
)
"""What a card must hold beside `format_version`, `weights` and `how_to_load`, which are added.

`method` says which one, and `knobs` at which values; an `alpha` stands at the top level, too.
"""

HOW_TO_LOAD = (
    "import json, torch, open_clip; from safetensors.torch import load_file",
    "card = json.load(open('head.json')); alpha = card['alpha']",
    "# a model that open_clip does not ship: open_clip.add_model_config(<its JSON file>) first",
    "model, _, preprocess = open_clip.create_model_and_transforms("
    "card['backbone']['model'], card['backbone']['pretrained']); model.eval()",
    "# images: [N, 3, S, S], from preprocess; classifier: [classes, D], the text features of every "
    "template, normalised, averaged over templates, normalised",
    "original = model.encode_image(images, normalize=False)",
    "part = model.get_submodule(card['backbone'].get('part', 'visual.attnpool'))",
    "loaded = part.load_state_dict(load_file('head.safetensors'), strict=False)",
    "assert not loaded.unexpected_keys, loaded.unexpected_keys",
    "tuned = model.encode_image(images, normalize=False)",
    "blended = torch.nn.functional.normalize(alpha * tuned + (1 - alpha) * original, dim=-1)",
    "logits = card['logit_scale'] * blended @ classifier.T",
)
"""A blend of features in plain open_clip, line by line, as the card of such a head carries it."""

HOW_TO_LOAD_METHOD = (
    "import json, torch; from safetensors.torch import load_file",
    "from safe_ray.backbones.openclip import load_backbone",
    "from safe_ray.specs import BackboneSpec",
    "from safe_ray.methods.base import TaskData, make_method",
    "from safe_ray.methods.features import MappedFeatures",
    "card = json.load(open('head.json')); named = card['backbone']",
    "backbone = load_backbone(BackboneSpec(named['name'], named['model'], named['pretrained'], "
    "named['model_config']))",
    "# images: [N, 3, S, S], as card['preprocessing'] says; classifier: [classes, D], the text "
    "features of every template, normalised, averaged over templates, normalised",
    "maps = backbone.trunk(images).unsqueeze(1)",
    "features = MappedFeatures(maps, backbone.pooling, backbone.state, maps.device)",
    "task = TaskData(features, torch.empty(0), classifier, card['logit_scale'], backbone.state)",
    "method = make_method(card['method']['module'], card['method']['options'])",
    "fitted = method.load(load_file('head.safetensors'), task)",
    "logits = fitted.logits(features, card['knobs'])",
)
"""A head of any other method, line by line, as its card carries it."""


def save_head(
    folder: Path,
    state: HeadState,
    card: Mapping[str, Any],
    how_to_load: Sequence[str] = HOW_TO_LOAD,
    same_weights: Path | None = None,
) -> None:
    """Write a head; a reader sees the whole head or none.

    Args:
        folder: where the two files go; it is created.
        state: the pooling's parameters by open_clip's own names, of any floating dtype and device.
        card: a value for each of `CARD_KEYS`, and anything else that JSON can hold. NaN and
            infinity, which it cannot, are written as null.
        how_to_load: lines of Python that the card carries.
        same_weights: a folder that has this very state already; its file is linked, not copied.

    Raises:
        ValueError: there is no parameter, or a key of the card is missing.
        InputError: the folder cannot be written.
    """
    if not state:
        raise ValueError("a head without parameters cannot be saved")
    missing = [key for key in CARD_KEYS if key not in card]
    if missing:
        raise ValueError(f"the head's card lacks {', '.join(missing)}")

    if same_weights is None:
        content = save(
            {
                name: tensor.detach().to("cpu", torch.float32).contiguous()
                for name, tensor in state.items()
            },
            metadata={"format": "pt"},
        )
        digest = sha256_hex(content)
    else:
        digest = load_card(same_weights)["weights"]["sha256"]
    whole = {
        "format_version": FORMAT_VERSION,
        **card,
        "weights": {"file": WEIGHTS_FILE, "sha256": digest},
        # No open_clip model has a parameter for queries.
        "how_to_load": list(HOW_TO_LOAD_METHOD if QUERIES in state else how_to_load),
    }
    # The card goes last: it names the weights by digest, so that a half-written head is known.
    if same_weights is None:
        write_atomically(folder / WEIGHTS_FILE, content)
    else:
        link_file(same_weights / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    write_atomically(
        folder / CARD_FILE, json.dumps(_finite(whole), indent=2, ensure_ascii=False) + "\n"
    )


def load_card(folder: Path) -> dict[str, Any]:
    """Read and check a head's card alone.

    Raises:
        InputError: there is no card, it is not a head's, or a newer version wrote it.
    """
    file = folder / CARD_FILE
    try:
        card = read_json(file, LARGEST_CARD, follow=False)
    except FileNotFoundError as error:
        raise InputError(
            f"There is no head in {folder}: it has no {CARD_FILE}, so name a folder that the sweep "
            "or MLflow wrote."
        ) from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): check the path.") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): fetch the head again.") from error
    version = card.get("format_version") if isinstance(card, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError(f"{file} has no format_version: it is not the card of a head.")
    if not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            f"{file} has format_version {version}, and this version of safe_ray reads "
            f"{FORMAT_VERSION} at most: upgrade safe_ray."
        )
    missing = [key for key in (*CARD_KEYS, "weights") if key not in card]
    if missing:
        raise InputError(f"{file} lacks {', '.join(missing)}: fetch the head again.")
    wrong = wrong_fields(card)
    if wrong:
        raise InputError(
            f"{file} has something else than belongs there in {', '.join(wrong)}: fetch the head "
            "again."
        )
    return card


def load_head(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a head that `save_head` wrote.

    Returns:
        The state, float32 on the CPU, under open_clip's own names, and the card.

    Raises:
        InputError: a file is missing or damaged, the two do not belong together, or a newer
            version wrote the head.
    """
    card = load_card(folder)
    file = folder / WEIGHTS_FILE
    try:
        content = read_file(file, LARGEST_WEIGHTS, follow=False)
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}): fetch the head again."
        ) from error
    try:
        state = load(content)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}): fetch the head again.") from error
    if card["weights"]["sha256"] != sha256_hex(content):
        raise InputError(
            f"{file} is not the file that {folder / CARD_FILE} was written for (its SHA-256 "
            "differs): fetch both again."
        )
    return {name: tensor.float() for name, tensor in state.items()}, card


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
