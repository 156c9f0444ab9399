"""Where a head looks in one image, for people."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safe_ray import FewShotClassifier
from safe_ray.classifier.explanation import Explanation
from safe_ray.errors import InputError
from safe_ray.prediction.predictor import Predictor
from tests.classifier.shapes import drawings, quick


@pytest.fixture(scope="module")
def fitted(tiny_config_dir: Path) -> FewShotClassifier:
    images, labels = drawings(3)
    return quick(tiny_config_dir).fit(images, [f"<{label}>" for label in labels])


@pytest.fixture(scope="module")
def explanation(fitted: FewShotClassifier) -> Explanation:
    return fitted.explain(drawings(1, first=6)[0][0])


def test_the_weights_of_both_poolings_are_over_the_grid_of_the_map(
    explanation: Explanation,
) -> None:
    for weights in (explanation.original, explanation.tuned):
        assert weights.shape == (2, 2)
        assert weights.dtype == np.float32
        assert weights.sum() == pytest.approx(1, abs=1e-5)


def test_it_says_what_the_model_said_before_and_says_now(
    fitted: FewShotClassifier, explanation: Explanation, tmp_path: Path
) -> None:
    image = drawings(1, first=6)[0][0]
    np.testing.assert_allclose(
        explanation.tuned_probabilities, fitted.predict_proba(image)[0], atol=1e-6
    )
    assert explanation.tuned_says(1)[0][0] == fitted.predict(image)[0]
    untouched = Predictor.load(fitted.save(tmp_path), alpha=0.0)
    again = FewShotClassifier.load(tmp_path)
    again._predictor = untouched
    logits = again.decision_function(image)[0]
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(explanation.original_probabilities, expected, atol=1e-5)


def test_a_picture_has_the_image_and_both(explanation: Explanation) -> None:
    sheet = explanation.image()
    assert sheet.mode == "RGB"
    assert sheet.width > 3 * 256
    assert [overlay.size for overlay in explanation.overlays] == [explanation.picture.size] * 2


def test_a_notebook_shows_three_pictures_with_words_for_those_who_cannot_see_them(
    explanation: Explanation,
) -> None:
    shown = explanation._repr_html_()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', shown)
    assert len(pictures) == 3
    for encoded, words in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).width <= 256
        assert "image" in words or "it says" in words
    label = explanation.tuned_says(1)[0][0]
    assert html.escape(label) in shown
    assert label not in shown


def test_one_image_is_explained_at_a_time(fitted: FewShotClassifier) -> None:
    with pytest.raises(InputError, match="explain takes one image, and 2 were given"):
        fitted.explain(drawings(1)[0][:2])
