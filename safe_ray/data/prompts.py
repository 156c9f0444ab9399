"""Prompts: templates filled with class names, the way CLIP's text tower wants them."""

from __future__ import annotations

from collections.abc import Sequence

from safe_ray.errors import InputError

SLOT = "{}"


def readable_class_name(name: str) -> str:
    """Return the class name with spaces for underscores, as CoOp and CLIP prompt with it."""
    return name.replace("_", " ")


def canonical_class_name(name: str) -> str:
    """Return what is left of a class name once CLIP's tokenizer has cleaned it."""
    return " ".join(readable_class_name(name).split()).lower()


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


def render_prompts(classes: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return for each class its prompts, one a template."""
    return [
        [template.replace(SLOT, readable_class_name(name)) for template in templates]
        for name in classes
    ]
