"""Processors are shared out so that the trunk and the decoding always fit side by side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_ray.errors import InputError
from safe_ray.features.plan import plan_actors, plan_batch_size, plan_rows_per_file, useful_actors


def test_two_cores_are_two_actors_and_room_to_decode() -> None:
    plan = plan_actors([{"CPU": 2.0}])
    assert (plan.actors, plan.threads, plan.gpus) == (2, 1, 0)
    assert plan.actors * plan.cpus + plan.decode_cpus <= 2


def test_a_big_machine_has_actors_of_several_threads() -> None:
    plan = plan_actors([{"CPU": 64.0}])
    assert (plan.actors, plan.threads) == (8, 8)


def test_an_actor_on_each_gpu() -> None:
    plan = plan_actors([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0}])
    assert (plan.actors, plan.gpus) == (8, 1)
    assert 4 * plan.cpus + plan.decode_cpus <= 16


def test_one_actor_asked_for_has_all_cores() -> None:
    plan = plan_actors([{"CPU": 8.0}], actors=1)
    assert (plan.actors, plan.threads) == (1, 8)


@given(st.lists(st.integers(1, 128), min_size=1, max_size=6), st.booleans())
def test_actors_never_take_what_decoding_needs(cores: list[int], gpus: bool) -> None:
    nodes = [{"CPU": float(count), "GPU": float(gpus)} for count in cores]
    plan = plan_actors(nodes)
    assert plan.actors >= 1
    assert plan.actors * plan.cpus + plan.decode_cpus <= sum(cores) + 1e-9
    # Ray Data would run both in one actor if they asked for the same.
    assert (plan.cpus, plan.gpus) != (plan.decode_cpus, 0)


@pytest.mark.parametrize(
    ("nodes", "actors", "reason"),
    [([{"CPU": 4.0}], 5, "it has 4 CPUs"), ([{"CPU": 8.0, "GPU": 2.0}], 3, "its 2 GPUs")],
)
def test_more_actors_than_fit_are_refused(
    nodes: list[dict[str, float]], actors: int, reason: str
) -> None:
    with pytest.raises(InputError, match=f"features.actors={actors} .*{reason}"):
        plan_actors(nodes, actors)


def test_a_cluster_without_processors_is_refused() -> None:
    with pytest.raises(InputError, match="has no CPU"):
        plan_actors([{"memory": 1e9}])


@pytest.mark.parametrize(("rows", "actors"), [(1, 1), (127, 1), (128, 2), (10_000, 8)])
def test_few_images_start_few_actors(rows: int, actors: int) -> None:
    assert useful_actors(8, rows) == actors


def test_larger_images_come_in_smaller_batches() -> None:
    assert plan_batch_size(224, gpu=True) == 256
    assert plan_batch_size(448, gpu=True) == 64
    assert plan_batch_size(128, gpu=False) == 64


@given(
    rows=st.integers(1, 100_000),
    bytes_per_row=st.sampled_from([4096, 200_704, 1_605_632]),
    batch_size=st.sampled_from([4, 32, 256]),
    actors=st.integers(1, 64),
)
def test_parts_are_whole_batches_and_share_the_work(
    rows: int, bytes_per_row: int, batch_size: int, actors: int
) -> None:
    size = plan_rows_per_file(rows, bytes_per_row, batch_size, actors)
    assert size % batch_size == 0
    assert (size - batch_size) * bytes_per_row <= 32 * 2**20
    # No actor has more than one batch too much.
    parts = -(-rows // size)
    assert -(-parts // actors) * size < rows / actors + size
