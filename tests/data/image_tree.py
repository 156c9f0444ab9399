"""Small trees of real images, and how the tests load them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_ray.data.manifest import Manifest, load_manifest
from safe_ray.specs import DatasetSpec
from tests.data.coop_tree import png


def write_tree(root: Path, counts: Mapping[str, int], suffix: str = ".png") -> Path:
    """Write `counts[folder]` images into each folder, no two of them alike."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for image in range(count):
            content = png(f"#{number % 256:02x}{image % 256:02x}77")
            (root / folder / f"{image:03d}{suffix}").write_bytes(content)
    return root


def load(format: str, location: Path | str, root: Path = Path("/"), **options: Any) -> Manifest:
    return load_manifest(DatasetSpec("pets", format, str(location), options=options), root)


def paths(manifest: Manifest, split: str) -> list[str]:
    return manifest.split(split).column("path").to_pylist()


def sizes(manifest: Manifest) -> dict[str, int]:
    return {name: table.num_rows for name, table in manifest.tables.items()}
