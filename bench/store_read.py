"""Reading dense maps from the feature store runs at 0.8 or more of a numpy memmap's speed.

The claim is for maps that were compared with their checksums before, which happens once in the
life of a store object. What the first read takes, the opening of the store and all comparisons
included, is measured beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from bench.harness import arguments, finish, interleave, pin
from safe_ray.features.store import FeatureStore, StoreKey

_PARTS = 4


def main() -> None:
    """Write the same maps to both, and read the same shuffled samples and views from both."""
    quick = arguments(str(__doc__)).quick
    pin()
    samples, views, tokens, width = (8, 2, 4, 64) if quick else (256, 5, 49, 2048)
    repeats = 1 if quick else 15
    generator = np.random.default_rng(0)
    names = [f"{index:064x}" for index in range(samples)]
    rows = samples * views
    maps = generator.standard_normal((rows, tokens, width), np.float32).astype(np.float16)

    with tempfile.TemporaryDirectory() as folder:
        writer = FeatureStore(Path(folder), StoreKey("bench", {}, "fp32", "1"), tokens, width)
        places = np.arange(rows).reshape(samples, views)
        for part in np.array_split(np.arange(rows), _PARTS):
            writer.write_part(
                [names[row // views] for row in part],
                [int(row % views) for row in part],
                maps[part],
            )
        plain = Path(folder) / "plain"
        maps.tofile(plain)
        store = FeatureStore(Path(folder), writer.key, tokens, width)
        memmap = np.memmap(plain, np.float16, "r", shape=maps.shape)

        # A few-shot support set out of a larger store: half of the samples, in a random order.
        chosen = generator.permutation(samples)[: samples // 2]
        wanted = [names[index] for index in chosen]
        if not np.array_equal(store.read(wanted, range(views)), maps[places[chosen]]):
            raise SystemExit("the store reads something else than was written")
        medians = interleave(
            {
                "store": lambda: store.read(wanted, range(views)),
                "first read": lambda: FeatureStore(Path(folder), writer.key, tokens, width).read(
                    wanted, range(views)
                ),
                "memmap": lambda: memmap[places[chosen]],
            },
            repeats,
            warm_up=3,
        )
    size = len(chosen) * views * tokens * width * 2
    for name, seconds in medians.items():
        print(f"{name}: {size / 1e6:.0f} MB in {1e3 * seconds:.1f} ms")
    finish(
        "store_read",
        medians["memmap"] / medians["store"],
        0.8,
        first_read_ratio=round(medians["memmap"] / medians["first read"], 3),
        gigabytes_per_second=round(size / medians["store"] / 1e9, 2),
    )


if __name__ == "__main__":
    main()
