from __future__ import annotations

import dataclasses
import gc
import json
import logging
import pickle
import warnings

import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED

from safe_ray.backbones.openclip import load_backbone
from safe_ray.errors import InputError
from safe_ray.poolings.modified_resnet import AttentionPool
from safe_ray.specs import BackboneSpec
from tests.backbones.models import (
    SMALL_TEXT,
    SMALL_VISION,
    enliven,
    lively_model,
    save_model,
    small_spec,
    write_config,
)
from tests.heads.test_bank import NAMES


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


# --- the parts together are open_clip's model ---


@torch.no_grad()
def test_trunk_and_pooling_of_an_rn50_equal_encode_image_in_float64(tmp_path):
    vision = open_clip.get_model_config("RN50")["vision_cfg"]
    spec = small_spec(tmp_path, name="safe-ray-test-rn50", embed_dim=1024, vision_cfg=vision)
    model = lively_model(spec)
    file = save_model(model, tmp_path / "rn50.safetensors")
    backbone = load_backbone(dataclasses.replace(spec, pretrained=str(file)))
    file.unlink()
    assert (backbone.tokens, backbone.width, backbone.pooling) == (49, 2048, AttentionPool(32))
    assert backbone.embed_dim == 1024
    assert backbone.preprocessing.size == 224

    images = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    tokens = backbone.trunk.double()(images)
    assert tokens.shape == (2, 49, 2048)
    state = {name: tensor.double() for name, tensor in backbone.state.items()}
    pooled = dataclasses.replace(backbone, state=state).pool(tokens)
    assert relative_error(pooled, model.double().encode_image(images)) < 1e-10


def modified_resnets():
    names = [
        name
        for name in open_clip.list_models()
        if isinstance(open_clip.get_model_config(name)["vision_cfg"].get("layers"), list)
        and not name.startswith("safe-ray")
        # These differ from their namesakes in the text tower alone.
        and not name.endswith("-quickgelu")
        # The largest takes half a minute, and its shapes are checked with those of every model.
        and not name.startswith("RN50x64")
    ]
    return [pytest.param(name, marks=pytest.mark.slow) if "x16" in name else name for name in names]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", modified_resnets())
@torch.no_grad()
def test_every_modified_resnet_of_open_clip_equals_its_encode_image(name):
    backbone = load_backbone(BackboneSpec(name, name), parts=("trunk", "pooling"))
    torch.manual_seed(0)
    images = torch.randn(1, 3, backbone.preprocessing.size, backbone.preprocessing.size)
    enliven(backbone.trunk)
    tokens = backbone.trunk(images)
    assert tokens.shape == (1, backbone.tokens, backbone.width)
    pooled = backbone.pool(tokens)

    # The same tensors in a whole open_clip model: the largest would not fit twice everywhere.
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta").eval()
    pooling = {f"attnpool.{key}": tensor for key, tensor in backbone.state.items()}
    state = {**backbone.trunk.visual.state_dict(), **pooling}
    model.visual.load_state_dict(state, assign=True)
    assert relative_error(pooled, model.encode_image(images)) < 1e-4
    del backbone, model, state, pooling
    gc.collect()


@torch.no_grad()
def test_tokens_are_the_map_row_by_row_and_contiguous(tmp_path):
    spec = small_spec(tmp_path, vision_cfg={**SMALL_VISION, "image_size": 96})
    file = save_model(lively_model(spec), tmp_path / "w.safetensors")
    backbone = load_backbone(dataclasses.replace(spec, pretrained=str(file)))
    images = torch.randn(2, 3, 96, 96)
    tokens = backbone.trunk(images)
    assert tokens.is_contiguous()
    model = lively_model(spec).visual
    model.attnpool = torch.nn.Identity()
    dense = model(images)
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(tokens[:, row * 3 + column], dense[:, :, row, column])


def test_the_trunk_is_frozen_and_stays_in_eval_mode(tmp_path):
    trunk = load_backbone(small_spec(tmp_path)).trunk
    trunk.train()
    assert not any(module.training for module in trunk.modules())
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


