"""A bank computes open_clip's attention pooling, K times, and trains each head as if alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn

from safe_ray.errors import InputError
from safe_ray.heads.bank import Bank, tuned_logits
from safe_ray.heads.optimiser import BankOptimiser
from safe_ray.poolings.base import select_parameters
from safe_ray.poolings.modified_resnet import AttentionPool, pool_bank, with_mean_token

GRID, WIDTH, HEADS, DIM, CLASSES = 3, 128, 4, 48, 7
POOL = AttentionPool(HEADS)
NAMES = tuple(AttentionPool2d(2, 8, 2, 4).state_dict())


def layer(seed: int, grid: int = GRID, width: int = WIDTH, heads: int = HEADS) -> AttentionPool2d:
    torch.manual_seed(seed)
    pooling = AttentionPool2d(grid, width, heads, DIM)
    for name, parameter in pooling.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return pooling


def state_of(pooling: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in pooling.state_dict().items()}


def as_image(maps: Tensor, grid: int) -> Tensor:
    """[N, L, C] tokens as the [N, C, H, W] that open_clip's layer takes."""
    return maps.transpose(1, 2).reshape(maps.shape[0], maps.shape[2], grid, grid)


def classifier() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return nn.functional.normalize(torch.randn(CLASSES, DIM, generator=generator), dim=-1)


def one_batch(samples: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    maps = torch.randn(samples, GRID * GRID, WIDTH, generator=generator)
    return maps, torch.randint(CLASSES, (samples,), generator=generator)


@settings(max_examples=20, deadline=None)
@given(
    candidates=st.integers(1, 4),
    samples=st.integers(1, 5),
    grid=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 8]),
)
def test_pooling_is_open_clips_in_float64(
    candidates: int, samples: int, grid: int, heads: int
) -> None:
    layers = [layer(seed, grid, 64, heads).double() for seed in range(candidates)]
    maps = torch.randn(samples, grid * grid, 64, dtype=torch.float64)
    stacked = {name: torch.stack([state_of(pooling)[name] for pooling in layers]) for name in NAMES}
    tokens = torch.cat([maps.mean(1, keepdim=True), maps], dim=1)

    pooled = pool_bank(tokens, stacked, heads)

    expected = torch.stack([pooling(as_image(maps, grid)) for pooling in layers])
    assert torch.allclose(pooled, expected, rtol=1e-10, atol=1e-12)


def test_gradients_are_open_clips_in_float64() -> None:
    pooling = layer(0).double()
    maps = one_batch()[0].double()
    stacked = {
        name: tensor.unsqueeze(0).requires_grad_() for name, tensor in state_of(pooling).items()
    }
    tokens = torch.cat([maps.mean(1, keepdim=True), maps], dim=1)
    target = torch.randn(16, DIM, dtype=torch.float64)

    (pool_bank(tokens, stacked, HEADS)[0] * target).sum().backward()
    (pooling(as_image(maps, GRID)) * target).sum().backward()

    for name, parameter in pooling.named_parameters():
        if name == "k_proj.bias":
            assert parameter.grad.abs().max() < 1e-12  # it cancels in the softmax
        else:
            assert torch.allclose(stacked[name].grad[0], parameter.grad, rtol=1e-9, atol=1e-12)


def train(bank: Bank, decays: list[float], rates: list[float], steps: int) -> None:
    maps, labels = one_batch()
    optimiser = BankOptimiser(bank, decays)
    weights = torch.full((len(bank), len(labels)), 1 / len(labels))
    for _ in range(steps):
        bank(with_mean_token(maps), labels, weights).sum().backward()
        optimiser.step(rates)


def test_fifty_steps_equal_open_clips_layer_with_torchs_adamw() -> None:
    rates, decays = [1e-4, 1e-3, 3e-4], [0.0, 0.1, 0.01]
    layers = [layer(seed) for seed in range(3)]
    bank = Bank(
        [state_of(pooling) for pooling in layers],
        POOL,
        NAMES,
        classifier(),
        20.0,
    )
    train(bank, decays, rates, steps=50)

    maps, labels = one_batch()
    for index, pooling in enumerate(layers):
        before = state_of(pooling)
        optimiser = torch.optim.AdamW(
            pooling.parameters(), lr=rates[index], weight_decay=decays[index]
        )
        for _ in range(50):
            optimiser.zero_grad()
            features = pooling(as_image(maps, GRID))
            nn.functional.cross_entropy(
                tuned_logits(features, classifier(), 20.0), labels
            ).backward()
            optimiser.step()
        head = bank.head(index)
        for name, expected in state_of(pooling).items():
            if name == "k_proj.bias":
                continue  # without a gradient but for rounding, and without effect
            moved = (expected - before[name]).norm()
            assert (head[name] - expected).norm() < 0.01 * moved, name
        with torch.no_grad():
            expected_features = pooling(as_image(maps, GRID))
        assert torch.allclose(
            bank.pool(with_mean_token(maps))[index], expected_features, rtol=1e-3, atol=1e-4
        )


