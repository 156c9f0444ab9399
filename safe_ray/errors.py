"""Errors that a person can cause, and the sentences that tell them what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_BLIND = re.compile(
    r"the node (\S+) does not see the storage as the driver does \((.*?)\), and gets no more work "
    r"\[(\w+)\]"
)
LONGEST_SENTENCE = 4000


class _Sentence(Exception):
    """An error whose text is one line, whatever a file's names and values bring into it."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(_Sentence):
    """A mistake in what was asked for or in the data given.

    Its message is one sentence that names the value, the place and the remedy. The command line
    prints it without a traceback and exits with status 2.
    """


class BlindNodeError(InputError):
    """A node does not see the folders that all work shares; the same work may go well elsewhere.

    Where an exception's type is lost on its way, `found_in` finds it in the text that is left.

    Args:
        address: of the node.
        reason: what it does not see.
        node: Ray's id of it.
    """

    def __init__(self, address: str, reason: str, node: str) -> None:
        super().__init__(address, reason, node)
        self.address = address
        self.reason = reason
        self.node = node

    def __str__(self) -> str:
        return f"{self.sentence} [{self.node}]"

    @property
    def sentence(self) -> str:
        """What to say, without a full stop."""
        return (
            f"the node {self.address} does not see the storage as the driver does ({self.reason}), "
            "and gets no more work"
        )

    @staticmethod
    def found_in(text: str) -> BlindNodeError | None:
        """Return the error whose message is in a text; None if there is none."""
        found = _BLIND.search(text)
        return None if found is None else BlindNodeError(*found.groups())


class DamagedFileError(InputError):
    """A file of the program's own holds something else than what was written: torn or altered."""


class IncompleteError(_Sentence):
    """A run ended without a part of what was rightly asked for.

    Its message names what is missing, the reason and the remedy. The command line prints it without
    a traceback and exits with status 1.
    """


def one_line(text: str) -> str:
    """Return a text as one line that a terminal shows and does not obey.

    Line breaks become spaces, other control characters their escapes, and the middle of a text
    beyond `LONGEST_SENTENCE` is left out.
    """
    if not text.isprintable():
        text = "".join(map(_shown, text))
    if len(text) > LONGEST_SENTENCE:
        half = LONGEST_SENTENCE // 2
        text = f"{text[:half]} [...] {text[-half:]}"
    return text


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?" for the choices closest to `name`, or "" if none is."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)
    if not close:
        return ""
    return " Did you mean " + " or ".join(repr(by_lower[match]) for match in close) + "?"