@torch.no_grad()
def test_the_trunk_may_be_cast(tmp_path):
    trunk = load_backbone(small_spec(tmp_path), parts=("trunk",)).trunk
    images = torch.randn(1, 3, 64, 64)
    exact = trunk(images)
    rough = trunk.to(torch.bfloat16)(images.to(torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    assert relative_error(rough.float(), exact) < 0.05


def test_the_pooling_loads_into_plain_open_clip(tmp_path):
    spec = small_spec(tmp_path)
    backbone = load_backbone(spec)
    assert set(backbone.state) == set(NAMES)
    assert all(tensor.dtype == torch.float32 for tensor in backbone.state.values())
    lively_model(spec).visual.attnpool.load_state_dict(backbone.state)


def test_the_logit_scale_is_exponentiated(tmp_path):
    spec = small_spec(tmp_path)
    model = lively_model(spec)
    model.logit_scale.data.fill_(2.5)
    file = save_model(model, tmp_path / "w.safetensors")
    backbone = load_backbone(dataclasses.replace(spec, pretrained=str(file)))
    assert backbone.logit_scale == pytest.approx(12.182493960703473, rel=1e-7)


# --- the classifier ---


CLASSES = ["sea_lion", "cat", "apply lipstick"]
TEMPLATES = ["a photo of a {}.", "{} texture.", "the {}"]


@torch.no_grad()
def test_the_classifier_is_the_normalised_mean_of_normalised_prompts(tmp_path):
    spec = small_spec(tmp_path)
    model = lively_model(spec)
    file = save_model(model, tmp_path / "w.safetensors")
    found = load_backbone(dataclasses.replace(spec, pretrained=str(file)), parts=("text",))
    classifier = found.classifier(CLASSES, TEMPLATES)
    assert classifier.shape == (3, 24)
    assert classifier.dtype == torch.float32

    tokenizer = open_clip.get_tokenizer(spec.model)
    for row, name in enumerate(["sea lion", "cat", "apply lipstick"]):
        mean = torch.zeros(24)
        for template in TEMPLATES:
            embedding = model.encode_text(tokenizer(template.format(name)))[0]
            mean += embedding / embedding.norm() / len(TEMPLATES)
        torch.testing.assert_close(classifier[row], mean / mean.norm(), rtol=1e-5, atol=1e-6)

    names = [name.replace("_", " ") for name in CLASSES]
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, names, TEMPLATES)
    torch.testing.assert_close(classifier, theirs.T, rtol=1e-5, atol=1e-6)


def test_a_long_list_of_classes_is_embedded_in_batches(tmp_path):
    backbone = load_backbone(small_spec(tmp_path), parts=("text",))
    names = [f"number {number}" for number in range(300)]
    together = backbone.classifier(names, TEMPLATES)
    alone = backbone.classifier(names[290:], TEMPLATES)
    torch.testing.assert_close(together[290:], alone)
    together.requires_grad_().sum().backward()


def test_classes_that_differ_beyond_the_context_are_refused(tmp_path):
    backbone = load_backbone(small_spec(tmp_path), parts=("text",))
    long = "very " * 20
    with pytest.raises(InputError, match=r"cat' and '.*dog' have the same prompts in the 16"):
        backbone.classifier([long + "cat", long + "dog"], TEMPLATES)


def test_a_classifier_wants_templates_with_a_slot(tmp_path):
    backbone = load_backbone(small_spec(tmp_path), parts=("text",))
    with pytest.raises(InputError, match="exactly one"):
        backbone.classifier(CLASSES, ["a photo"])


# --- weights, digests, parts ---


def test_random_weights_are_those_of_the_seed_and_leave_the_callers_generator_alone(tmp_path):
    spec = small_spec(tmp_path)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = load_backbone(spec)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    same, other = load_backbone(spec), load_backbone(dataclasses.replace(spec, seed=1))
    assert (same.digest, same.trunk_digest) == (one.digest, one.trunk_digest)
    assert other.digest != one.digest
    assert other.trunk_digest != one.trunk_digest


@pytest.mark.parametrize(
    ("changed", "trunk_too"),
    [
        ("visual.layer3.0.conv2.weight", True),
        ("visual.bn1.running_mean", True),
        ("visual.attnpool.k_proj.bias", False),
        ("token_embedding.weight", False),
        ("logit_scale", False),
    ],
)
def test_one_changed_weight_changes_the_digest(tmp_path, changed, trunk_too):
    spec = small_spec(tmp_path, str(tmp_path / "w.safetensors"))
    model = lively_model(spec)
    save_model(model, tmp_path / "w.safetensors")
    before = load_backbone(spec)
    model.state_dict()[changed].view(-1)[0] += 1e-3
    save_model(model, tmp_path / "w.safetensors")
    after = load_backbone(spec)
    assert after.digest != before.digest
    assert (after.trunk_digest != before.trunk_digest) == trunk_too


def test_the_digest_is_of_the_weights_not_of_their_file(tmp_path):
    spec = small_spec(tmp_path)
    model = lively_model(spec)
    half = save_model(model, tmp_path / "half.safetensors", torch.float16)
    model.half().float()
    state = model.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}},
        tmp_path / "training.pt",
    )
    digests = {
        load_backbone(dataclasses.replace(spec, pretrained=str(file))).digest
        for file in (half, tmp_path / "plain.pt", tmp_path / "training.pt")
    }
    assert len(digests) == 1


