"""Every model of open_clip is claimed by a family, or left out with a reason; small ones agree."""

from __future__ import annotations

import copy
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors.torch import load_file, save_file

import safe_ray
from bench._families import HEADER, SHOWN
from safe_ray.backbones.__main__ import main
from safe_ray.backbones.claims import Claim, claim, claim_of, cut_on_paper
from safe_ray.backbones.openclip import load_backbone, side_of
from safe_ray.data.views import Preprocessing
from safe_ray.errors import InputError
from safe_ray.heads.artifact import HOW_TO_LOAD
from safe_ray.methods.base import how_to_load
from safe_ray.poolings import find_pooling
from safe_ray.poolings.base import select_parameters
from safe_ray.poolings.low_rank import factors_of, weights_of
from safe_ray.specs import BackboneSpec
from tests.backbones.models import SMALL_TEXT, lively_model, small_spec
from tests.backbones.towers import SIDE, TOWERS, tower
from tests.poolings.towers import config_of

OWN = Path(open_clip.__file__).parent / "model_configs"
MODELS = sorted(file.stem for file in OWN.glob("*.json"))
LEFT_OUT: set[str] = set()
"""Models that no family claims; a model that a later open_clip adds is claimed, or named here."""
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2}
PARTS = dict.fromkeys(("siglip", "shown", "pe"), "visual.trunk") | {"resnet": "visual.trunk.head"}
SMALL: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "scaled": {**VIT, "ls_init_value": 0.3, "no_ln_pre": True},
    "average": {**VIT, "pool_type": "avg"},
}


@dataclass(frozen=True)
class Paper:
    """A model without memory: what is claimed of it, and the shapes that come out."""

    claim: Claim
    maps: tuple[int, ...]
    pooled: tuple[int, ...]


def on_paper(name: str) -> Paper:
    """Cut a model and send an image through it, on the meta device."""
    try:
        visual, cut = cut_on_paper(name)
    except InputError:
        return Paper(claim(name), (), ())
    side = side_of(visual)
    described = claim_of(name, visual, cut)
    with torch.no_grad():
        maps = cut.trunk(torch.empty(1, 3, side, side, device="meta"))
        state = {key: tensor.unsqueeze(0) for key, tensor in cut.state.items()}
        pooled = cut.pooling.pool(cut.pooling.prepare(maps), state)
    return Paper(described, tuple(maps.shape), tuple(pooled.shape))


