"""The layouts that data sets come in: one module a format, and one line for it here."""

from __future__ import annotations

from collections.abc import Callable

from safe_ray.data.readers import coop, folder, huggingface, imagenet, parquet, table, webdataset
from safe_ray.data.readers.base import SPLITS, RawDataset
from safe_ray.specs import DatasetSpec

Reader = Callable[[DatasetSpec, str], RawDataset]
"""Reads the data set at a location: an absolute local path, or a URI."""

READERS: dict[str, Reader] = {
    "coop": coop.read,
    "folder": folder.read,
    "huggingface": huggingface.read,
    "imagenet": imagenet.read,
    "parquet": parquet.read,
    "table": table.read,
    "webdataset": webdataset.read,
}

__all__ = ["READERS", "SPLITS", "RawDataset", "Reader"]
