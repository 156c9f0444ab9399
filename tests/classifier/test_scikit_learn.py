"""The conventions of scikit-learn, tried by scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.utils.validation import check_is_fitted

from safe_ray import FewShotClassifier
from safe_ray.errors import InputError
from tests.classifier.shapes import drawings, quick


def test_making_one_only_keeps_the_parameters_and_a_clone_has_the_same(
    tiny_config_dir: Path,
) -> None:
    model = quick(tiny_config_dir, shots=2, class_names={"a": "an a"})
    copy = clone(model)
    assert copy is not model
    assert copy.get_params() == model.get_params()
    assert "classes_" not in vars(copy)
    with pytest.raises(NotFittedError):
        check_is_fitted(copy)
    assert is_classifier(model)


def test_parameters_are_set_by_name_and_shown_where_they_are_not_the_usual_ones() -> None:
    model = FewShotClassifier().set_params(shots=4, method="safe_a")
    assert repr(model) == "FewShotClassifier(method='safe_a', shots=4)"
    with pytest.raises(InputError, match=r"no parameter 'shot'.*Did you mean 'shots'"):
        model.set_params(shot=4)


def test_it_is_cross_validated(tiny_config_dir: Path) -> None:
    images, labels = drawings(4)
    scores = cross_val_score(
        quick(tiny_config_dir, candidates=1), images, labels, cv=2, error_score="raise"
    )
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_groups_go_to_the_folds_and_into_each_fit(tiny_config_dir: Path) -> None:
    images, labels = drawings(6)
    films = [place // 2 for place in range(len(images))]
    scores = cross_val_score(
        quick(tiny_config_dir, candidates=1),
        images,
        labels,
        groups=films,
        cv=GroupKFold(3),
        params={"groups": films},
        error_score="raise",
    )
    assert scores.shape == (3,)


@pytest.mark.filterwarnings("error")
def test_parameters_are_searched_on_a_grid(tiny_config_dir: Path, tmp_path: Path) -> None:
    images, labels = drawings(4)
    pixels = np.stack([np.asarray(image) for image in images])
    search = GridSearchCV(
        quick(tiny_config_dir, candidates=1, store=tmp_path),
        {"shots": [1, 2], "method": ["safe"]},
        cv=2,
        scoring="neg_log_loss",
        error_score="raise",
    )
    search.fit(pixels, np.array(labels))
    assert search.best_params_["shots"] in (1, 2)
    check_is_fitted(search.best_estimator_)
    assert search.predict(pixels[:3]).shape == (3,)