def config(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((OWN / f"{name}.json").read_text())
    return found


def vision(name: str) -> dict[str, Any]:
    found: dict[str, Any] = config(name)["vision_cfg"]
    return found


@pytest.fixture(scope="module")
def papers() -> dict[str, Paper]:
    """All models; those that differ in their text tower alone have one image tower."""
    made: dict[str, Paper] = {}
    found = {}
    for name in MODELS:
        tower_of = json.dumps([config(name)["embed_dim"], vision(name)], sort_keys=True)
        if tower_of not in made:
            made[tower_of] = on_paper(name)
        found[name] = made[tower_of]
    return found


def wanted(name: str) -> str:
    """Return the family of a model by its configuration."""
    mine = vision(name)
    timm = mine.get("timm_model_name")
    if timm is None:
        if isinstance(mine["layers"], list):
            return "modified_resnet"
        if mine.get("attentional_pool"):
            return "coca"
        return "last_block" if mine.get("pool_type", "tok") == "tok" else "projection"
    if mine["timm_pool"] == "map":
        return "latent_attention"
    plain = ("vit_base_mci_224", "vit_large_patch14_clip_224")
    if timm in plain or (mine["timm_pool"] == "token" and timm == "eva_giant_patch14_224"):
        return "timm_last_block"
    return "projection"


# --- the list ---


def test_the_list_is_open_clips() -> None:
    listed = {name for name in open_clip.list_models() if (OWN / f"{name}.json").is_file()}
    assert listed == set(MODELS)
    assert len(MODELS) > 100


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_model_is_claimed_or_named_as_left_out(papers: dict[str, Paper]) -> None:
    families = {name: papers[name].claim.family for name in MODELS if not papers[name].claim.why}
    assert families == {name: wanted(name) for name in MODELS if name not in LEFT_OUT}
    assert {name for name in MODELS if papers[name].claim.why} == LEFT_OUT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_map_and_an_embedding_have_the_shapes_that_the_cut_says(
    papers: dict[str, Paper],
) -> None:
    for name in (name for name in MODELS if name not in LEFT_OUT):
        paper, mine = papers[name], vision(name)
        one = paper.claim
        assert paper.maps == (1, one.tokens, one.width), name
        assert paper.pooled == (1, 1, config(name)["embed_dim"]), name
        assert one.view_bytes == 2 * one.tokens * one.width
        assert min(one.tokens, one.width, one.tuned, one.pixels) > 0
        if one.family in ("last_block", "coca"):
            grid = mine["image_size"] // mine["patch_size"]
            assert (one.tokens, one.width) == (grid**2 + 1, mine["width"]), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_documents_have_the_families_and_their_sizes(papers: dict[str, Paper]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
    begin = f"| {' | '.join(HEADER)} |"
    lines = text[text.index(begin) :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    counts = Counter(paper.claim.family for paper in papers.values())
    assert {row[0]: int(row[1]) for row in rows} == {name: counts[name] for name in SHOWN}
    for family, _, model, difference, tuned, view_bytes, _ in rows:
        assert model == SHOWN[family][0]
        assert float(difference) < 1e-5
        if model in papers:
            one = papers[model].claim
            assert (f"{one.tuned:,}", f"{one.view_bytes:,}") == (tuned, view_bytes)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("RN50", "modified_resnet"),
        ("ViT-B-32", "last_block"),
        ("ViT-B-16-SigLIP2", "latent_attention"),
        ("PE-Core-B-16", "latent_attention"),
        ("coca_ViT-B-32", "coca"),
        ("coca_roberta-ViT-B-32", "last_block"),
        ("MobileCLIP-B", "timm_last_block"),
        ("convnext_tiny", "projection"),
    ],
)
def test_some_models_of_each_family(name: str, family: str) -> None:
    paper = on_paper(name)
    assert paper.claim.family == wanted(name) == family
    assert paper.maps == (1, paper.claim.tokens, paper.claim.width)
    assert paper.pooled == (1, 1, config(name)["embed_dim"])


# --- parity ---


@pytest.mark.parametrize("name", list(TOWERS))
def test_trunk_and_pooling_are_the_tower(name: str) -> None:
    visual = tower(name)
    images = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        expected = visual(images)
        spent = copy.deepcopy(visual)
        family = find_pooling(spent)
        assert family is TOWERS[name]
        cut = family.cut(spent, SIDE)
        assert {name: visual.state_dict()[name].shape for name in cut.state} == {
            name: tensor.shape for name, tensor in cut.state.items()
        }
        maps = cut.trunk(images)
        state = {name: tensor.unsqueeze(0) for name, tensor in cut.state.items()}
        found = cut.pooling.pool(cut.pooling.prepare(maps), state)[0]
    assert maps.shape == (3, cut.tokens, cut.width)
    assert float((found - expected).norm() / expected.norm()) < 1e-12


@pytest.mark.parametrize("name", [*SMALL, "siglip", "shown", "pe", "coca", "resnet"])
def test_a_model_by_its_name_and_a_file_is_open_clips_own(tmp_path: Path, name: str) -> None:
    changes = {"vision_cfg": SMALL[name]} if name in SMALL else config_of(name)
    changes["text_cfg"] = {**changes.get("text_cfg", SMALL_TEXT), "vocab_size": 49408}
    # open_clip takes SigLIP's tokenizer for a model that is called so.
    name_of_it = f"safe-ray-test-{name}".replace("siglip", "latent")
    spec = small_spec(tmp_path, name=name_of_it, **changes)
    model: Any = lively_model(spec)
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    backbone = safe_ray.load_backbone(spec.model, file, model_config=spec.model_config)
    images = torch.randn(4, 3, backbone.preprocessing.size, backbone.preprocessing.size)
    with torch.no_grad():
        expected = model.encode_image(images, normalize=False)
        maps = backbone.trunk(images)
        found = backbone.pool(maps)
        stored = backbone.pool(maps.half())
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert float((stored - expected).norm() / expected.norm()) < 2e-3
    rows = backbone.classifier(["cat", "dog"], ["a photo of a {}."])
    assert rows.shape == (2, backbone.embed_dim)
    assert backbone.part == PARTS.get(name, "visual")


def test_the_trunks_digest_is_of_what_is_not_tuned(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, name="safe-ray-test-digest", vision_cfg=VIT)
    model = lively_model(spec)

    def digests(name: str) -> tuple[str, str]:
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        state[name] += 0.1
        file = tmp_path / f"{name}.safetensors"
        save_file(state, file)
        found = load_backbone(BackboneSpec("x", spec.model, str(file), spec.model_config))
        return found.digest, found.trunk_digest

    whole, trunk = digests("visual.conv1.weight")
    other, same = digests("visual.transformer.resblocks.1.attn.in_proj_weight")
    last, again = digests("visual.proj")
    assert len({whole, other, last}) == 3
    assert same == again != trunk
    assert digests("visual.transformer.resblocks.0.attn.in_proj_weight")[1] != same


def test_images_are_made_as_every_tag_of_open_clips_says() -> None:
    seen = set()
    for model, tag in open_clip.list_pretrained():
        config = asdict(PreprocessCfg())
        config = merge_preprocess_dict(config, open_clip.get_pretrained_cfg(model, tag))
        ours = Preprocessing.from_open_clip(config)
        assert (ours.mean, ours.std) == (tuple(config["mean"]), tuple(config["std"]))
        seen.add((ours.resize_mode, ours.interpolation))
    assert {("shortest", "bicubic"), ("squash", "bicubic"), ("squash", "bilinear")} <= seen


# --- heads in plain open_clip ---


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("name", ["vit", "average"])
def test_a_cards_lines_load_a_head_into_plain_open_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, low_rank: bool
) -> None:
    spec = small_spec(tmp_path, name=f"safe-ray-test-lines-{name}", vision_cfg=SMALL[name])
    model: Any = lively_model(spec)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    weights = str(tmp_path / "model.safetensors")
    backbone = safe_ray.load_backbone(spec.model, weights, model_config=spec.model_config)
    lines: Any = HOW_TO_LOAD
    state = backbone.state
    names = weights_of(list(state), state) if low_rank else tuple(state)
    tuned = {
        name: tensor + 0.1 * torch.randn(len(tensor), 2) @ torch.randn(2, tensor.shape[-1])
        if low_rank
        else tensor + 0.1 * torch.randn(tensor.shape)
        for name, tensor in state.items()
        if name in names
    }
    if low_rank:
        lines = how_to_load("safe_ray.methods.low_rank", {})
        save_file(factors_of(tuned, state, names, 2), tmp_path / "head.safetensors")
    else:
        save_file(tuned, tmp_path / "head.safetensors")
    named = {"model": spec.model, "pretrained": weights, "part": backbone.part}
    card = {"alpha": 0.4, "logit_scale": 100.0, "backbone": named}
    (tmp_path / "head.json").write_text(json.dumps(card))
    monkeypatch.chdir(tmp_path)
    images = torch.randn(3, 3, 32, 32)
    classifier = torch.nn.functional.normalize(torch.randn(2, backbone.embed_dim), dim=-1)
    found: dict[str, Any] = {"images": images, "classifier": classifier}
    with torch.no_grad():
        exec("\n".join(lines), found)
        before = model.encode_image(images, normalize=False)
        stacked = {key: tuned.get(key, tensor).unsqueeze(0) for key, tensor in state.items()}
        tokens = backbone.pooling.prepare(backbone.trunk(images))
        after = backbone.pooling.pool(tokens, stacked)[0]
    blended = torch.nn.functional.normalize(0.4 * after + 0.6 * before, dim=-1)
    torch.testing.assert_close(found["logits"], 100 * blended @ classifier.T, rtol=1e-3, atol=1e-3)


