"""What the report shows of test images: small copies, and one image for a command to try."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image

from safe_ray.data.images import BadImageError, decode_image
from safe_ray.data.sources import image_sources
from safe_ray.data.views import Preprocessing, evaluation_view
from safe_ray.errors import InputError
from safe_ray.files import write_atomically
from safe_ray.report.html.pictures import SIDE
from safe_ray.report.looks import LookedAt
from safe_ray.specs import Task
from safe_ray.sweep.looking import Looks

EXAMPLE = "example"
_QUALITY = 60


def looked_at(
    looks: Looks,
    task: Task,
    table: pa.Table,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
) -> list[LookedAt]:
    """Return the entries of `looks.parquet` for one task.

    Args:
        looks: where the poolings look.
        task: data set, shots and seed.
        table: the test split.
        class_names: of the task.
        preprocessing: of the backbone.
    """
    rows = table.take(pa.array(looks.rows, pa.int64()))
    pictures = small_copies(rows, preprocessing)
    paths, labels = (rows.column(name).to_pylist() for name in ("path", "label"))
    return [
        LookedAt(
            dataset=task.dataset,
            shots=task.shots,
            seed=task.seed,
            method=looks.method,
            path=str(paths[at]),
            label=class_names[labels[at]],
            original_said=class_names[int(looks.original_said[at])],
            original_probability=float(looks.original_probability[at]),
            said=class_names[int(looks.said[at])],
            probability=float(looks.probability[at]),
            original=looks.original[at],
            tuned=looks.tuned[at],
            picture=pictures[at],
        )
        for at in range(len(looks.rows))
    ]


def small_copies(table: pa.Table, preprocessing: Preprocessing) -> list[bytes | None]:
    """Return the evaluation view of each image as a small WebP file; None if it cannot be read."""
    copies: list[bytes | None] = []
    for source in image_sources(table):
        try:
            view = evaluation_view(decode_image(source.read()), preprocessing)
        except (BadImageError, OSError, InputError):
            copies.append(None)
            continue
        file = io.BytesIO()
        picture = Image.fromarray(view.permute(1, 2, 0).numpy())
        picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(
            file, "WEBP", quality=_QUALITY, method=4
        )
        copies.append(file.getvalue())
    return copies


def example_image(table: pa.Table, folder: Path) -> str | None:
    """Return where a test image is that a person can try a head with; None if there is none.

    One that lies in a table or an archive is copied to the sweep's folder.
    """
    source = next(image_sources(table.slice(0, 1)), None)
    if source is None:
        return None
    if source.file is not None and source.length is None:
        return source.file
    try:
        content = source.read()
        with Image.open(io.BytesIO(content)) as image:
            ending = (image.format or "image").lower()
    except (OSError, InputError):
        return None
    file = folder / f"{EXAMPLE}.{ending}"
    write_atomically(file, content)
    return str(file)
