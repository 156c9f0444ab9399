"""The file system of a path, as the kernel names it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from safe_ray import mounts
from safe_ray.mounts import file_system, network_file_system


def test_the_kernels_own_file_systems_are_known():
    assert file_system(Path("/proc/self/nothing")) == "proc"
    assert network_file_system(Path("/proc")) is None


def test_a_mount_inside_another_wins(tmp_path: Path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        assert file_system(tmp_path / "not" / "there") == "tmpfs"
        assert network_file_system(tmp_path) is None
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("kind", "networked"),
    [
        ("nfs4", True),
        ("nfs", True),
        ("ceph", True),
        ("fuse.s3fs", True),
        ("lustre", True),
        ("9p", True),
        ("ext4", False),
        ("xfs", False),
        ("overlay", False),
        ("btrfs", False),
    ],
)
def test_the_networks_file_systems_are_told_from_a_disks(
    kind: str, networked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"40 22 0:50 / /mnt/with\\040space rw shared:9 - {kind} server:/share rw,vers=4.1\n"
        "41 22 0:51 / /mnt/with rw shared:10 - ext4 /dev/sdb rw\n"
    )
    monkeypatch.setattr(mounts, "_MOUNTS", table)
    inside = Path("/mnt/with space/storage")
    assert file_system(inside) == kind
    assert network_file_system(inside) == (kind if networked else None)
    assert file_system(Path("/mnt/with/x")) == "ext4"


def test_without_the_kernels_table_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "nothing")
    assert file_system(tmp_path) is None
    assert network_file_system(tmp_path) is None