# --- what a person can get wrong ---


def test_a_tower_with_a_projection_alone_says_what_it_can_do(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, name="safe-ray-test-alone", vision_cfg=SMALL["average"])
    backbone = load_backbone(spec)
    names = tuple(backbone.state)
    assert select_parameters(backbone.pooling, ["projection"], names) == names == ("proj",)
    with pytest.raises(InputError, match=r"no attention pooling.*tuned_projection and prolip"):
        select_parameters(backbone.pooling, "all", names)


def test_an_image_that_the_patches_do_not_divide_is_refused_before_weights(tmp_path: Path) -> None:
    spec = small_spec(
        tmp_path, "no-such-tag", name="safe-ray-test-uneven", vision_cfg={**VIT, "image_size": 36}
    )
    with pytest.raises(InputError, match=r"cannot be cut: its patches of 8 pixels do not divide"):
        load_backbone(spec)


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    other = small_spec(tmp_path, name="safe-ray-test-other")
    save_file(lively_model(other).state_dict(), tmp_path / "w.safetensors")
    spec = small_spec(
        tmp_path, str(tmp_path / "w.safetensors"), name="safe-ray-test-mine", vision_cfg=VIT
    )
    with pytest.raises(InputError, match=r"does not fit.*is missing.*as\.$"):
        load_backbone(spec)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"hf_model_name": "roberta-base"}, "The text tower of .* is roberta-base"),
        ({"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}, "The tokenizer of .* is timm/ViT-B-16"),
    ],
)
def test_a_text_tower_of_transformers_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: dict[str, str], words: str
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    small = {"context_length": 16, "width": 32, "heads": 2, "layers": 1}
    spec = small_spec(tmp_path, name="safe-ray-test-hf", vision_cfg=VIT, text_cfg={**small, **text})
    with pytest.raises(InputError, match=rf"{words}.*transformers: pip install 'safe_ray\[hf\]'"):
        load_backbone(spec)
    if "hf_tokenizer_name" in text:
        assert load_backbone(spec, parts=("trunk", "pooling")).tokens == 17


