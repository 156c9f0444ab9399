"""Whatever MLflow, its server or its disk does wrong, in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from safe_ray.errors import InputError
from safe_ray.tracking.connection import (
    AwayError,
    displayed,
    failures,
    first_line,
    without_password,
)

_REFUSALS = (400, 404, 409, 422)
"""The statuses that say that a request will never do; with any other it may do later."""


@contextlib.contextmanager
def telling(uri: str, what: str) -> Iterator[None]:
    """Turn what goes wrong in the block into one sentence.

    Args:
        uri: of MLflow.
        what: is being done.

    Raises:
        AwayError: MLflow does not answer, or denies this client.
        InputError: it refuses what was asked.
    """
    try:
        yield
    except failures() as error:
        kind = InputError if _is_refusal(error) else AwayError
        raise kind(
            f"MLflow at {displayed(uri)} could not {what} "
            f"({without_password(first_line(error), uri)}): see to it that it answers, "
            "and that this user may write there."
        ) from error


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow itself answered, and said that it will not take a request as it is."""
    from mlflow.exceptions import MlflowException, RestException

    if not isinstance(error, MlflowException):
        return False
    answered = isinstance(error, RestException) or error.__cause__ is None
    # What stands between may answer with pages of its own, while MLflow is away.
    words = str(error).startswith("API request to endpoint")
    return answered and not words and error.get_http_status_code() in _REFUSALS
