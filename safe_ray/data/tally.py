"""How many images of which class are in which split, as a table to print."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from safe_ray.data.manifest import Manifest


def counts(manifest: Manifest) -> Iterator[str]:
    """Yield the lines of a table of the images of each split and class."""
    splits = list(manifest.tables)
    labels = [manifest.split(name).column("label").to_numpy() for name in splits]
    of_class = [np.bincount(values, minlength=len(manifest.classes)) for values in labels]
    names = [
        f"{name} ({manifest.ids[label]})" if manifest.ids else name
        for label, name in enumerate(manifest.classes)
    ]
    width = max(len(name) for name in [*names, "all classes"])
    rows = [("class", splits)]
    rows += [("all classes", [str(column.sum()) for column in of_class])]
    rows += [(name, [str(c[label]) for c in of_class]) for label, name in enumerate(names)]
    for name, cells in rows:
        yield f"{name:<{width}}  " + "  ".join(f"{cell:>8}" for cell in cells)
