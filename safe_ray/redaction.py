"""Passwords and tokens are taken out of what is written down, printed or recorded.

They are known by where they stand: the password of a URI, the value of a query parameter or of a
setting whose name says what it is, and the environment variables that hold them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_NAMED_SO = r"pass(?:word|wd|phrase)?|pwd|secret|token|sig(?:nature)?|credentials?|auth|key"
_USER_INFO = re.compile(r"(?<=://)([^\s/?#@:'\"]*):([^\s/?#'\"]*)@")
_LONE_TOKEN = re.compile(r"(?<=://)([^\s/?#@:'\"]{20,})@")
_PARAMETER = re.compile(
    rf"(?<=[?&;])((?:[\w.-]*[_.-])?(?:{_NAMED_SO})=)[^&;\s'\"#)]+", re.IGNORECASE
)
_VARIABLE = re.compile(r"(^|_)(PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|KEY|CREDENTIALS?)(_|$)")
_SETTING = re.compile(
    r"(^|[_.-])(password|passwd|passphrase|secret|token|credentials?|access_key|api_key)$", re.I
)
_SHORTEST = 6


def redacted(text: str) -> str:
    """Return a text without the passwords and tokens in it.

    Taken out are those of URIs (`scheme://user:password@host`, `?token=...`), and the values of
    environment variables whose names say that they are secret.
    """
    for value in _secrets_of_environment():
        text = text.replace(value, HIDDEN)
    text = _USER_INFO.sub(rf"\1:{HIDDEN}@", text)
    text = _LONE_TOKEN.sub(f"{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", text)


def redacted_values(value: Any) -> Any:
    """Return JSON values in which no text holds a password, nor a key that is named like one."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(item, str) and item and _SETTING.search(str(key))
            else redacted_values(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_values(item) for item in value]
    return value


def _secrets_of_environment() -> list[str]:
    """Return the values of the variables that hold secrets, the longest first.

    What is short, or a path, could stand anywhere for another reason.
    """
    found = {
        value
        for name, value in os.environ.items()
        if _VARIABLE.search(name.upper())
        and len(value) >= _SHORTEST
        and not value.startswith(("/", "~", "."))
    }
    return sorted(found, key=len, reverse=True)
