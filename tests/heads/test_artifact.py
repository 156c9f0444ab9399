from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_ray.backbones.openclip import load_backbone
from safe_ray.errors import InputError
from safe_ray.heads.artifact import CARD_FILE, CARD_KEYS, WEIGHTS_FILE, load_head, save_head
from safe_ray.methods.base import TaskData, how_to_load, make_method
from safe_ray.methods.features import MappedFeatures

WIDTH, EMBED, TOKENS = 512, 64, 4


@pytest.fixture
def tower() -> ModifiedResNet:
    torch.manual_seed(0)
    visual = ModifiedResNet(
        layers=[1, 1, 1, 1], output_dim=EMBED, heads=8, image_size=64, width=WIDTH // 32
    )
    return visual.eval()


@pytest.fixture
def state(tower: ModifiedResNet) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.05
        for name, tensor in tower.attnpool.state_dict().items()
    }


def card(**changes: Any) -> dict[str, Any]:
    values = {
        "backbone": {"name": "tiny", "model": "tiny", "pretrained": None, "digest": "0" * 16},
        "dataset": "shapes",
        "shots": 2,
        "seed": 1,
        "class_names": ["red circle", "grünes Quadrat"],
        "templates": ["a drawing of a {}."],
        "method": {"name": "safe", "module": "safe_ray.methods.tuned", "options": {}},
        "alpha": 0.4,
        "knobs": {"alpha": 0.4},
        "logit_scale": 100.0,
        "preprocessing": {"size": 64, "mean": (0.5, 0.5, 0.5)},
        "episode": {"digest": "a", "train_digest": "b", "validation_digest": "c"},
        "hyper_parameters": {"lr": 1e-3, "weight_decay": 0.0, "epochs": 4},
        "metrics": {"validation": {"accuracy": 0.5, "nll": 1.25}},
    }
    return {**values, **changes}


