"""Candidates are trained at once as each would be alone, by torch's own AdamW and cosine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_ray.methods.feature_training import Stacked, train_on_features
from tests.methods.test_adapted import draw

BATCH = 256
SAMPLES, VIEWS, DIM, CLASSES = BATCH + 44, 3, 5, 4
FEATURES = draw(0, SAMPLES, VIEWS, DIM)
LABELS = torch.arange(SAMPLES) % CLASSES
LRS, EPOCHS = (0.3, 0.05), (2, 5)
START = (draw(1, CLASSES, DIM), draw(2, CLASSES))


class Linear:
    """The logits of a linear classifier, which remembers the batches that it saw."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def __call__(self, parameters: Stacked, seen: Tensor) -> Tensor:
        self.batches.append(seen.clone())
        weight, bias = parameters
        return seen @ weight.transpose(1, 2) + bias.unsqueeze(1)


def train(logits: Linear, seed: int = 0, which: slice = slice(None), **options: Any):
    lrs, epochs = LRS[which], EPOCHS[which]
    features = FEATURES.expand(len(lrs), -1, -1, -1)
    start = [own.expand(len(lrs), *own.shape) for own in START]
    return train_on_features(features, LABELS, start, logits, lrs, epochs, seed, **options)


def labels_of(seen: Tensor) -> Tensor:
    """Which class the samples of a batch are of, found by their features."""
    return LABELS[places(seen) // VIEWS]


def places(seen: Tensor) -> Tensor:
    return (seen[0].unsqueeze(1) == FEATURES.flatten(0, 1)).all(-1).int().argmax(1)


@pytest.mark.parametrize(("decay", "strength"), [(0.0, 0.0), (1e-2, 0.0), (0.0, 0.3)])
def test_a_candidate_is_trained_as_by_a_loop_of_its_own(decay: float, strength: float) -> None:
    logits = Linear()

    def penalty(parameters: Stacked) -> Tensor:
        return strength * parameters[0].square().flatten(1).sum(1)

    options = {"penalty": penalty} if strength else {}
    trained = train(logits, weight_decay=decay, **options)
    steps = len(logits.batches) // max(EPOCHS)
    for k, (lr, epochs) in enumerate(zip(LRS, EPOCHS, strict=True)):
        layer = nn.Linear(DIM, CLASSES).double()
        layer.weight, layer.bias = (nn.Parameter(own.clone()) for own in START)
        update = torch.optim.AdamW(layer.parameters(), lr=lr, weight_decay=decay)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(update, epochs * steps)
        for seen in logits.batches[: epochs * steps]:
            loss = nn.functional.cross_entropy(layer(seen[k]), labels_of(seen))
            update.zero_grad()
            (loss + strength * layer.weight.square().sum()).backward()
            update.step()
            cosine.step()
        for found, expected in zip(trained, (layer.weight, layer.bias), strict=True):
            assert torch.allclose(found[k], expected, rtol=1e-9, atol=1e-12)


def test_together_is_as_alone() -> None:
    together = train(Linear())
    for k in range(len(LRS)):
        alone = train(Linear(), which=slice(k, k + 1))
        for all_of_them, own in zip(together, alone, strict=True):
            assert torch.allclose(all_of_them[k], own[0], rtol=1e-10, atol=1e-12)


def test_an_epoch_shows_each_sample_once_in_one_of_its_views() -> None:
    logits = Linear()
    train(logits)
    sizes = [seen.shape[1] for seen in logits.batches]
    assert sizes == [BATCH, SAMPLES - BATCH] * max(EPOCHS)
    epochs = []
    for first in range(0, len(sizes), 2):
        seen = torch.cat(logits.batches[first : first + 2], 1)
        assert torch.equal(seen[0], seen[1])
        which = places(seen)
        sample, view = which // VIEWS, which % VIEWS
        assert torch.equal(seen[0], FEATURES[sample, view])
        assert sorted(sample.tolist()) == list(range(SAMPLES))
        assert set(view.tolist()) == set(range(VIEWS))
        epochs.append(which)
    assert not torch.equal(epochs[0], epochs[1])


def test_the_seed_decides_what_is_drawn() -> None:
    one, same, other = (train(Linear(), seed)[0] for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_where_training_began_is_left_as_it_was() -> None:
    before = [own.clone() for own in START]
    train(Linear())
    assert all(torch.equal(own, kept) for own, kept in zip(START, before, strict=True))
