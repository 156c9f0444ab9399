from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg, image_transform
from PIL import Image

from safe_ray.data.views import (
    Preprocessing,
    augmented_view,
    evaluation_view,
    make_view,
    normalise,
)

CLIP = Preprocessing(size=96, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD)

SIZES = {
    "square": (150, 150),
    "exact": (96, 96),
    "wide": (301, 97),
    "very wide": (900, 40),
    "tall": (101, 333),
    "tiny": (3, 2),
    "one pixel": (1, 1),
    "odd": (127, 131),
}


def noise(size, seed=0):
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def open_clips(preprocessing):
    return image_transform(
        preprocessing.size,
        is_train=False,
        mean=preprocessing.mean,
        std=preprocessing.std,
        resize_mode=preprocessing.resize_mode,
        interpolation=preprocessing.interpolation,
        fill_color=preprocessing.fill,
    )


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_the_evaluation_view_is_open_clips_to_the_bit(size, interpolation, resize_mode):
    if resize_mode == "longest" and size == SIZES["very wide"]:
        size = (900, 60)
    preprocessing = dataclasses.replace(
        CLIP, interpolation=interpolation, resize_mode=resize_mode, fill=17
    )
    image = noise(size)
    pixels = evaluation_view(image, preprocessing)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 96, 96)
    expected = open_clips(preprocessing)(image)
    assert torch.equal(normalise(pixels[None], preprocessing)[0], expected)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    side=st.integers(1, 130),
    seed=st.integers(0, 9),
)
def test_the_evaluation_view_of_any_size_is_open_clips(width, height, side, seed):
    preprocessing = dataclasses.replace(CLIP, size=side)
    image = noise((width, height), seed)
    pixels = evaluation_view(image, preprocessing)
    assert torch.equal(normalise(pixels, preprocessing), open_clips(preprocessing)(image))


def test_normalising_a_batch_leaves_the_pixels_alone():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(9).view(1, 3, 24, 32).contiguous()
    before = pixels.clone()
    values = normalise(pixels, CLIP)
    assert values.dtype == torch.float32
    assert torch.equal(pixels, before)
    assert float(values[0, 0].max()) == pytest.approx((1 - CLIP.mean[0]) / CLIP.std[0])


def test_view_0_is_the_evaluation_view_and_the_others_differ():
    image = noise((120, 90))
    views = [make_view(image, CLIP, "sample", number) for number in range(6)]
    assert torch.equal(views[0], evaluation_view(image, CLIP))
    assert len({view.numpy().tobytes() for view in views}) == 6
    assert all(view.shape == (3, 96, 96) and view.dtype == torch.uint8 for view in views)


def digest_of_views():
    image = Image.fromarray(np.arange(90 * 120 * 3).astype(np.uint8).reshape(90, 120, 3))
    digest = hashlib.sha256()
    for sample in ("a", "b"):
        for view in range(1, 8):
            digest.update(augmented_view(image, CLIP, sample, view).numpy().tobytes())
    return digest.hexdigest()


def test_augmented_views_are_the_same_in_another_process():
    here = digest_of_views()
    torch.manual_seed(5)
    np.random.seed(5)
    assert digest_of_views() == here
    program = "from tests.data.test_views import digest_of_views; print(digest_of_views())"
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert there.stdout.strip() == here


def test_an_augmented_view_depends_on_the_sample_and_on_the_view_alone():
    image = noise((120, 90))
    one = augmented_view(image, CLIP, "a", 1)
    augmented_view(image, CLIP, "b", 1)
    assert torch.equal(augmented_view(image, CLIP, "a", 1), one)
    assert not torch.equal(augmented_view(image, CLIP, "b", 1), one)
    assert not torch.equal(augmented_view(image, CLIP, "a", 11), one)


def test_crops_cover_half_to_all_of_the_image_and_are_flipped_half_of_the_time():
    width, height = 400, 300
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None, :]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    image = Image.fromarray(ramp)
    small = dataclasses.replace(CLIP, size=64)
    flips, areas = 0, []
    for number in range(1, 401):
        red, green, _ = augmented_view(image, small, "ramp", number).float()
        across = float(red[:, -1].mean() - red[:, 0].mean()) / 255
        down = float(green[-1].mean() - green[0].mean()) / 255
        flips += across < 0
        areas.append(abs(across) * down * (64 / 63) ** 2)
    assert 160 <= flips <= 240
    assert 0.47 < min(areas) < 0.55
    assert 0.9 < max(areas) < 1.03


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_any_image_has_augmented_views(size):
    image = noise(size)
    for number in range(1, 20):
        assert augmented_view(image, CLIP, "x", number).shape == (3, 96, 96)


def test_the_preprocessing_is_read_from_open_clip_and_travels_as_json():
    config = dataclasses.asdict(PreprocessCfg(size=(288, 288)))
    preprocessing = Preprocessing.from_open_clip(config)
    assert preprocessing == dataclasses.replace(CLIP, size=288)
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_what_no_model_has_is_refused():
    with pytest.raises(ValueError, match="not square"):
        Preprocessing.from_open_clip(dataclasses.asdict(PreprocessCfg(size=(288, 224))))
    with pytest.raises(ValueError, match="resize_mode"):
        dataclasses.replace(CLIP, resize_mode="stretch")