def test_the_configuration_is_part_of_the_digest_and_the_trunk_is_not_told_of_the_text(tmp_path):
    plain = load_backbone(small_spec(tmp_path))
    quick = load_backbone(small_spec(tmp_path, quick_gelu=True))
    assert quick.digest != plain.digest
    assert quick.trunk_digest == plain.trunk_digest


@pytest.mark.parametrize("parts", [(), ("trunk",), ("pooling",), ("text",), ("pooling", "text")])
def test_parts_that_are_not_asked_for_are_left_out_but_the_digests_stay(tmp_path, parts):
    spec = small_spec(tmp_path)
    whole, some = load_backbone(spec), load_backbone(spec, parts=parts)
    assert (some.digest, some.trunk_digest) == (whole.digest, whole.trunk_digest)
    assert (some.tokens, some.pooling, some.preprocessing) == (
        whole.tokens,
        whole.pooling,
        whole.preprocessing,
    )
    images = torch.randn(1, 3, 64, 64)
    assert bool(some.state) == ("pooling" in parts)
    if "trunk" in parts:
        assert torch.equal(some.trunk(images), whole.trunk(images))
    else:
        with pytest.raises(RuntimeError, match="part 'trunk'"):
            some.trunk(images)
    if "text" in parts:
        assert torch.equal(
            some.classifier(CLASSES, TEMPLATES), whole.classifier(CLASSES, TEMPLATES)
        )
    else:
        with pytest.raises(RuntimeError, match="part 'text'"):
            some.classifier(CLASSES, TEMPLATES)


def test_an_unknown_part_is_a_mistake_in_the_program(tmp_path):
    with pytest.raises(ValueError, match="'head'"):
        load_backbone(small_spec(tmp_path), parts=("head",))


def test_loading_says_nothing_and_leaves_logging_alone(tmp_path, capfd):
    root = logging.getLogger()
    before = (list(root.handlers), root.level, root.manager.disable)
    load_backbone(small_spec(tmp_path)).classifier(CLASSES, TEMPLATES)
    assert (list(root.handlers), root.level, root.manager.disable) == before
    assert capfd.readouterr() == ("", "")


def test_of_two_configurations_with_one_name_the_one_asked_for_counts(tmp_path):
    specs = []
    for width in (16, 32):
        folder = tmp_path / str(width)
        folder.mkdir()
        specs.append(small_spec(folder, vision_cfg={**SMALL_VISION, "width": width}))
    assert [load_backbone(spec).width for spec in (*specs, *specs)] == [512, 1024, 512, 1024]


