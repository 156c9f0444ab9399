"""What people call images, and what labels are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safe_ray.classifier.samples import Labels, batches_of_pixels, samples_of, words_of
from safe_ray.data.views import Preprocessing
from safe_ray.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
PREPROCESSING = Preprocessing(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def decoded(images: object) -> list[np.ndarray]:
    return [np.asarray(sample.decode()) for sample in samples_of(images)]


@pytest.mark.parametrize(
    "one",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        torch.from_numpy(PIXELS).permute(2, 0, 1),
    ],
    ids=["PIL", "array", "tensor"],
)
def test_an_image_is_the_same_in_whatever_form_it_comes(one: object) -> None:
    (alone,) = decoded(one)
    listed = decoded([one, one])
    np.testing.assert_array_equal(alone, PIXELS)
    assert len(listed) == 2
    np.testing.assert_array_equal(listed[1], PIXELS)


def test_arrays_and_tensors_may_hold_several_images(file: Path) -> None:
    batch = np.stack([PIXELS, 255 - PIXELS])
    tensor = torch.from_numpy(batch).permute(0, 3, 1, 2)
    for images in (batch, tensor):
        first, second = decoded(images)
        np.testing.assert_array_equal(first, PIXELS)
        np.testing.assert_array_equal(second, 255 - PIXELS)
    (grey,) = decoded(PIXELS[:, :, 0])
    np.testing.assert_array_equal(grey, np.repeat(PIXELS[:, :, :1], 3, axis=2))


def test_paths_are_text_or_path_alone_listed_or_in_an_array(file: Path) -> None:
    for images in (file, str(file), [file], np.array([str(file)]), file.parent):
        (one,) = decoded(images)
        np.testing.assert_array_equal(one, PIXELS)


def test_encoded_bytes_are_an_image_too(file: Path) -> None:
    (one,) = decoded([file.read_bytes()])
    np.testing.assert_array_equal(one, PIXELS)


def test_an_image_in_memory_is_upright_and_opaque() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(buffer, "JPEG", exif=exif)
    (turned,) = decoded(Image.open(buffer))
    assert turned.shape == (40, 30, 3)
    (white,) = decoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    assert (white == 255).all()


def test_pixels_are_the_evaluation_views_in_batches(file: Path) -> None:
    batches = list(batches_of_pixels(samples_of([file] * 5), PREPROCESSING, 2))
    assert [tuple(batch.shape) for batch in batches] == [
        (2, 3, 16, 16),
        (2, 3, 16, 16),
        (1, 3, 16, 16),
    ]
    assert batches[0].dtype == torch.uint8


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (PIXELS.astype(np.float32), "image 0 is of float32: give uint8"),
        (torch.zeros(3, 4, 4), "image 0 is of float32: give uint8"),
        (PIXELS.transpose(2, 0, 1), r"shape \[3, 30, 40\]: an array has \[height, width, 3\]"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"a tensor has \[3, height, width\]"),
        (np.zeros(5, np.uint8), r"have the shape \[5\]"),
        ([1, 2], "image 0 is a int: give PIL images"),
        (7, "int is no image"),
    ],
)
def test_what_is_no_image_is_named(images: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        samples_of(images)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ("bad.png", "gone.png"):
        with pytest.raises(InputError, match=rf"image .*{name} cannot be read"):
            decoded([tmp_path / name])


def test_labels_are_text_or_whole_numbers_and_keep_their_type() -> None:
    text = Labels.of(["b", "a", "b"], 3)
    assert text.classes.tolist() == ["a", "b"]
    assert text.indices.tolist() == [1, 0, 1]
    numbers = Labels.of(np.array([7, 3, 7]), 3)
    assert numbers.classes.tolist() == [3, 7]
    objects = Labels.of(np.array(["b", "a"], dtype=object), 2)
    assert objects.classes.dtype.kind == "U"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "b"], "There are 2 labels for 3 images"),
        ([["a"], ["b"], ["c"]], "There are 3x1 labels for 3 images"),
        ([0.5, 1.0, 2.0], "of float64"),
        (["a", "a", "a"], "of one class"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Labels.of(labels, 3)


def test_prompts_have_the_words_that_labels_were_given() -> None:
    assert words_of([3, 7], {3: "a cat"}) == ("a cat", "7")
    with pytest.raises(InputError, match=r"names 'catt', and no image.*Did you mean 'cat'"):
        words_of(["cat", "dog"], {"catt": "a cat"})
    with pytest.raises(InputError, match="calls 'cat' '': give a word"):
        words_of(["cat", "dog"], {"cat": ""})
