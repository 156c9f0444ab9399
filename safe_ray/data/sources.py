"""Where the bytes of one image are, and the one way to read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from safe_ray.data.locations import read_bytes


class ImageSource(NamedTuple):
    """The encoded bytes of an image, or where to read them.

    Attributes:
        image: the bytes; the rest is then empty.
        file: an absolute path or a URI.
        offset: where the image starts in the file.
        length: how long it is; None for the rest of the file.
    """

    image: bytes | None = None
    file: str | None = None
    offset: int = 0
    length: int | None = None

    def read(self) -> bytes:
        """Return the encoded bytes.

        Raises:
            OSError: the file is missing, out of reach, or ends too early.
            InputError: a package for its file system is not installed.
        """
        if self.file is None:
            return self.image or b""
        return read_bytes(self.file, self.offset, self.length)

    @property
    def name(self) -> str | None:
        """The file, and for a part of one its place in it."""
        if self.file is None or self.length is None:
            return self.file
        return f"{self.file}#{self.offset}+{self.length}"


def image_sources(table: pa.Table) -> Iterator[ImageSource]:
    """Yield the source of each row of a manifest's table, in their order."""
    if "image" in table.column_names:
        for image in table.column("image"):
            yield ImageSource(image=image.as_py())
    elif "offset" in table.column_names:
        columns = (table.column(name) for name in ("file", "offset", "length"))
        for file, offset, length in zip(*columns, strict=True):
            yield ImageSource(None, file.as_py(), offset.as_py(), length.as_py())
    else:
        for file in table.column("file"):
            yield ImageSource(file=file.as_py())