# --- tags ---


@pytest.fixture
def tagged(tmp_path, monkeypatch):
    """Return a spec whose model has the tag `openai`: quick-GELU weights in a local file."""
    spec = small_spec(tmp_path, "openai", name="safe-ray-test-tagged")
    file = save_model(lively_model(spec), tmp_path / "openai.safetensors")
    tag = {"file": str(file), "quick_gelu": True, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}
    monkeypatch.setitem(_PRETRAINED, spec.model, {"openai": tag, "laion2b": dict(tag)})
    return spec


@torch.no_grad()
def test_weights_trained_with_quick_gelu_get_it_under_a_plain_name(tagged):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = load_backbone(tagged)
    model = open_clip.create_model(tagged.model, "openai", force_quick_gelu=True).eval()
    plain = open_clip.create_model(tagged.model, "openai").eval()
    tokens = open_clip.get_tokenizer(tagged.model)(["a photo of a cat."])
    expected = model.encode_text(tokens, normalize=True)
    assert not torch.allclose(plain.encode_text(tokens, normalize=True), expected, atol=1e-3)
    found = backbone.classifier(["cat"], ["a photo of a {}."])
    torch.testing.assert_close(found, expected)

    images = torch.randn(1, 3, 64, 64)
    pooled = backbone.pool(backbone.trunk(images))
    torch.testing.assert_close(pooled, model.encode_image(images), rtol=1e-4, atol=1e-5)


def test_the_plain_name_and_its_quick_gelu_twin_are_one_backbone(tagged, tmp_path, monkeypatch):
    twin = small_spec(tmp_path, "openai", name="safe-ray-test-tagged-quickgelu", quick_gelu=True)
    monkeypatch.setitem(_PRETRAINED, twin.model, _PRETRAINED[tagged.model])
    assert load_backbone(twin).digest == load_backbone(tagged).digest


def test_the_preprocessing_is_that_of_the_tag(tagged):
    preprocessing = load_backbone(tagged, parts=()).preprocessing
    assert preprocessing.mean == (0.5, 0.4, 0.3)
    assert preprocessing.size == 64


def test_an_unknown_tag_names_those_there_are(tagged):
    with pytest.raises(InputError, match=r"'opanai'.*tags are 'openai', 'laion2b'.*mean 'openai'"):
        load_backbone(dataclasses.replace(tagged, pretrained="opanai"))
    with pytest.raises(InputError, match=r"'RN50x4'.*its tags are 'openai'"):
        load_backbone(BackboneSpec("rn50x4", "RN50x4", "yfcc15m"))


def test_a_tag_of_a_model_without_tags_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'openai'.*it has no tags"):
        load_backbone(small_spec(tmp_path, "openai"))


def test_weights_that_cannot_be_downloaded_are_a_sentence(tagged, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    nowhere = {"url": "http://127.0.0.1:9/w.pt", "quick_gelu": True}
    monkeypatch.setitem(_PRETRAINED, tagged.model, {"openai": nowhere})
    with pytest.raises(InputError, match=r"'openai'.*cannot be had.*refused.*local safetensors"):
        load_backbone(tagged)


# --- what a person can get wrong ---


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(InputError, match=r"'RN5O'.*does not have.*Did you mean 'RN50"):
        load_backbone(BackboneSpec("rn50", "RN5O"))


def test_a_tower_that_ends_in_nothing_to_tune_is_refused_before_its_weights(tmp_path):
    bare = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none"}
    spec = small_spec(tmp_path, name="safe-ray-test-bare", vision_cfg=bare, embed_dim=64)
    with pytest.raises(InputError, match=r"neither.*python -m safe_ray\.backbones lists"):
        load_backbone(dataclasses.replace(spec, pretrained="nowhere"))


@pytest.mark.parametrize("file", ["nowhere.safetensors", "folder/nowhere", "~/nowhere.pt"])
def test_a_missing_weights_file_is_named(tmp_path, file):
    with pytest.raises(InputError, match=f"no weights file '{file}'"):
        load_backbone(small_spec(tmp_path, file))


def test_weights_of_another_shape_name_the_first_differences(tmp_path):
    wide = small_spec(tmp_path, name="safe-ray-test-wide", embed_dim=40)
    file = save_model(lively_model(wide), tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match=r"text_projection is \[32, 40\] instead of \[32, 24\]"):
        load_backbone(small_spec(tmp_path, str(file)))


def test_missing_and_unknown_weights_are_named_and_counted(tmp_path):
    spec = small_spec(tmp_path, str(tmp_path / "w.pt"))
    state = lively_model(spec).state_dict()
    del state["visual.conv1.weight"]
    state["visual.head.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(
        InputError, match=r"conv1\.weight is missing, visual\.head\.weight is unknown; choose"
    ):
        load_backbone(spec)
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"is missing.* and \d+ more differences"):
        load_backbone(spec)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80" * 2000])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} .*cannot be read"):
        load_backbone(small_spec(tmp_path, str(tmp_path / name)))


