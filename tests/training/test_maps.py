"""Where support maps lie changes nothing but the memory that they take."""

from __future__ import annotations

import pytest
import torch

from safe_ray.training.maps import Pin, ResidentMaps, choose_pin, resident_maps

GIB = 2**30


@pytest.mark.parametrize(
    ("maps", "device", "host", "pin"),
    [
        (GIB, 4 * GIB, 0, "device"),
        (2 * GIB, 4 * GIB, 0, "device"),
        (3 * GIB, 4 * GIB, 0, "stream"),
        (3 * GIB, 4 * GIB, 8 * GIB, "host"),
        (5 * GIB, 4 * GIB, 8 * GIB, "stream"),
    ],
)
def test_auto_is_the_first_place_that_holds_the_maps_with_as_much_left_free(
    maps: int, device: int, host: int, pin: Pin
) -> None:
    assert choose_pin("auto", maps, device, host) == pin


@pytest.mark.parametrize("wanted", ["device", "host", "stream"])
def test_what_was_asked_for_is_done(wanted: Pin) -> None:
    assert choose_pin(wanted, 10 * GIB, GIB, 0) == wanted


@pytest.mark.parametrize("pin", ["device", "host"])
def test_batches_are_the_rows_and_views_that_were_asked_for(pin: Pin) -> None:
    maps = torch.arange(5 * 3 * 2 * 4, dtype=torch.float16).view(5, 3, 2, 4)
    source = resident_maps(maps.numpy(), pin, torch.device("cpu"))
    assert source.views == 3
    keys = [
        (torch.tensor([4, 0, 4]), torch.tensor([2, 1, 0])),
        (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)),
    ]
    first, second = source.epoch(keys)
    assert torch.equal(first, torch.stack([maps[4, 2], maps[0, 1], maps[4, 0]]))
    assert second.shape == (0, 2, 4)
    assert isinstance(source, ResidentMaps)