def test_a_head_of_a_bank_trains_as_it_would_alone() -> None:
    rates, decays = [1e-4, 1e-3, 3e-4], [0.0, 0.1, 0.01]
    states = [state_of(layer(seed)) for seed in range(3)]
    together = Bank(states, POOL, NAMES, classifier(), 20.0)
    train(together, decays, rates, steps=20)
    for index in range(3):
        alone = Bank([states[index]], POOL, NAMES, classifier(), 20.0)
        train(alone, [decays[index]], [rates[index]], steps=20)
        for name in NAMES:
            assert torch.allclose(
                together.head(index)[name], alone.head(0)[name], rtol=1e-3, atol=1e-5
            ), name


@pytest.mark.parametrize("groups", [["v_proj", "c_proj"], ["positional_embedding"], ["q_proj"]])
def test_only_the_chosen_parameters_move(groups: list[str]) -> None:
    start = state_of(layer(0))
    chosen = select_parameters(POOL, groups, NAMES)
    bank = Bank([start], POOL, chosen, classifier(), 20.0)
    train(bank, [0.1], [1e-3], steps=3)
    moved = {n for n, tensor in bank.head(0).items() if not torch.equal(tensor, start[n])}
    assert moved == set(chosen)


def test_a_diverged_head_leaves_its_neighbours_untouched() -> None:
    states = [state_of(layer(seed)) for seed in range(3)]
    poisoned = [dict(state) for state in states]
    poisoned[1]["q_proj.weight"] = torch.full_like(states[1]["q_proj.weight"], float("nan"))
    sound = Bank(states, POOL, NAMES, classifier(), 20.0)
    sick = Bank(poisoned, POOL, NAMES, classifier(), 20.0)
    for bank in (sound, sick):
        train(bank, [0.01] * 3, [1e-3] * 3, steps=5)
    assert not sick.head(1)["c_proj.weight"].isfinite().all()
    for index in (0, 2):
        for name in NAMES:
            assert torch.equal(sick.head(index)[name], sound.head(index)[name])


def test_left_out_samples_have_no_influence() -> None:
    maps, labels = one_batch()
    start = state_of(layer(0))
    weights = torch.full((1, 16), 1 / 8)
    weights[:, 8:] = 0
    grads = []
    for tokens in (maps, torch.cat([maps[:8], torch.full_like(maps[8:], 1e3)])):
        bank = Bank([start], POOL, NAMES, classifier(), 20.0)
        bank(with_mean_token(tokens), labels, weights).sum().backward()
        grads.append(bank.stacked("c_proj.weight").grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("groups", [["qproj"], [], ["all"]])
def test_unknown_parameter_groups_are_refused(groups: list[str]) -> None:
    with pytest.raises(InputError, match="choose among positional_embedding"):
        select_parameters(POOL, groups, NAMES)


def test_a_pull_to_the_zero_shot_logits_is_part_of_the_loss() -> None:
    """Against open_clip's layer in float64, with the difference of logits written out."""
    maps, labels = one_batch()
    weights = torch.full((2, 16), 1 / 16)
    states = [state_of(layer(seed)) for seed in (1, 2)]
    anchor = state_of(layer(0))
    bank = Bank(states, POOL, NAMES, classifier(), 20.0, None, [1.0, 0.5], anchor, [0.0, 0.3])
    losses = bank(with_mean_token(maps), labels, weights)
    original = tuned_logits(layer(0)(as_image(maps, GRID)), classifier(), 20.0)
    for place, (seed, pull, temperature) in enumerate([(1, 0.0, 1.0), (2, 0.3, 0.5)]):
        logits = tuned_logits(layer(seed)(as_image(maps, GRID)), classifier(), 20.0)
        expected = nn.functional.cross_entropy(temperature * logits, labels)
        expected = expected + pull * (logits - original).abs().mean()
        assert losses[place].item() == pytest.approx(expected.item(), rel=1e-4)
    assert not any("anchor" in name for name in bank.state_dict())