def test_a_truncated_weights_file_is_refused(tmp_path):
    spec = small_spec(tmp_path, str(tmp_path / "w.safetensors"))
    file = save_model(lively_model(spec), tmp_path / "w.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be read"):
        load_backbone(spec)


class Touch:
    """Pickles to a call that makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


def test_a_pickled_program_is_refused_and_not_run(tmp_path):
    weights, victim = tmp_path / "w.pt", tmp_path / "victim"
    torch.save({"state_dict": Touch(str(victim))}, weights)
    with pytest.raises(InputError, match="cannot be read"):
        load_backbone(small_spec(tmp_path, str(weights)))
    weights.write_bytes(pickle.dumps(Touch(str(victim))))
    with pytest.raises(InputError, match="cannot be read"):
        load_backbone(small_spec(tmp_path, str(weights)))
    assert not victim.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    spec = small_spec(tmp_path, str(tmp_path / "w.safetensors"))
    model = lively_model(spec)
    model.visual.layer1[0].conv1.weight.data[0, 0] = value
    save_model(model, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"NaN or infinity in visual\.layer1\.0\.conv1\.weight"):
        load_backbone(spec)


def test_a_configuration_file_must_be_there_be_json_and_be_whole(tmp_path):
    spec = small_spec(tmp_path)
    file = tmp_path / f"{spec.model}.json"
    for content, message in (
        (None, "not readable JSON.*No such file"),
        ("{", "not readable JSON"),
        ("[]", "lacks 'embed_dim'"),
        ('{"embed_dim": 3, "vision_cfg": {}}', "lacks 'text_cfg'"),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        with pytest.raises(InputError, match=message):
            load_backbone(spec)


def test_a_configuration_file_has_the_name_of_its_model(tmp_path):
    file = write_config(tmp_path, "safe-ray-test-other")
    with pytest.raises(InputError, match=r"'RN50'.*defines 'safe-ray-test-other'"):
        load_backbone(BackboneSpec("x", "RN50", None, str(file)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg": {**SMALL_VISION, "layers": [1, 1]}}, "cannot build"),
        ({"vision_cfg": {**SMALL_VISION, "depth": 3}}, "cannot build.*'depth'"),
        ({"text_cfg": {**SMALL_TEXT, "heads": 3}}, "cannot build"),
        ({"embed_dim": "many"}, "cannot build"),
        ({"vision_cfg": {"image_size": 65, "width": 64, "layers": 3}}, "do not divide .* of 65"),
        ({"vision_cfg": 3}, "cannot build"),
        ({"vision_cfg": {**SMALL_VISION, "image_size": 63}}, "image_size of 63.*2x2.*expects 1"),
        ({"vision_cfg": {**SMALL_VISION, "image_size": [64, 96]}}, "cannot build|not square"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load_backbone(small_spec(tmp_path, name="safe-ray-test-broken", **changes))
    # open_clip reads every registered file again whenever one is added.
    (tmp_path / "safe-ray-test-broken.json").write_text(json.dumps({}))