def test_a_saved_head_loads_strictly_into_open_clips_layer(
    tmp_path: Path, tower: ModifiedResNet, state: dict[str, Tensor]
) -> None:
    images = torch.rand(3, 3, 64, 64)
    before = tower(images)
    save_head(tmp_path / "head", state, card())
    tower.attnpool.load_state_dict(load_file(tmp_path / "head" / WEIGHTS_FILE), strict=True)
    after = tower(images)
    assert after.shape == (3, EMBED)
    assert not torch.allclose(before, after)
    for name, tensor in tower.attnpool.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_head_comes_back_as_it_was_saved(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_head(tmp_path, state, card())
    loaded, read = load_head(tmp_path)
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert read["format_version"] == 1
    assert read["class_names"] == ["red circle", "grünes Quadrat"]
    assert read["preprocessing"] == {"size": 64, "mean": [0.5, 0.5, 0.5]}
    assert {*CARD_KEYS, "weights", "how_to_load"} <= set(read)
    assert {file.name for file in tmp_path.iterdir()} == {WEIGHTS_FILE, CARD_FILE}


def test_any_dtype_and_layout_becomes_float32(tmp_path: Path, state: dict[str, Tensor]) -> None:
    odd = {
        name: tensor.double().t().contiguous().t() if tensor.ndim == 2 else tensor.bfloat16()
        for name, tensor in state.items()
    }
    odd["q_proj.weight"].requires_grad_()
    save_head(tmp_path, odd, card())
    loaded, _ = load_head(tmp_path)
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert torch.equal(loaded["k_proj.weight"], state["k_proj.weight"])


def test_what_json_cannot_hold_is_null(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_head(tmp_path, state, card(metrics={"nll": float("nan"), "row": [float("inf"), 1.0]}))
    text = (tmp_path / CARD_FILE).read_text()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["metrics"] == {"nll": None, "row": [None, 1.0]}


def test_the_cards_own_lines_load_the_head_into_plain_open_clip(
    tmp_path: Path, tiny_backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_clip.add_model_config(Path(tiny_backbone.model_config))
    torch.manual_seed(3)
    model = open_clip.create_model(tiny_backbone.model).eval()
    tuned = {
        name: tensor + 0.05 * torch.randn(tensor.shape)
        for name, tensor in model.visual.attnpool.state_dict().items()
    }
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    weights = str(tmp_path / "model.safetensors")
    backbone = {"name": "tiny", "model": tiny_backbone.model, "pretrained": weights}
    save_head(tmp_path, tuned, card(backbone=backbone))
    images = torch.rand(5, 3, 64, 64)
    classifier = torch.nn.functional.normalize(torch.randn(2, EMBED), dim=-1)

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"images": images, "classifier": classifier}
    with torch.no_grad():
        exec("\n".join(load_head(tmp_path)[1]["how_to_load"]), names)
        original = model.encode_image(images)
        model.visual.attnpool.load_state_dict(tuned)
        blended = 0.4 * model.encode_image(images) + 0.6 * original
    expected = 100 * torch.nn.functional.normalize(blended, dim=-1) @ classifier.T
    torch.testing.assert_close(names["logits"], expected)


def test_another_methods_own_lines_give_its_logits(
    tmp_path: Path, tiny_backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(tiny_backbone, seed=3)
    backbone = load_backbone(spec)
    maps = backbone.trunk(torch.rand(6, 3, 64, 64)).unsqueeze(1)
    features = MappedFeatures(maps, backbone.pooling, backbone.state, maps.device)
    classifier = torch.nn.functional.normalize(torch.randn(2, EMBED), dim=-1)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    task = TaskData(features, labels, classifier, 100.0, backbone.state)
    options = {"features": "original", "adapter": "cache"}
    (fitted,) = make_method("safe_ray.methods.adapted", options).fit(task, [{}])
    # A file of weights, so that the model which the lines load is this one.
    open_clip.add_model_config(Path(spec.model_config))
    torch.manual_seed(spec.seed)
    save_file(open_clip.create_model(spec.model).state_dict(), tmp_path / "model.safetensors")
    named = {
        "name": "tiny",
        "model": spec.model,
        "pretrained": str(tmp_path / "model.safetensors"),
        "model_config": spec.model_config,
    }
    method = {"name": "tip_adapter", "module": "safe_ray.methods.adapted", "options": options}
    knobs = {"beta": 3.0, "gamma": 2.0}
    save_head(
        tmp_path,
        fitted.state(),
        card(backbone=named, method=method, knobs=knobs),
        how_to_load("safe_ray.methods.adapted", options),
    )
    images = torch.rand(5, 3, 64, 64)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"images": images, "classifier": classifier}
    with torch.no_grad():
        exec("\n".join(load_head(tmp_path)[1]["how_to_load"]), names)
        seen = backbone.trunk(images).unsqueeze(1)
        tested = MappedFeatures(seen, backbone.pooling, backbone.state, seen.device)
        torch.testing.assert_close(names["logits"], fitted.logits(tested, knobs))


def test_weights_that_another_head_has_already_are_one_file(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    save_head(tmp_path / "a", state, card())
    other = card(
        method={**card()["method"], "name": "tuned_pooling"}, knobs={"alpha": 1.0}, alpha=1.0
    )
    save_head(tmp_path / "b", state, other, same_weights=tmp_path / "a")
    assert (tmp_path / "a" / WEIGHTS_FILE).samefile(tmp_path / "b" / WEIGHTS_FILE)
    loaded, read = load_head(tmp_path / "b")
    assert read["knobs"] == {"alpha": 1.0}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("key", CARD_KEYS)
def test_a_card_without_a_key_is_not_saved(
    tmp_path: Path, state: dict[str, Tensor], key: str
) -> None:
    incomplete = {name: value for name, value in card().items() if name != key}
    with pytest.raises(ValueError, match=key):
        save_head(tmp_path, state, incomplete)
    assert list(tmp_path.iterdir()) == []


def test_a_state_without_parameters_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without parameters"):
        save_head(tmp_path, {}, card())


def test_no_head_is_told_from_a_damaged_one(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="There is no head in"):
        load_head(tmp_path)
    save_head(tmp_path, state, card())
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match=r"head\.safetensors cannot be read"):
        load_head(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_head(tmp_path, state, card())
    file = tmp_path / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="is damaged"):
        load_head(tmp_path)


def test_weights_of_another_head_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_head(tmp_path / "a", state, card())
    save_head(tmp_path / "b", {k: v + 1 for k, v in state.items()}, card())
    (tmp_path / "b" / WEIGHTS_FILE).replace(tmp_path / "a" / WEIGHTS_FILE)
    with pytest.raises(InputError, match="SHA-256"):
        load_head(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "upgrade safe_ray"),
        ({"format_version": "1"}, "not the card of a head"),
        ({"format_version": None}, "not the card of a head"),
        ({"knobs": ...}, "lacks knobs"),
    ],
)
def test_a_card_that_cannot_be_understood_is_refused(
    tmp_path: Path, state: dict[str, Tensor], change: dict[str, Any], words: str
) -> None:
    save_head(tmp_path, state, card())
    whole = {**json.loads((tmp_path / CARD_FILE).read_text()), **change}
    kept = {key: value for key, value in whole.items() if value is not ...}
    (tmp_path / CARD_FILE).write_text(json.dumps(kept))
    with pytest.raises(InputError, match=words):
        load_head(tmp_path)


def test_a_card_that_is_not_json_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_head(tmp_path, state, card())
    (tmp_path / CARD_FILE).write_bytes(b'{"alpha": ')
    with pytest.raises(InputError, match="is not JSON"):
        load_head(tmp_path)


def test_a_head_needs_no_torch_to_be_read(tmp_path: Path, state: dict[str, Tensor]) -> None:
    from safetensors.numpy import load_file as load_numpy

    save_head(tmp_path, state, card())
    arrays = load_numpy(tmp_path / WEIGHTS_FILE)
    assert arrays["positional_embedding"].shape == (TOKENS + 1, WIDTH)
    assert arrays["c_proj.weight"].dtype == np.float32
