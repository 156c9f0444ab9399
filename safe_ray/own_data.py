"""`data=<location>`: somebody's own images without a YAML file, and what is assumed about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from safe_ray.config import DatasetConfig, validate_dataset
from safe_ray.errors import InputError, one_line
from safe_ray.files import is_uri, resolve_path
from safe_ray.outside import LARGEST_JSON, parse_json, parse_yaml, read_file

OPTIONS = "options."
SETTINGS = ("classes", "templates", "format", "ensemble", "descriptions")
"""What may stand beside `data=<location>`, with any number of `options.<name>` of its format."""

PHOTO_TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
)

PACKAGED = "pictogram"
"""The backbone that comes with the package, which was trained on drawings."""

DRAWING_TEMPLATES = ("a drawing of a {}.", "an icon of a {}.", "{}")


def usual_templates(backbone: str | None) -> tuple[str, ...]:
    """Return the prompts of somebody who has given none.

    Args:
        backbone: what was asked for; None for the one that comes with the package.
    """
    return DRAWING_TEMPLATES if backbone in (None, PACKAGED) else PHOTO_TEMPLATES


def looks_like_location(text: str) -> bool:
    """Return whether the value of `data=` is a place where images are, and not a YAML file."""
    return "/" in text or text.startswith(("~", "$", ".")) or (text != "" and Path(text).exists())


def is_own_setting(key: str) -> bool:
    """Return whether a key is a setting of images of one's own, as in their YAML file."""
    return key in SETTINGS or key.startswith(OPTIONS)


def dataset_at(
    location: str, overrides: Sequence[str], settings: Mapping[str, Any] | None = None
) -> DatasetConfig:
    """Return the data set at a location, its format found out by looking.

    Args:
        location: a folder, a file or a URI.
        overrides: what else was asked for: what the person chose need not be said.
        settings: what was asked for about the data set itself, by keys as `is_own_setting` knows
            them; `classes` may be a file.

    Raises:
        InputError: there is nothing there that any reader understands, or a setting is wrong.
    """
    from safe_ray.data.locations import locate
    from safe_ray.data.readers.detect import detect_format
    from safe_ray.data.readers.labels import FOLDER

    path = locate(location, Path.cwd())
    given = dict(settings or {})
    options = {
        key.removeprefix(OPTIONS): given.pop(key) for key in list(given) if key.startswith(OPTIONS)
    }
    classes = given.pop("classes", options.get("classes"))
    if classes is not None:
        options["classes"] = read_classes(classes) if isinstance(classes, str) else classes
    said = []
    if "format" not in given:
        given["format"] = detect_format(path)
        said.append(f"{path} is read as format {given['format']!r}")
    if classes is None and given["format"] == FOLDER and (file := _names_in(path)) is not None:
        options["classes"] = read_classes(file)
        said.append(f"the names of the classes are those in {file}")
    chosen = {override.lstrip("+").partition("=")[0].partition(".")[0] for override in overrides}
    prompted = any(override.startswith("data.prompts") for override in overrides)
    named = [word.partition("=")[2] for word in overrides if word.startswith("backbone=")]
    templates = usual_templates(named[-1] if named else None)
    if not prompted and "templates" not in given:
        said.append(f"the prompts are {', '.join(map(repr, templates))}")
    if "backbone" not in chosen:
        said.append(
            "the backbone is the one that comes with the package, which was trained on drawings "
            "(backbone=rn50 is OpenAI's, trained on photos; its weights are downloaded)"
        )
    content = {
        "path": path,
        "templates": templates,
        "ensemble": "simple",
        "on_change": "redraw",
        "notes": (f"{'; '.join(said)}.",) if said else (),
        "options": options,
        **given,
    }
    return validate_dataset(name_of(path), content)


def _names_in(folder: str) -> str | None:
    """Return the file in a folder that has better names for its classes, if there is one.

    It may lie in the only folder of the folder, too, which is looked through.
    """
    from safe_ray.data.locations import exists, is_folder, join, list_folder
    from safe_ray.data.readers.labels import CLASSES_FILE

    if not is_folder(folder):
        return None
    folders, files = list_folder(folder)
    if CLASSES_FILE in files:
        return join(folder, CLASSES_FILE)
    if len(folders) == 1 and exists(inner := join(join(folder, folders[0]), CLASSES_FILE)):
        return inner
    return None


def read_classes(location: str) -> list[Any] | dict[str, Any]:
    """Read the names of classes from a file.

    Args:
        location: a path or a URI of a list or a mapping in JSON or YAML, or else of a name a line.
            A class may have a list of names.

    Raises:
        InputError: there is no such file, or nothing of that kind in it.
    """
    from safe_ray.data.locations import read_bytes

    try:
        remote = is_uri(location)
        encoded = read_bytes(location) if remote else _read(location)
        text = encoded.decode("utf-8-sig")
        content: Any
        suffix = PurePath(location).suffix.lower()
        if suffix == ".json":
            content = parse_json(text)
        elif suffix in (".yaml", ".yml"):
            content = parse_yaml(text)
        else:
            content = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reason = one_line(str(error))
        raise InputError(
            f"classes={location} cannot be read ({reason}): give a file with a class name a line, "
            "a JSON or YAML file with a list or a mapping from folders to names, or "
            "classes=[cat,dog]."
        ) from None
    if not isinstance(content, list | dict) or not content:
        raise InputError(
            f"classes={location} holds neither a list nor a mapping: write the class names in the "
            "order of their labels, or a name for each folder or label."
        )
    return (
        {str(key): name for key, name in content.items()} if isinstance(content, dict) else content
    )


def _read(location: str) -> bytes:
    return read_file(resolve_path(location), LARGEST_JSON)


def name_of(path: str) -> str:
    """Return a name for the data set at a path that is safe as the name of a folder."""
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "own"
    stem = last.rsplit(".", 1)[0] if not Path(path).is_dir() else last
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")
    return safe[:80] or "own"
