"""Which file system a path lies on, as far as Linux tells."""

from __future__ import annotations

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORKED = (
    *("nfs", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "9p"),
    *("afs", "orangefs", "pvfs2", "ocfs2", "gfs2", "panfs", "wekafs", "virtiofs", "fuse"),
)


def network_file_system(path: Path) -> str | None:
    """Return the type of the network file system that a path lies on, or None.

    None also where nobody can tell. A FUSE file system counts as one, since most are.
    """
    kind = file_system(path)
    if kind is None:
        return None
    return kind if kind.partition(".")[0].rstrip("4") in _NETWORKED else None


def file_system(path: Path) -> str | None:
    """Return the type of the file system of a path, which need not exist yet; None if unknown."""
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return None
    place = os.path.realpath(path)
    found: tuple[int, str] | None = None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = fields.split(" ")[4].encode().decode("unicode_escape")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        # Of several on one point, the last hides those before it.
        if inside and (found is None or len(point) >= found[0]):
            found = len(point), rest.split(" ")[0]
    return None if found is None else found[1]
