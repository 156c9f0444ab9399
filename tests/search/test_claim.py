"""A sweep's folder belongs to one driver at a time, which the file system must be able to say."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from safe_ray.compose import load_config
from safe_ray.config import SweepConfig
from safe_ray.errors import InputError
from safe_ray.search.sweep import claimed


@pytest.fixture
def config(tmp_path: Path, tiny_config_dir: Path) -> SweepConfig:
    overrides = ["backbone=tiny", "tasks.datasets=[shapes]", f"storage={tmp_path}", "sweep=mine"]
    return load_config(overrides, tiny_config_dir)


def test_a_second_driver_of_the_same_sweep_is_refused(config: SweepConfig) -> None:
    with claimed(config), pytest.raises(InputError, match="run by another process"):
        claimed(config).__enter__()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError) as caught:
        claimed(config).__enter__()
    said = str(caught.value)
    assert str(config.outputs) in said
    assert os.strerror(number) in said
    assert "cannot lock files" in said
    assert "storage=<folder>" in said
