"""The backbones of `conf/backbone` are what their comments say, and get the weights they name."""

from __future__ import annotations

import re

import open_clip
import pytest
import yaml

from safe_ray.backbones.claims import claim
from safe_ray.backbones.creation import register_config
from safe_ray.compose import packaged_tree
from safe_ray.files import resolve_path
from safe_ray.specs import BackboneSpec

FILES = sorted((packaged_tree() / "backbone").glob("*.yaml"))
OWN_FILES = [file for file in FILES if "model_config: pkg:" in file.read_text()]
TAGGED = [file for file in FILES if file not in OWN_FILES]
OPENAI = [file for file in FILES if "pretrained: openai" in file.read_text()]


def configured(file):
    return BackboneSpec(**yaml.safe_load(file.read_text()))


def test_openais_models_are_all_there():
    resnets = {"rn50", "rn101", "rn50x4", "rn50x16", "rn50x64"}
    assert {file.stem for file in OPENAI} == resnets | {
        "vit_b_32",
        "vit_b_16",
        "vit_l_14",
        "vit_l_14_336",
    }


@pytest.mark.parametrize("file", TAGGED, ids=lambda file: file.stem)
def test_a_tag_is_one_of_its_model(file):
    spec = configured(file)
    assert open_clip.is_pretrained_cfg(spec.model, spec.pretrained)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_backbone_has_the_name_of_its_file(file):
    assert configured(file).name == file.stem


@pytest.mark.parametrize("file", OPENAI, ids=lambda file: file.stem)
def test_openais_weights_meet_the_quick_gelu_that_they_were_trained_with(file):
    spec = configured(file)
    assert open_clip.is_pretrained_cfg(spec.model, spec.pretrained)
    assert open_clip.get_model_config(spec.model)["quick_gelu"]
    assert open_clip.get_pretrained_cfg(spec.model, spec.pretrained)["quick_gelu"]


@pytest.mark.parametrize("file", OWN_FILES, ids=lambda file: file.stem)
def test_an_architecture_of_our_own_is_one_that_a_family_claims(file):
    spec = configured(file)
    register_config(spec, resolve_path(spec.model_config))
    assert claim(spec.model).family not in ("", "projection")


def test_timms_resnet_is_claimed_as_what_it_is():
    [file] = [file for file in FILES if file.stem == "timm_resnet50_clip"]
    spec = configured(file)
    register_config(spec, resolve_path(spec.model_config))
    one = claim(spec.model)
    assert (one.family, one.pixels, one.tokens, one.width) == ("timm_resnet", 224, 49, 2048)
    # As many as OpenAI's RN50.
    assert one.tuned == claim("RN50").tuned


@pytest.mark.parametrize("file", TAGGED, ids=lambda file: file.stem)
def test_the_comment_states_the_size_of_images_and_dense_maps(file):
    comment = file.read_text().splitlines()[0]
    stated = re.fullmatch(r"# .*: (\d+) px, dense maps of (\d+x)?(\d+)x(\d+)\.", comment)
    assert stated
    model = configured(file).model
    one = claim(model)
    size, grid, last, width = (stated[place] for place in range(1, 5))
    tokens = int(last) ** 2 if grid else int(last)
    assert open_clip.get_model_config(model)["vision_cfg"].get("image_size", 224) == int(size)
    if one.family not in ("", "projection"):
        assert (one.tokens, one.width) == (tokens, int(width))
