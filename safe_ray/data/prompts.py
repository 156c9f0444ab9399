"""Prompts: templates filled with class names, the way CLIP's text tower wants them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from safe_ray.errors import InputError, nearest
from safe_ray.outside import read_json

SLOT = "{}"


def readable_class_name(name: str) -> str:
    """Return the class name with spaces for underscores, as CoOp and CLIP prompt with it."""
    return name.replace("_", " ")


def canonical_class_name(name: str) -> str:
    """Return what is left of a class name once CLIP's tokenizer has cleaned it."""
    composed = unicodedata.normalize("NFC", name)
    return " ".join(readable_class_name(composed).split()).lower()


def check_templates(templates: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the templates if each has exactly one `{}`.

    Args:
        templates: at least one.
        where: what they belong to, for the error.

    Raises:
        InputError: there is none, or one has no slot or several.
    """
    if isinstance(templates, str) or not templates:
        raise InputError(
            f"The templates of {where} are {templates!r}: give a list with at least one, such as "
            "'a photo of a {}.'."
        )
    for template in templates:
        if not isinstance(template, str) or template.count(SLOT) != 1:
            raise InputError(
                f"The template {template!r} of {where} must have exactly one '{{}}' where the "
                "class name goes, as in 'a photo of a {}.'."
            )
    return tuple(templates)


def named_templates(name: str) -> tuple[str, ...]:
    """Return templates that come with open_clip, by name.

    Args:
        name: `openai` for the 80 of CLIP's authors (`OPENAI_IMAGENET_TEMPLATES`), `simple` for
            their 7 best (`SIMPLE_IMAGENET_TEMPLATES`).

    Raises:
        InputError: another name.
    """
    known = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
    if name not in known:
        raise InputError(
            f"There is no ensemble of templates called {name!r}: use one of "
            f"{', '.join(map(repr, known))}, or a list of templates.{nearest(name, known)}"
        )
    import open_clip

    return tuple(template(SLOT) for template in getattr(open_clip, known[name]))


def read_descriptions(
    file: Path, classes: Sequence[str], ids: Sequence[str] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Read sentences about each class, as CuPL keeps them (arXiv 2209.03320).

    Args:
        file: a JSON object from a class to a list of sentences. A class is looked up by its id,
            then by its name as it is, and then with underscores, case and spaces put aside.
        classes: the class names.
        ids: their ids, where the data set has them.

    Returns:
        The sentences of each class, at least one.

    Raises:
        InputError: no such file, not JSON of that shape, or a class without sentences.
    """
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The descriptions {file} are not readable JSON ({error}): correct the path under "
            "descriptions, or choose data.prompts=single."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"The descriptions {file} must be an object from class names to lists.")
    loose = {canonical_class_name(key): value for key, value in content.items()}
    found = []
    for label, name in enumerate(classes):
        keys = ([ids[label]] if ids else []) + [name]
        sentences = next((content[key] for key in keys if key in content), None)
        if sentences is None:
            sentences = loose.get(canonical_class_name(name))
        if (
            not isinstance(sentences, list)
            or not sentences
            or not all(isinstance(sentence, str) and sentence.strip() for sentence in sentences)
        ):
            raise InputError(
                f"The descriptions {file} have no list of sentences for the class {name!r}"
                + (f" (id {ids[label]!r})" if ids else "")
                + f": add them.{nearest(name, list(content))}"
            )
        found.append(tuple(sentences))
    return tuple(found)


def render_prompts(classes: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return for each class its prompts, one a template."""
    return [
        [template.replace(SLOT, readable_class_name(name)) for template in templates]
        for name in classes
    ]


def render_names(names: Sequence[Sequence[str]], templates: Sequence[str]) -> list[list[str]]:
    """Return for each class, which has one name or several, its prompts: each name in each one."""
    return [
        [prompt for prompts in render_prompts(own, templates) for prompt in prompts]
        for own in names
    ]
