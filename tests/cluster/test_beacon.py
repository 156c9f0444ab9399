"""A process knows by a token whether the folders that it sees are the driver's."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from safe_ray.errors import InputError
from safe_ray.visibility import Beacon, check_sight, light, put_out, reason_for_blindness


@pytest.fixture
def beacon(tmp_path: Path) -> Beacon:
    return light([tmp_path / "storage", tmp_path / "store", tmp_path / "storage"])


def reason(beacon: Beacon) -> str:
    return reason_for_blindness(beacon, "here", seconds=0.0)


def test_the_drivers_folders_are_known_and_left_as_they_were(beacon: Beacon) -> None:
    before = [sorted(Path(folder).iterdir()) for folder in beacon.folders]
    assert len(before) == 2
    assert reason(beacon) == ""
    assert [sorted(Path(folder).iterdir()) for folder in beacon.folders] == before
    check_sight(beacon.to_json())
    assert Beacon.from_json(beacon.to_json()) == beacon
    put_out(beacon)
    assert [list(Path(folder).iterdir()) for folder in beacon.folders] == [[], []]


def test_a_folder_of_the_same_name_is_another_one(beacon: Beacon) -> None:
    store = Path(beacon.folders[1])
    shutil.rmtree(store)
    assert reason(beacon) == f"{store}: No such file or directory"
    store.mkdir()
    assert reason(beacon) == f"{store}: No such file or directory"
    (store / f".seen-{beacon.token}").write_text("somebody else's")
    assert reason(beacon) == f"{store} is another folder there"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_only_be_read_is_no_use(beacon: Beacon) -> None:
    store = Path(beacon.folders[1])
    store.chmod(0o500)
    assert reason(beacon) == f"{store}: Permission denied"
    store.chmod(0o700)


def test_a_token_may_arrive_late(beacon: Beacon) -> None:
    token = Path(beacon.folders[1]) / f".seen-{beacon.token}"
    token.unlink()
    began = time.monotonic()
    assert reason_for_blindness(beacon, "here", seconds=1.0)
    assert time.monotonic() - began >= 1.0


def test_where_nothing_can_be_amiss_nothing_is_looked_at() -> None:
    check_sight(None)


def test_tokens_of_drivers_long_gone_are_removed(beacon: Beacon) -> None:
    folder = Path(beacon.folders[0])
    old, young = folder / ".seen-old", folder / ".seen-young"
    for file, days in ((old, 40), (young, 20)):
        file.touch()
        os.utime(file, (0, time.time() - days * 24 * 3600))
    light([folder])
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_the_driver_itself_cannot_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="storage=<folder>"):
        light([tmp_path / "file" / "storage"])
