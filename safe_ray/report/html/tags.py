"""Elements of HTML and SVG as text; whatever is not markup already is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"meta", "br", "img"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = object
"""A `Markup`, an iterable of children, None, or anything else, which is escaped as text."""


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        children: what is in it.
        attributes: an underscore at the end of a name is left out, and the others are dashes.
            None and False leave the attribute out, True gives it without a value.
    """
    opening = "".join(
        f" {_name(key)}" if value is True else f' {_name(key)}="{html.escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{opening}>")
    return Markup(f"<{name}{opening}>{joined(children)}</{name}>")


def joined(children: Iterable[Child]) -> Markup:
    """Return children one after another."""
    return Markup("".join(map(_text, children)))


def number(value: float) -> str:
    """Return a coordinate with one decimal, and none where that is 0."""
    return f"{value:.1f}".removesuffix(".0")


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, Iterable) and not isinstance(child, str):
        return joined(child)
    return html.escape(str(child), quote=False)


def _name(key: str) -> str:
    # `viewBox` and the like are written as they are; `class_` and `for_` are Python's own words.
    return key.removesuffix("_").replace("_", "-")


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
