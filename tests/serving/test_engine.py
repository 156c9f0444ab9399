"""One trunk and many heads say what each head says by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safe_ray.errors import InputError
from safe_ray.prediction.predictor import Predictor
from safe_ray.serving.catalogue import Entry, read_catalogue
from safe_ray.serving.engine import AlphaError, Answer, Engine, Request, UnknownTaskError
from safe_ray.specs import BackboneSpec
from tests.serving.heads import TASKS, datasets, write_sweep


@pytest.fixture(scope="module")
def entries(
    tmp_path_factory: pytest.TempPathFactory, tiny_backbone: BackboneSpec
) -> Mapping[str, Entry]:
    sweep = write_sweep(tmp_path_factory.mktemp("sweep"), tiny_backbone, datasets())
    return read_catalogue([str(sweep)])


def images(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)


@contextmanager
def passes(engine: Engine) -> Iterator[list[int]]:
    """How many images each pass of the trunk takes."""
    seen: list[int] = []
    hook = engine.backbone.trunk.register_forward_hook(
        lambda _, args, __: seen.append(len(args[0]))
    )
    yield seen
    hook.remove()


def logits(found: Answer | InputError) -> torch.Tensor:
    assert isinstance(found, Answer), found
    return found.logits


def test_a_mixed_batch_says_what_each_head_says_and_passes_the_trunk_once(
    entries: Mapping[str, Entry],
) -> None:
    engine = Engine(entries)
    asked = [
        Request(TASKS[0], images(2, 0)),
        Request(TASKS[1], images(1, 1)),
        Request(TASKS[0], images(3, 2), 0.9),
        Request(TASKS[2], images(2, 3), 0.0),
        Request(TASKS[0], images(1, 4)),
    ]
    with passes(engine) as seen:
        answers = engine.classify(asked)
    assert seen == [9]
    for request, found in zip(asked, answers, strict=True):
        alone = Predictor.load(entries[request.task].folder, alpha=request.alpha)
        assert torch.allclose(logits(found), alone.logits(request.pixels), atol=2e-2, rtol=1e-3)
        assert isinstance(found, Answer)
        assert torch.allclose(found.probabilities, alone.probabilities(request.pixels), atol=1e-3)
    others = engine.classify([replace(asked[0], task=TASKS[1])])
    assert not torch.allclose(logits(others[0]), logits(answers[0]), atol=0.5)


def test_all_heads_share_one_trunk_and_one_original_pooling(entries: Mapping[str, Entry]) -> None:
    engine = Engine(entries)
    answers = engine.classify([Request(task, images(1)) for task in TASKS])
    for found in answers:
        assert isinstance(found, Answer)
        assert found.predictor.backbone is engine.backbone
    assert engine.in_memory == engine.loads == len(TASKS)


def test_more_images_than_a_batch_pass_the_trunk_in_several(entries: Mapping[str, Entry]) -> None:
    engine = Engine(entries, batch=4)
    with passes(engine) as seen:
        engine.classify([Request(TASKS[0], images(6)), Request(TASKS[1], images(3))])
    assert seen == [4, 4, 1]


def test_a_request_that_cannot_be_answered_leaves_the_others_alone(
    entries: Mapping[str, Entry], tmp_path: Path
) -> None:
    gone = replace(entries[TASKS[1]], folder=tmp_path, digest="other")
    engine = Engine({**entries, TASKS[1]: gone})
    unknown, unfit, broken, good = engine.classify(
        [
            Request("shapes-2shot-seed2", images(1)),
            Request(TASKS[0], images(1), 1.5),
            Request(TASKS[1], images(1)),
            Request(TASKS[0], images(1)),
        ]
    )
    assert isinstance(unknown, UnknownTaskError)
    assert "Did you mean 'shapes-2shot-seed1'" in str(unknown)
    assert isinstance(unfit, AlphaError)
    assert "between 0 (zero-shot) and 1 (tuned)" in str(unfit)
    assert isinstance(broken, InputError)
    assert "There is no head in" in str(broken)
    assert isinstance(good, Answer)


def test_the_head_that_was_used_last_the_longest_ago_is_dropped(
    entries: Mapping[str, Entry],
) -> None:
    engine = Engine(entries, heads=2)
    for task, loads in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        engine.classify([Request(TASKS[task], images(1))])
        assert (engine.loads, engine.in_memory) == (loads, min(loads, 2))
    # A batch may need more heads than are kept.
    answers = engine.classify([Request(task, images(1)) for task in TASKS])
    assert all(isinstance(found, Answer) for found in answers)
    assert engine.in_memory == 2


def test_heads_that_moved_are_read_again_and_the_others_stay(
    entries: Mapping[str, Entry], tmp_path: Path, tiny_backbone: BackboneSpec
) -> None:
    engine = Engine(entries)
    before = [logits(found) for found in engine.classify([Request(t, images(2)) for t in TASKS])]
    seeds = datasets()
    seeds["signs"] = 77
    del seeds["stamps"]
    moved = read_catalogue([str(write_sweep(tmp_path, tiny_backbone, seeds))])
    engine.replace(moved)
    loads = engine.loads
    first, second, third = engine.classify([Request(task, images(2)) for task in TASKS])
    assert torch.equal(logits(first), before[0])
    assert not torch.allclose(logits(second), before[1], atol=0.5)
    assert isinstance(third, UnknownTaskError)
    assert engine.loads == loads + 1


def test_heads_of_another_backbone_are_refused_and_nothing_changes(
    entries: Mapping[str, Entry],
) -> None:
    engine = Engine(entries)
    card = dict(entries[TASKS[0]].card)
    card["backbone"] = {**card["backbone"], "digest": "f" * 16}
    with pytest.raises(InputError, match="start another server"):
        engine.replace({TASKS[0]: replace(entries[TASKS[0]], card=card)})
    assert set(engine.entries) == set(TASKS)


def test_an_explanation_has_every_alpha_of_one_pass_and_where_it_looks(
    entries: Mapping[str, Entry],
) -> None:
    engine = Engine(entries)
    shown = images(1)
    with passes(engine) as seen:
        found = engine.explain(TASKS[0], shown)
    assert seen == [1]
    assert found.predictor.at["alpha"] in found.alphas
    assert (found.alphas[0], found.alphas[-1]) == (0.0, 1.0)
    assert list(found.alphas) == sorted(set(found.alphas))
    for alpha, row in zip(found.alphas, found.probabilities, strict=True):
        alone = engine.classify([Request(TASKS[0], shown, alpha)])[0]
        assert isinstance(alone, Answer)
        assert torch.allclose(alone.probabilities[0], row, atol=1e-4)
    for weights in (found.original, found.tuned):
        assert weights.shape == (2, 2)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(found.original, found.tuned, atol=1e-6)


def test_blended_weights_are_not_kept_for_every_alpha_that_somebody_asks_for(
    tmp_path: Path, tiny_backbone: BackboneSpec
) -> None:
    from tests.prediction.heads import write_head
    from tests.serving.heads import SAFE

    write_head(tmp_path, tiny_backbone, method={**SAFE, "options": {"blend": "weights"}})
    entries = read_catalogue([str(tmp_path)])
    (task,) = entries
    engine = Engine(entries)
    first, second = engine.classify([Request(task, images(1), 0.25), Request(task, images(1))])
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert first.predictor.fitted is not second.predictor.fitted
    assert torch.allclose(
        first.logits, Predictor.load(tmp_path, alpha=0.25).logits(images(1)), atol=2e-2
    )


def test_a_server_without_a_head_that_can_be_used_does_not_begin(
    entries: Mapping[str, Entry], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="There is no head in"):
        Engine({TASKS[0]: replace(entries[TASKS[0]], folder=tmp_path)})
    # One that can be is enough.
    engine = Engine({"gone": replace(entries[TASKS[0]], folder=tmp_path), **entries})
    assert isinstance(engine.classify([Request(TASKS[1], images(1))])[0], Answer)
