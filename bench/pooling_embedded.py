"""A training step a head at the embedded backbone's size: at least 8 times open_clip's speed."""

from bench.harness import arguments, pin
from bench.pooling import EMBEDDED, TINY, compare

if __name__ == "__main__":
    quick = arguments(__doc__).quick
    pin()
    compare(
        "pooling_embedded",
        TINY if quick else EMBEDDED,
        target=8.0,
        candidates=(1, 4, 8, 16),
        repeats=1 if quick else 15,
        calls=1 if quick else 10,
        quick=quick,
    )