def test_a_tokenizer_that_a_models_name_asks_for_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(tmp_path, name="safe-ray-test-siglip-like", vision_cfg=VIT)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"siglip-like.* needs transformers: pip install"):
        load_backbone(spec).classifier(["cat"], ["a {}."])


# --- the listing ---


def test_the_listing_shows_a_model_with_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ViT-B-16-plus"]) == 0
    shown = capsys.readouterr().out
    assert "last_block: CLIP's vision transformers" in shown
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["ViT-B-16-plus-240"]]
    assert line.split()[1:5] == ["240", "226", "896", "396"]
    assert "laion400m_e31" in line


def test_the_listing_can_be_of_one_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--family", "modified_resnet", "RN50", "ViT-B-32"]) == 0
    shown = capsys.readouterr().out
    assert "RN50x4" in shown
    assert "ViT-B-32" not in shown
    assert main(["--family", "resnet"]) == 2
    assert "modified_resnet" in capsys.readouterr().err
    assert main(["no-model-like-this"]) == 2
    assert "no-model-like-this" in capsys.readouterr().err


def test_a_file_of_a_head_names_what_it_tunes(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, name="safe-ray-test-names", vision_cfg=VIT)
    backbone = load_backbone(spec, parts=("pooling",))
    save_file(backbone.state, tmp_path / "head.safetensors")
    model: Any = lively_model(spec, seed=1)
    loaded = model.visual.load_state_dict(load_file(tmp_path / "head.safetensors"), strict=False)
    assert not loaded.unexpected_keys
    assert torch.equal(model.visual.proj, backbone.state["proj"])
