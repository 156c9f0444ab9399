"""The loop: every sample once an epoch, members independent, checkpoints exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_ray.errors import InputError
from safe_ray.poolings.base import HeadState
from safe_ray.training.checkpoint import load_state, save_state
from safe_ray.training.loop import (
    LoopOptions,
    SupportShard,
    begin,
    epoch_plan,
    train_bank,
)
from safe_ray.training.maps import ResidentMaps
from safe_ray.training.members import Member, TrainingState
from tests.heads.test_bank import CLASSES, GRID, NAMES, POOL, WIDTH, classifier, layer, state_of

CPU = torch.device("cpu")
OPTIONS = LoopOptions(batch_size=8, warmup=0.1, seed=3, trained=NAMES)


def support(total: int = 21, views: int = 3) -> SupportShard:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(total, views, GRID * GRID, WIDTH, generator=generator).half()
    labels = torch.randint(CLASSES, (total,), generator=generator)
    return SupportShard(ResidentMaps(maps, CPU), labels, torch.arange(total), total)


def train(
    members: list[Member],
    state: TrainingState | None = None,
    on_checkpoint: Callable[[TrainingState], None] | None = None,
    start: HeadState | None = None,
) -> TrainingState:
    return train_bank(
        members,
        state or begin(state_of(layer(0)), len(members)),
        support(),
        classifier(),
        POOL,
        20.0,
        OPTIONS,
        on_checkpoint=on_checkpoint,
        checkpoint_seconds=0.0 if on_checkpoint else 60.0,
        start=start,
    )


def test_a_member_is_made_of_a_candidates_values() -> None:
    assert Member.of({}) == Member()
    values = {"lr": 1e-3, "epochs": 12.0, "decay_to_start": 2.0, "temperature": 0.5}
    assert Member.of(values, (True,)) == Member(1e-3, 0.01, 12, (True,), 2.0, 0.5)
    assert isinstance(Member.of(values).epochs, int)
    with pytest.raises(
        InputError, match=r"names momentum, which .* knows lr, weight_decay, epochs"
    ):
        Member.of({"lr": 1e-3, "momentum": 0.9})


def test_a_decay_towards_the_start_asks_for_the_start() -> None:
    start = state_of(layer(0))
    pulled = [Member(1e-3, 0.0, 5, decay_to_start=50.0)]
    with pytest.raises(ValueError, match="pass start"):
        train(pulled)

    def moved(members: list[Member]) -> float:
        head = train(members, start=start).members[0].head
        return float((head["v_proj.weight"] - start["v_proj.weight"]).norm())

    assert moved(pulled) < 0.9 * moved([Member(1e-3, 0.0, 5)])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), epoch=st.integers(0, 99), total=st.integers(1, 60))
def test_an_epoch_uses_every_sample_once(seed: int, epoch: int, total: int) -> None:
    order, view = epoch_plan(seed, epoch, total, views=4)
    assert sorted(order.tolist()) == list(range(total))
    assert all(0 <= v < 4 for v in view.tolist())
    again, _ = epoch_plan(seed, epoch, total, views=4)
    assert torch.equal(order, again)


def test_members_with_their_own_schedules_train_as_they_would_alone() -> None:
    members = [Member(1e-3, 0.0, 2), Member(3e-4, 0.1, 7), Member(1e-4, 0.01, 4)]
    together = train(members)
    for index, member in enumerate(members):
        alone = train([member]).members[0]
        assert len(alone.losses) == member.epochs
        assert together.members[index].losses == pytest.approx(alone.losses, rel=1e-4)
        for name in NAMES:
            assert torch.allclose(
                together.members[index].head[name], alone.head[name], rtol=1e-3, atol=1e-5
            )


def test_training_lowers_the_loss() -> None:
    losses = train([Member(1e-3, 0.0, 15)]).members[0].losses
    assert losses[-1] < 0.5 * losses[0]


def test_a_member_that_diverges_is_marked_and_the_others_go_on() -> None:
    members = [Member(1e-3, 0.0, 5), Member(1e30, 0.0, 5)]
    final = train(members)
    assert final.members[1].failed
    assert not final.members[0].failed
    alone = train(members[:1]).members[0]
    assert final.members[0].losses == pytest.approx(alone.losses, rel=1e-4)


def test_a_member_that_leaves_samples_out_never_sees_them() -> None:
    shard = support()
    include = tuple(position % 3 != 0 for position in range(shard.total))
    whole = [(torch.arange(shard.total).repeat(3), torch.arange(3).repeat_interleave(shard.total))]
    (sound,) = shard.maps.epoch(whole)
    sound = sound.view(3, shard.total, GRID * GRID, WIDTH).transpose(0, 1)
    poisoned = sound.clone()
    poisoned[::3] = 50.0
    results = [
        train_bank(
            [Member(1e-3, 0.0, 3, include)],
            begin(state_of(layer(0)), 1),
            SupportShard(ResidentMaps(maps, CPU), shard.labels, shard.positions, shard.total),
            classifier(),
            POOL,
            20.0,
            OPTIONS,
        ).members[0]
        for maps in (sound, poisoned)
    ]
    assert results[0].losses == results[1].losses
    assert torch.equal(results[0].head["c_proj.weight"], results[1].head["c_proj.weight"])


def test_a_checkpoint_goes_on_to_the_bit(tmp_path: Path) -> None:
    members = [Member(1e-3, 0.0, 3), Member(3e-4, 0.1, 6, decay_to_start=9.0, temperature=0.5)]
    start = state_of(layer(0))
    path = tmp_path / "checkpoint.safetensors"

    class Killed(Exception):
        pass

    def keep(state: TrainingState) -> None:
        save_state(path, state, owner="bank")
        if state.epoch == 4:
            raise Killed

    whole = train(members, on_checkpoint=lambda state: None, start=start)
    with pytest.raises(Killed):
        train(members, on_checkpoint=keep, start=start)
    resumed = load_state(path, owner="bank")
    assert resumed is not None
    assert resumed.epoch == 4
    final = train(members, resumed, on_checkpoint=lambda state: None, start=start)

    for expected, member in zip(whole.members, final.members, strict=True):
        assert member.losses == expected.losses
        for name in NAMES:
            assert torch.equal(member.head[name], expected.head[name])


def test_a_checkpoint_of_another_bank_or_a_torn_one_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    assert load_state(path, owner="bank") is None
    save_state(path, begin(state_of(layer(0)), 2), owner="bank")
    assert load_state(path, owner="another") is None
    assert load_state(path, owner="bank") is not None
    path.write_bytes(path.read_bytes()[:1000])
    assert load_state(path, owner="bank") is None
