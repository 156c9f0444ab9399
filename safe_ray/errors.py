"""Errors that a person can cause, and the sentences that tell them what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """A mistake in what was asked for or in the data given.

    Its message is one sentence that names the value, the place and the remedy. The command line
    prints it without a traceback and exits with status 2.
    """


class BlindNodeError(InputError):
    """A node does not see the folders that all work shares; the same work may go well elsewhere.

    Args:
        sentence: the message.
        node: Ray's id of the node.
    """

    def __init__(self, sentence: str, node: str = "") -> None:
        super().__init__(sentence, node)
        self.node = node

    def __str__(self) -> str:
        return str(self.args[0])


class DamagedFileError(InputError):
    """A file of the program's own holds something else than what was written: torn or altered."""


class IncompleteError(Exception):
    """A run ended without a part of what was rightly asked for.

    Its message names what is missing, the reason and the remedy. The command line prints it without
    a traceback and exits with status 1.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?" for the choices closest to `name`, or "" if none is."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)
    if not close:
        return ""
    return " Did you mean " + " or ".join(repr(by_lower[match]) for match in close) + "?"
