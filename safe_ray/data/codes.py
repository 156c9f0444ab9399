"""Class names that say nothing to a text tower, because they are codes."""

from __future__ import annotations

import re
from collections.abc import Sequence

SHARE = 0.5
"""Of the class names, that must look like codes before it is said."""

_WORDS = "class|cls|label|lbl|cat|category|type|kind|group|grp|id|idx|item|folder|dir|img|image|dsc"
_CODES = re.compile(
    rf"""
      \d+([-_. ]\d+)*                     # 0, 007, 3-12
    | [a-z]                               # c
    | [a-z]{{1,3}}[-_. ]?\d+([-_. ]\d+)*  # c12, id_7, n01440764
    | ({_WORDS})[-_. ]?([a-z]|\d+)        # class_1, IMG_A, label b
    | (?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{{8,}}  # 3fa94c01
    """,
    re.VERBOSE | re.IGNORECASE,
)


def looks_like_code(name: str) -> bool:
    """Return whether a class name is a number, a letter or an identifier, rather than a word."""
    return _CODES.fullmatch(name.strip()) is not None


def codes_among(names: Sequence[str]) -> list[str]:
    """Return the names that look like codes, if at least half of all do, and else none."""
    codes = [name for name in names if looks_like_code(name)]
    return codes if codes and len(codes) >= SHARE * len(names) else []
