"""`FewShotClassifier`: a few labelled images and CLIP, with scikit-learn's conventions.

scikit-learn itself is not needed, and is only imported by whoever uses it.
"""

from __future__ import annotations

import inspect
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safe_ray.errors import InputError, nearest
from safe_ray.own_data import PACKAGED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from safe_ray.classifier.evidence import Evidence
    from safe_ray.classifier.explanation import Explanation
    from safe_ray.classifier.problem import LabelledSamples, Shots
    from safe_ray.classifier.samples import Names, Sample
    from safe_ray.config import SweepConfig
    from safe_ray.prediction.predictor import Predictor
    from safe_ray.progress import Reporter

# tqdm's, in a notebook without widgets, and nothing here shows its bars.
warnings.filterwarnings("ignore", message="IProgress not found")

_BATCH = 64
_WRITTEN_BY_SAVE = ("format_version", "weights", "how_to_load")


class NotFittedError(InputError, ValueError, AttributeError):
    """Something was asked of a classifier that only a fitted one has."""


class FewShotClassifier:
    """CLIP with its attention pooling tuned to a few labelled images of each class.

    `fit` searches learning rate, weight decay, epochs and blend in this process, as
    `python -m safe_ray.tune` does on a cluster. Images are PIL images, paths, uint8 arrays
    `[H, W, 3]`, uint8 tensors `[3, H, W]`, or a folder; labels are text or whole numbers.

    Args:
        backbone: a file of `conf/backbone`. `pictogram` comes with the package and was trained on
            drawings; `rn50` is OpenAI's, trained on photos, whose weights are downloaded once.
        method: a file of `conf/method`.
        shots: images of each class to train on: a number, or `all` that are not held out to choose
            by.
        candidates: how many heads are trained to choose from.
        class_names: words for labels that are none, `{label: name}` or `{label: [name, another]}`;
            the prompts have them. A folder may have them in `classes.yaml`.
        templates: prompts with one `{}` each; None is some for drawings with `pictogram`, and some
            for photos with any other backbone.
        metric: `accuracy` or `mean_per_class`: what is chosen by, and what `score` returns.
        validation: `auto`, `coop`, `cross`, `full` or `held_out` (see `search.validation`).
        seed: draws the images to train on.
        device: `cpu` or `cuda`; None is a GPU where there is one.
        store: a folder that keeps dense maps, so that the next `fit` on the same images finds
            them; None is one that goes when `fit` ends.
        settings: further settings of `python -m safe_ray.tune`, such as `{"search.lr": 1e-4}`.
        config_dir: a tree like `conf/` of your own, for backbones and methods in it.
        progress: whether to say on standard error what is assumed and how far it is.

    Attributes:
        classes_: the labels, in the order of `predict_proba`'s columns.
        class_names_: what the prompts call them.
        validation_: what the images that decided say of the chosen head, with an interval, beside
            what they say of zero-shot; None after `load`. Printed, it is a sentence.
        best_params_: what the chosen head was trained with, and its knobs, such as `alpha`.
        card_: what is known of the head; see `head.json`.
    """

    _estimator_type = "classifier"

    classes_: np.ndarray
    class_names_: tuple[str, ...]
    validation_: Evidence | None
    best_params_: dict[str, float]
    card_: dict[str, Any]

    def __init__(
        self,
        backbone: str = PACKAGED,
        *,
        method: str = "safe",
        shots: Shots = "all",
        candidates: int = 16,
        class_names: Names | None = None,
        templates: Sequence[str] | None = None,
        metric: str = "accuracy",
        validation: str = "auto",
        seed: int = 1,
        device: str | None = None,
        store: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        config_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.shots = shots
        self.candidates = candidates
        self.class_names = class_names
        self.templates = templates
        self.metric = metric
        self.validation = validation
        self.seed = seed
        self.device = device
        self.store = store
        self.settings = settings
        self.config_dir = config_dir
        self.progress = progress

    @classmethod
    def _parameters(cls) -> tuple[str, ...]:
        return tuple(list(inspect.signature(cls.__init__).parameters)[1:])

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, by name; none of them has parameters of its own."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> FewShotClassifier:
        """Set parameters by name, and return this classifier.

        Raises:
            InputError: there is no such parameter.
        """
        known = self._parameters()
        for name, value in params.items():
            if name not in known:
                raise InputError(
                    f"FewShotClassifier has no parameter {name!r}."
                    + (nearest(name, known) or f" It has {', '.join(known)}.")
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = (
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default and value != defaults[name].default
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_predictor")

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn asks of an estimator; it is there if it asks."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=False, three_d_array=True, string=True),
            no_validation=True,
        )

    def fit(
        self,
        images: Any,
        labels: Any = None,
        *,
        shots: Shots | None = None,
        groups: Any = None,
        validation_data: tuple[Any, Any] | None = None,
    ) -> FewShotClassifier:
        """Search a head for some labelled images.

        Args:
            images: several images; or, without labels, a folder of class folders, or what else
                `python -m safe_ray.tune data=` takes. Of a folder with `train`, `val` and `test`
                the first is trained on, the second chosen on, and the third left alone.
            labels: the class of each image, text or a whole number.
            shots: in place of the parameter, this time.
            groups: for each image what it belongs to, such as the film that a frame is from: images
                of one group all train, or all decide. Without, images that show one thing may do
                both, and validation then promises more than new images give.
            validation_data: `(images, labels)` that decide and do not train, in place of some of
                those that were given.

        Returns:
            This classifier.

        Raises:
            InputError: images, labels or parameters that a person can mend.
            IncompleteError: no candidate has come to anything.
        """
        import torch

        from safe_ray.classifier.dividing import deciding_of
        from safe_ray.classifier.fitting import device_named, train
        from safe_ray.classifier.problem import labelled

        device = device_named(self.device)
        kept = tempfile.TemporaryDirectory(prefix="safe-ray-")
        with kept as folder, self._reporter() as reporter:
            shots = self.shots if shots is None else shots
            deciding = deciding_of(
                labels, groups, validation_data, self.validation, shots, self.seed
            )
            given = labelled(
                images, labels, self.class_names, self.templates, self.backbone, deciding
            )
            config = self._config(given, shots, Path(folder))
            threads = torch.get_num_threads()
            try:
                trained = train(config, given.manifest, device, reporter, given.independent)
            finally:
                torch.set_num_threads(threads)
        card = {**trained.predictor.card}
        if given.labels.dtype.kind not in "US":
            card["labels"] = given.labels.tolist()
        self._take(trained.predictor, trained.state, card)
        self.validation_ = trained.evidence
        return self

    def predict(self, images: Any) -> np.ndarray:
        """Return the most probable label of each image.

        Args:
            images: see `fit`; one image gives one label, and a folder those of all images in it.

        Raises:
            InputError: an image cannot be read, or nothing was fitted.
        """
        return self.classes_of(self.predict_proba(images))

    def classes_of(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the label with the highest value of each row `[classes]`."""
        self._fitted()
        labels: np.ndarray = self.classes_[np.asarray(probabilities).argmax(axis=1)]
        return labels

    def predict_proba(self, images: Any) -> np.ndarray:
        """Return calibrated probabilities, float32 `[images, classes]`; see `predict`."""
        import torch

        predictor = self._fitted()
        logits = torch.from_numpy(self.decision_function(images))
        return torch.softmax(logits / predictor.temperature, -1).numpy()

    def decision_function(self, images: Any) -> np.ndarray:
        """Return logits, float32 `[images, classes]`, before they are calibrated; see `predict`."""
        from safe_ray.classifier.samples import samples_of

        return self._logits(samples_of(images))

    def score(self, images: Any, labels: Any = None, sample_weight: Any = None) -> float:
        """Return how good the predictions are by `metric`: 0 to 1.

        Args:
            images: see `predict`.
            labels: the class of each; without them, `images` is a folder of class folders, of which
                the test split counts if there is one.
            sample_weight: how much each image counts; all the same if there are none.

        Raises:
            InputError: as many labels as images are needed, or see `predict`.
        """
        from safe_ray.classifier.problem import labelled_test
        from safe_ray.classifier.samples import is_data_set, samples_of

        self._fitted()
        if labels is None:
            if not is_data_set(images):
                raise InputError(
                    "score needs the label of each image: give them, or a folder with a folder of "
                    "images for each class."
                )
            samples, truth = labelled_test(images)
        else:
            samples, truth = samples_of(images), np.asarray(labels)
        if truth.shape != (len(samples),) or not len(samples):
            raise InputError(
                f"There are {len(truth)} labels for {len(samples)} images: give one for each."
            )
        right = self.classes_[self._logits(samples).argmax(axis=1)] == truth
        weights = np.ones(len(truth)) if sample_weight is None else np.asarray(sample_weight, float)
        if self.metric == "mean_per_class":
            of_class = [truth == label for label in np.unique(truth)]
            return float(np.mean([np.average(right[of], weights=weights[of]) for of in of_class]))
        return float(np.average(right, weights=weights))

    def explain(self, image: Any) -> Explanation:
        """Return where the original and the tuned pooling look in one image, and what each says.

        In a notebook it shows itself; `show()` opens the picture elsewhere.

        Raises:
            InputError: it is not one image, it cannot be read, or the pooling cannot say where it
                looks.
        """
        from safe_ray.classifier.explanation import explain
        from safe_ray.classifier.samples import samples_of

        predictor = self._fitted()
        samples = samples_of(image)
        if len(samples) != 1:
            raise InputError(f"explain takes one image, and {len(samples)} were given: give one.")
        return explain(predictor, samples[0], self.classes_)

    def save(self, folder: str | Path) -> Path:
        """Write the head, which `load` and `python -m safe_ray.predict` read.

        Args:
            folder: gets `head.safetensors` and `head.json`; it is made if it is not there.

        Returns:
            The folder.

        Raises:
            InputError: nothing was fitted, the method keeps nothing, or the folder cannot be
                written.
        """
        from safe_ray.files import resolve_path
        from safe_ray.heads.artifact import save_head
        from safe_ray.methods.base import how_to_load

        self._fitted()
        method = self.card_["method"]
        if not self._state:
            raise InputError(
                f"{method['title']} keeps nothing of what it was fitted to, so that there is no "
                "head to save: fit another method, such as method='safe'."
            )
        place = resolve_path(folder)
        card = {name: value for name, value in self.card_.items() if name not in _WRITTEN_BY_SAVE}
        lines = how_to_load(method["module"], method["options"])
        save_head(place, self._state, card, lines)
        return place

    @classmethod
    def load(
        cls, head: str | Path, *, device: str | None = None, trusted: Sequence[str] = ()
    ) -> FewShotClassifier:
        """Return a classifier that was saved, or one of a sweep's.

        Args:
            head: a folder that `save` wrote, a task of a sweep (`outputs/<sweep>/<task>`), or
                `models:/<name>@best` in the MLflow that `MLFLOW_TRACKING_URI` names.
            device: `cpu` or `cuda`; None is a GPU where there is one.
            trusted: modules of your own that the head may name.

        Raises:
            InputError: there is no such head, it is damaged, or its backbone cannot be loaded.
        """
        from safe_ray.classifier.fitting import device_named
        from safe_ray.heads.artifact import load_head
        from safe_ray.prediction.heads import find_head
        from safe_ray.prediction.predictor import Predictor

        folder = find_head(str(head))
        predictor = Predictor.load(folder, device_named(device), trusted=trusted)
        state, card = load_head(folder)
        labels, names = _labels(card), card.get("names") or card["class_names"]
        if len(labels) != len(card["class_names"]):
            raise InputError(
                f"The head in {folder} has {len(labels)} labels for {len(card['class_names'])} "
                "classes: fetch it again."
            )
        loaded = cls(
            card["backbone"].get("name", PACKAGED),
            method=card["method"].get("name", "safe"),
            shots=card["shots"],
            class_names=None if labels == names else dict(zip(labels, names, strict=True)),
            templates=tuple(card["templates"]) or None,
            seed=card["seed"],
            device=device,
        )
        loaded._take(predictor, state, card)
        loaded.validation_ = None
        return loaded

    def _take(
        self, predictor: Predictor, state: Mapping[str, Tensor], card: dict[str, Any]
    ) -> None:
        self._predictor = predictor
        self._state = state
        self.card_ = card
        self.class_names_ = predictor.class_names
        self.classes_ = np.asarray(_labels(card))
        self.best_params_ = {**card["hyper_parameters"], **card["knobs"]}

    def _fitted(self) -> Predictor:
        predictor: Predictor | None = getattr(self, "_predictor", None)
        if predictor is None:
            raise NotFittedError(
                f"This {type(self).__name__} is not fitted yet: call fit, or load a head that was "
                "saved."
            )
        return predictor

    def _logits(self, samples: Sequence[Sample]) -> np.ndarray:
        from safe_ray.classifier.samples import batches_of_pixels

        predictor = self._fitted()
        found = [np.zeros((0, len(predictor.class_names)), np.float32)]
        for pixels in batches_of_pixels(samples, predictor.preprocessing, _BATCH):
            found.append(predictor.logits(pixels).numpy())
        return np.concatenate(found)

    def _config(self, given: LabelledSamples, shots: Shots, folder: Path) -> SweepConfig:
        from safe_ray.classifier.problem import configure
        from safe_ray.files import resolve_path

        settings = {
            **(self.settings or {}),
            "backbone": self.backbone,
            "method": self.method,
            "tasks.seeds": [self.seed],
            "search.candidates": self.candidates,
            # What the person has set aside to decide decides, all of it.
            "search.validation": "full" if given.independent else self.validation,
            "evaluation.metric": self.metric,
            "sweep": "fit",
            "storage": folder,
        }
        if self.store is not None:
            settings["features.store"] = resolve_path(self.store)
        return configure(given, shots, settings, self.config_dir)

    @contextmanager
    def _reporter(self) -> Iterator[Reporter]:
        from safe_ray.progress import Reporter

        if self.progress:
            with Reporter() as reporter:
                yield reporter
            return
        with open(os.devnull, "w") as nowhere, Reporter(nowhere) as reporter:
            yield reporter


def _labels(card: Mapping[str, Any]) -> list[Any]:
    """Return what the person calls each class of a head: numbers, folders, or their names."""
    return list(card.get("labels") or card.get("called") or card["class_names"])
