"""The absorbed queries alone: trained, judged, kept, and used where a head is used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from safe_ray.errors import InputError
from safe_ray.exporting.bundle import write_bundle
from safe_ray.heads.artifact import HOW_TO_LOAD_METHOD, load_head, save_head
from safe_ray.heads.bank import Bank
from safe_ray.heads.optimiser import BankOptimiser
from safe_ray.heads.step import AutogradStep
from safe_ray.poolings import Cut
from safe_ray.poolings.base import QUERIES, select_parameters
from safe_ray.poolings.coca import AttentionalPool
from safe_ray.poolings.latent_attention import LatentAttention
from safe_ray.poolings.modified_resnet import AttentionPool
from safe_ray.poolings.queries import beginning, ended
from safe_ray.poolings.timm_resnet import TimmAttentionPool
from safe_ray.prediction.predictor import Predictor
from safe_ray.search.choosing import Winner
from safe_ray.specs import MethodGroup
from safe_ray.sweep.testing import run_tests
from safe_ray.training.facts import TaskFacts
from safe_ray.training.job import run_bank
from safe_ray.training.outcome import BankOutcome
from tests.exporting.heads import write_head
from tests.heads.test_bank import HEADS, WIDTH, layer, state_of
from tests.poolings.towers import cut_copy, encode, images, small_model, stacked
from tests.training.tasks import CANDIDATES, SAFE, TASK, device, write_task

KINDS = ["siglip", "pe", "resnet"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: small_model(folder, kind) for kind in KINDS}


def cut_of(models: dict[str, Any], kind: str) -> Cut:
    return cut_copy(TimmAttentionPool if kind == "resnet" else LatentAttention, models[kind])


def drawn(cut: Cut, candidates: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    shape = (candidates, cut.pooling.num_heads, cut.width)  # type: ignore[attr-defined]
    return 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def maps_of(cut: Cut, samples: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(samples, cut.tokens, cut.width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_begins_as_the_original_one_and_each_query_is_added_to_its_own(
    models: dict[str, Any], kind: str
) -> None:
    cut = cut_of(models, kind)
    pooling, tokens = cut.pooling, cut.pooling.prepare(maps_of(cut))
    first, shared = beginning(pooling, cut.state, (QUERIES,))
    assert set(first) == {QUERIES}
    original = pooling.pool(tokens, stacked([cut.state]))
    begun = pooling.pool(tokens, stacked([{**shared, **first}]))
    torch.testing.assert_close(begun, original, rtol=1e-12, atol=1e-12)

    # A token's score in a head of attention grows by its product with that head's query alone.
    queries = torch.zeros_like(drawn(cut, 1))
    queries[0, 1] = drawn(cut, 1)[0, 1]
    changed = stacked([{**cut.state, QUERIES: queries[0]}])
    before = pooling.attention(tokens, stacked([cut.state]))[0]
    after = pooling.attention(tokens, changed)[0]
    others = [head for head in range(before.shape[1]) if head != 1]
    torch.testing.assert_close(after[:, others], before[:, others], rtol=1e-10, atol=1e-12)
    if kind != "resnet":
        wanted = torch.softmax(before[:, 1].log() + maps_of(cut) @ queries[0, 1], -1)
        torch.testing.assert_close(after[:, 1], wanted, rtol=1e-9, atol=1e-12)
    assert float((after[:, 1] - before[:, 1]).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_their_gradient_is_that_of_small_differences(models: dict[str, Any], kind: str) -> None:
    cut = cut_of(models, kind)
    tokens = cut.pooling.prepare(maps_of(cut))
    whole = stacked([cut.state] * 2)
    target = torch.randn(2, 3, cut.embed_dim, dtype=torch.float64)

    def loss(queries: Tensor) -> Tensor:
        return (cut.pooling.pool(tokens, {**whole, QUERIES: queries}) * target).sum()

    queries = drawn(cut).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(queries), queries)
    direction = torch.randn_like(queries)
    with torch.no_grad():
        slope = (loss(queries + 1e-6 * direction) - loss(queries - 1e-6 * direction)) / 2e-6
    assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("kind", ["siglip", "pe"])
def test_a_towers_own_keys_take_the_queries_of_a_latent_in(
    models: dict[str, Any], kind: str
) -> None:
    model, pixels = models[kind], images()
    cut = cut_of(models, kind)
    queries = drawn(cut)[0]
    tokens = cut.pooling.prepare(cut.trunk(pixels))
    expected = cut.pooling.pool(tokens, stacked([{**cut.state, QUERIES: queries}]))[0]
    head = ended(cut.pooling, cut.state, {QUERIES: queries})
    assert {name: tensor.shape for name, tensor in head.items()} == {
        name: tensor.shape for name, tensor in cut.state.items()
    }
    assert [n for n in head if not torch.equal(head[n], cut.state[n])] == ["attn_pool.kv.weight"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        named = {cut.prefix + name: tensor for name, tensor in head.items()}
        assert not model.load_state_dict(named, strict=False).unexpected_keys
        torch.testing.assert_close(encode(model, pixels), expected, rtol=1e-9, atol=1e-10)
    finally:
        model.load_state_dict(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_trains_them_alone_and_holds_all_else_once(
    models: dict[str, Any], kind: str
) -> None:
    cut = cut_of(models, kind)
    trained = select_parameters(cut.pooling, [QUERIES], tuple(cut.state))
    assert trained == (QUERIES,)
    first, shared = beginning(cut.pooling, cut.state, trained)
    generator = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(5, cut.embed_dim, generator=generator), dim=-1)
    bank = Bank([first] * 2, cut.pooling, trained, rows, 20.0, shared=shared)
    heads = cut.pooling.num_heads  # type: ignore[attr-defined]
    assert [p.shape for p in bank.parameters()] == [(2, heads, cut.width)]
    optimiser = BankOptimiser(bank, [0.0, 0.0])
    assert cut.pooling.step(bank, optimiser) is None
    step = AutogradStep(bank, optimiser)
    maps = torch.randn(8, cut.tokens, cut.width, generator=generator)
    labels, weights = torch.arange(8) % 5, torch.full((2, 8), 1 / 8)
    losses = [step(cut.pooling.prepare(maps), labels, weights, [3e-2, 1e-1]) for _ in range(20)]
    assert (losses[-1] < 0.9 * losses[0]).all()


def test_they_are_trained_alone_and_where_the_family_has_them() -> None:
    names = tuple(state_of(layer(0)))
    with pytest.raises(InputError, match=r"trains other parts beside queries.*\[queries\]"):
        select_parameters(AttentionPool(2), [QUERIES, "c_proj"], names)
    with pytest.raises(InputError, match=r"choose among .*projection, queries, or all"):
        select_parameters(AttentionPool(2), ["query"], names)
    with pytest.raises(InputError, match=r"names \['queries'\]"):
        select_parameters(AttentionalPool, [QUERIES], ("proj",))
    assert QUERIES not in select_parameters(AttentionPool(2), "all", names)


@pytest.mark.parametrize("selection", ["coop", "cross"])
def test_a_bank_of_them_is_trained_judged_and_kept(tmp_path: Path, selection: str) -> None:
    group = MethodGroup("safe", (SAFE,), (QUERIES,))
    candidates = tuple({**values, "lr": 30 * values["lr"]} for values in CANDIDATES)
    written = write_task(tmp_path, groups=(group,), selection=selection)
    job = replace(written, candidates=candidates)
    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    facts = TaskFacts.load(job.task_folder)
    for candidate in outcome.candidates:
        assert candidate.losses[-1] < candidate.losses[0]
        fit = candidate.fits["safe"]
        folder = job.folder / str(fit.head)
        kept = load_file(folder / "head.safetensors")
        assert {name: tensor.shape for name, tensor in kept.items()} == {QUERIES: (HEADS, WIDTH)}
        _, card = load_head(folder)
        assert tuple(card["how_to_load"]) == HOW_TO_LOAD_METHOD
        if selection == "coop":
            winner = Winner(TASK.id, SAFE, folder, fit.at)
            tested = run_tests(
                Path(job.sweep), [winner], facts.validation, facts.validation_labels, device(), 9
            )[TASK.id].methods["safe"]
            assert tested.accuracy == pytest.approx(fit.point.accuracy)


def test_a_resnets_head_predicts_and_is_exported_where_its_queries_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = write_head(tmp_path)
    _, card = load_head(head)
    before = Predictor.load(head)
    pooling: Any = before.backbone.pooling
    queries = 2 * torch.randn(pooling.num_heads, before.backbone.width)
    save_head(head, {QUERIES: queries}, card)
    predictor = Predictor.load(head)
    side = predictor.preprocessing.size
    pixels = torch.randint(256, (3, 3, side, side), dtype=torch.uint8)
    logits = predictor.logits(pixels)

    # As alpha says, between the original pooling and the one with these queries.
    original = predictor.with_alpha(0.0).logits(pixels)
    assert (logits - original).abs().max() > 1e-3
    state = stacked([{**before.backbone.state, QUERIES: queries}])
    maps = torch.randn(2, before.backbone.tokens, before.backbone.width)
    torch.testing.assert_close(
        pooling.pool_in_graph(maps, state),
        pooling.pool(pooling.prepare(maps), state),
        rtol=1e-5,
        atol=1e-5,
    )

    with pytest.raises(InputError, match=r"tunes the queries.*--format torch or --format onnx"):
        write_bundle(tmp_path / "bundle", predictor, "open_clip")
    images = torch.randn(2, 3, side, side)
    found: dict[str, Any] = {"images": images, "classifier": predictor.task.classifier}
    monkeypatch.chdir(head)
    with torch.no_grad():
        exec("\n".join(json.loads((head / "head.json").read_text())["how_to_load"]), found)
    assert found["logits"].shape == (2, len(predictor.class_names))
