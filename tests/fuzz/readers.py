"""All readers of what comes from outside; a new one is an entry in one of these modules."""

from collections.abc import Sequence

from tests.fuzz import answers, data, predicting, records, settings
from tests.fuzz.reader import Reader

READERS = (
    *records.READERS,
    *data.READERS,
    *predicting.READERS,
    *settings.READERS,
    *answers.READERS,
)
BY_NAME = {reader.name: reader for reader in READERS}


def counts(total: int, readers: Sequence[Reader] = READERS) -> dict[str, int]:
    """Return how many cases each reader gets of a total, by their shares."""
    shares = sum(reader.share for reader in readers)
    return {reader.name: max(1, round(total * reader.share / shares)) for reader in readers}
