"""The lists that a data set's own authors published, for when CoOp's split file is not at hand.

One pure function a data set, from the files in its folder to its samples; `KINDS` is the table of
them. What the authors did not part is parted here, each class in the field's shares
(https://github.com/KaiyangZhou/CoOp/tree/main/datasets), but from sorted names and with a fixed
seed, so that every machine draws the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safe_ray.data.images import has_image_suffix
from safe_ray.data.locations import exists, first_line, join, list_folder, read_bytes
from safe_ray.data.readers.matlab import read_variables
from safe_ray.errors import InputError
from safe_ray.outside import MIB, parse_json

SEED = 1
LARGEST_LIST = 256 * MIB
VALIDATION_SHARE = 0.2
LISTING_SHARES = (0.5, 0.2)

Sample = tuple[str, int]
"""The path of an image below the image folder, and its label."""

CALTECH101_IGNORED = ("BACKGROUND_Google", "Faces_easy")
CALTECH101_NAMES = {
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
}
EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


@dataclass(frozen=True)
class Lists:
    """What the lists of a data set say.

    Attributes:
        classes: the class names; a label is an index into them.
        train: samples to train with, in the order of the list, or by class and name if drawn.
        val: samples to choose by.
        test: samples to test with.
        drawn: what of it was drawn rather than written down, as the end of a sentence.
    """

    classes: tuple[str, ...]
    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    drawn: str = ""


@dataclass(frozen=True)
class Place:
    """A data set's folder, and the folder of its images."""

    folder: str
    images: str

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        return exists(join(self.folder, name))

    def rows(self, name: str) -> list[list[str]]:
        """Return the words of each line of a text file that has any.

        Raises:
            InputError: the file cannot be read.
        """
        lines = self._read(name).decode("utf-8", "replace").splitlines()
        return [line.split() for line in lines if line.strip()]

    def matrices(self, name: str) -> dict[str, Any]:
        """Return the variables of a MATLAB file (see `safe_ray.data.readers.matlab`).

        Raises:
            InputError: the file cannot be read.
        """
        content = self._read(name)
        try:
            return read_variables(content)
        except ValueError as error:
            raise self.bad(name, f"is no MATLAB file ({first_line(error)})") from error

    def json(self, name: str) -> Any:
        """Return the value in a JSON file.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            return parse_json(self._read(name))
        except ValueError as error:
            raise self.bad(name, f"is not readable JSON ({first_line(error)})") from error

    def bad(self, name: str, what: str) -> InputError:
        """Return the error that something is wrong with a file."""
        return InputError(f"The list {join(self.folder, name)} {what}: fetch it again.")

    def _read(self, name: str) -> bytes:
        try:
            return read_bytes(join(self.folder, name), largest=LARGEST_LIST)
        except OSError as error:
            raise self.bad(name, f"cannot be read ({first_line(error)})") from error


@dataclass(frozen=True)
class Kind:
    """How the lists of one data set are read.

    Attributes:
        files: the files that must be there, relative to the data set's folder; none if its folders
            of images are all there is.
        read: reads them.
    """

    files: tuple[str, ...]
    read: Callable[[Place], Lists]


def part(
    samples: Iterable[Sample], classes: Sequence[str], shares: Sequence[float]
) -> list[list[Sample]]:
    """Part the samples of each class at random, the same way on every machine.

    Args:
        samples: in any order.
        classes: the class names; each seeds the drawing of its own samples.
        shares: the share of each part but the last, which is what they leave.

    Returns:
        The parts, each by label and then by path.
    """
    of_class: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (sample[1], sample[0])):
        of_class.setdefault(sample[1], []).append(sample)
    parts: list[list[Sample]] = [[] for _ in range(len(shares) + 1)]
    for label, members in of_class.items():
        random.Random(f"{SEED}/{classes[label]}").shuffle(members)
        begin = 0
        for number, share in enumerate(shares):
            end = begin + round(len(members) * share)
            parts[number] += sorted(members[begin:end])
            begin = end
        parts[-1] += sorted(members[begin:])
    return parts


def class_images(folder: str) -> list[str]:
    """Return the sorted names of the images in the folder of a class.

    Raises:
        InputError: it cannot be listed.
    """
    return [name for name in list_folder(folder)[1] if has_image_suffix(name)]


def _with_drawn_validation(
    classes: Sequence[str], trainval: list[Sample], test: list[Sample]
) -> Lists:
    val, train = part(trainval, classes, (VALIDATION_SHARE,))
    drawn = f"{VALIDATION_SHARE:.0%} of the training images of each class were drawn for validation"
    return Lists(tuple(classes), train, val, test, drawn)


def _drawn_altogether(classes: Sequence[str], samples: list[Sample]) -> Lists:
    train, val, test = part(samples, classes, LISTING_SHARES)
    drawn = "of each class 50% were drawn for training, 20% for validation and 30% for testing"
    return Lists(tuple(classes), train, val, test, drawn)


def _of_folders(ignored: Sequence[str], names: Mapping[str, str]) -> Callable[[Place], Lists]:
    """Return a reader of folders of images, each a class."""

    def read(place: Place) -> Lists:
        folders = [name for name in list_folder(place.images)[0] if name not in ignored]
        samples = [
            (f"{folder}/{name}", label)
            for label, folder in enumerate(folders)
            for name in class_images(join(place.images, folder))
        ]
        return _drawn_altogether([names.get(folder, folder) for folder in folders], samples)

    return read


def _by_folder(
    place: Place, names: Sequence[str], suffix: str = ""
) -> tuple[list[str], list[list[Sample]]]:
    """Read lists of paths whose first folder is the class; labels follow the sorted classes."""
    lists = [[(row[0] + suffix, row[0].partition("/")[0]) for row in place.rows(n)] for n in names]
    classes = sorted({name for paths in lists for _, name in paths})
    labels = {name: label for label, name in enumerate(classes)}
    return classes, [[(path, labels[name]) for path, name in paths] for paths in lists]


DTD_FILES = ("labels/train1.txt", "labels/val1.txt", "labels/test1.txt")


def _dtd(place: Place) -> Lists:
    classes, (train, val, test) = _by_folder(place, DTD_FILES)
    return Lists(tuple(classes), train, val, test)


FOOD101_FILES = ("meta/train.txt", "meta/test.txt")


def _food101(place: Place) -> Lists:
    classes, (trainval, test) = _by_folder(place, FOOD101_FILES, ".jpg")
    return _with_drawn_validation(classes, trainval, test)


AIRCRAFT_FILES = (
    "variants.txt",
    "images_variant_train.txt",
    "images_variant_val.txt",
    "images_variant_test.txt",
)


def _fgvc_aircraft(place: Place) -> Lists:
    classes = [" ".join(row) for row in place.rows(AIRCRAFT_FILES[0])]
    labels = {name: label for label, name in enumerate(classes)}

    def samples(name: str) -> list[Sample]:
        return [
            (f"{image}.jpg", _label(place, name, labels, " ".join(variant)))
            for image, *variant in place.rows(name)
        ]

    train, val, test = (samples(name) for name in AIRCRAFT_FILES[1:])
    return Lists(tuple(classes), train, val, test)


PETS_FILES = ("annotations/trainval.txt", "annotations/test.txt")


def _oxford_pets(place: Place) -> Lists:
    breeds: dict[int, str] = {}

    def samples(name: str) -> list[Sample]:
        found = []
        for row in place.rows(name):
            if row[0].startswith("#"):
                continue
            if len(row) < 2 or not row[1].isdecimal():
                raise place.bad(name, f"has the line {' '.join(row)!r}, which has no class number")
            breed, _, _ = row[0].rpartition("_")
            label = int(row[1]) - 1
            breeds[label] = breed.lower()
            found.append((f"{row[0]}.jpg", label))
        return found

    trainval, test = (samples(name) for name in PETS_FILES)
    if sorted(breeds) != list(range(len(breeds))):
        raise place.bad(PETS_FILES[0], "leaves out some of the class numbers")
    return _with_drawn_validation([breeds[label] for label in sorted(breeds)], trainval, test)


CARS_FILES = (
    "devkit/cars_meta.mat",
    "devkit/cars_train_annos.mat",
    "cars_test_annos_withlabels.mat",
)


def _stanford_cars(place: Place) -> Lists:
    meta, *annotated = CARS_FILES
    names = [str(name).split() for name in _list(place, meta, "class_names")]
    if not all(names):
        raise place.bad(meta, "has a class without a name")
    classes = [" ".join([name[-1], *name[:-1]]) for name in names]

    def samples(name: str, folder: str) -> list[Sample]:
        found = []
        for row in _list(place, name, "annotations"):
            known: dict[str, Any] = row if isinstance(row, dict) else {}
            file: Any = known.get("fname")
            label: Any = known.get("class")
            if not isinstance(file, str) or not _is_number(label):
                raise place.bad(name, "does not say the class of each image")
            found.append((f"{folder}/{file}", int(label[0]) - 1))
        if any(not 0 <= label < len(classes) for _, label in found):
            raise place.bad(name, f"has class numbers beyond 1 to {len(classes)}")
        return found

    trainval, test = (
        samples(name, folder)
        for name, folder in zip(annotated, ("cars_train", "cars_test"), strict=True)
    )
    return _with_drawn_validation(classes, trainval, test)


FLOWERS_FILES = ("imagelabels.mat", "cat_to_name.json")
FLOWERS_PARTS = "setid.mat"


def _oxford_flowers(place: Place) -> Lists:
    labels = _numbers(place, FLOWERS_FILES[0], "labels")
    if labels.min(initial=1) < 1 or labels.max(initial=1) > len(labels):
        raise place.bad(FLOWERS_FILES[0], "has class numbers that count no classes")
    names = place.json(FLOWERS_FILES[1])
    numbers = [str(number) for number in range(1, int(labels.max(initial=0)) + 1)]
    if not isinstance(names, Mapping) or not all(number in names for number in numbers):
        raise place.bad(FLOWERS_FILES[1], f"does not name the classes 1 to {len(numbers)}")
    classes = [str(names[number]) for number in numbers]
    samples = [
        (f"image_{image:05d}.jpg", int(label) - 1) for image, label in enumerate(labels, start=1)
    ]
    if not place.has(FLOWERS_PARTS):
        return _drawn_altogether(classes, samples)
    parts = []
    for name in ("trnid", "valid", "tstid"):
        images = _numbers(place, FLOWERS_PARTS, name)
        if images.min(initial=1) < 1 or images.max(initial=1) > len(samples):
            raise place.bad(FLOWERS_PARTS, f"has image numbers beyond 1 to {len(samples)}")
        parts.append([samples[int(image) - 1] for image in images])
    train, val, test = parts
    return Lists(tuple(classes), train, val, test)


SUN397_FILES = ("ClassName.txt", "Training_01.txt", "Testing_01.txt")


def _sun397(place: Place) -> Lists:
    names, *lists = SUN397_FILES
    folders = [row[0].lstrip("/") for row in place.rows(names)]
    labels = {folder: label for label, folder in enumerate(folders)}

    def samples(name: str) -> list[Sample]:
        paths = [row[0].lstrip("/") for row in place.rows(name)]
        return [(path, _label(place, name, labels, path.rpartition("/")[0])) for path in paths]

    # `a/apse/indoor` is an "indoor apse": the first folder is a letter of the alphabet.
    classes = [" ".join(reversed(folder.split("/")[1:])) for folder in folders]
    trainval, test = (samples(name) for name in lists)
    return _with_drawn_validation(classes, trainval, test)


UCF101_FILES = tuple(
    f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")
)


def _ucf101(place: Place) -> Lists:
    index, *lists = UCF101_FILES
    actions = [row[-1] for row in place.rows(index)]
    labels = {action: label for label, action in enumerate(actions)}
    classes = ["_".join(re.findall("[A-Z][^A-Z]*", action)) for action in actions]

    def samples(name: str) -> list[Sample]:
        found = []
        for video, *_ in place.rows(name):
            action, _, file = video.partition("/")
            label = _label(place, name, labels, action)
            found.append((f"{classes[label]}/{file.removesuffix('.avi')}.jpg", label))
        return found

    trainval, test = (samples(name) for name in lists)
    return _with_drawn_validation(classes, trainval, test)


def _label(place: Place, name: str, labels: Mapping[str, int], class_name: str) -> int:
    if class_name not in labels:
        raise place.bad(name, f"has the class {class_name!r}, which the list of classes has not")
    return labels[class_name]


def _list(place: Place, name: str, variable: str) -> list[Any]:
    values = _variable(place, name, variable)
    if not isinstance(values, list):
        raise place.bad(name, f"has something else than a list under {variable!r}")
    return values


def _numbers(place: Place, name: str, variable: str) -> np.ndarray:
    """Return whole numbers, int64."""
    values = _variable(place, name, variable)
    if not isinstance(values, np.ndarray) or not np.isin(values, values.astype(np.int32)).all():
        raise place.bad(name, f"has something else than whole numbers under {variable!r}")
    return values.astype(np.int64)


def _is_number(value: Any) -> bool:
    return isinstance(value, np.ndarray) and len(value) == 1 and bool(np.isfinite(value[0]))


def _variable(place: Place, name: str, variable: str) -> Any:
    variables = place.matrices(name)
    if variable not in variables:
        raise place.bad(name, f"has no variable {variable!r}")
    return variables[variable]


KINDS: dict[str, Kind] = {
    "caltech101": Kind((), _of_folders(CALTECH101_IGNORED, CALTECH101_NAMES)),
    "dtd": Kind(DTD_FILES, _dtd),
    "eurosat": Kind((), _of_folders((), EUROSAT_NAMES)),
    "fgvc_aircraft": Kind(AIRCRAFT_FILES, _fgvc_aircraft),
    "food101": Kind(FOOD101_FILES, _food101),
    "oxford_flowers": Kind(FLOWERS_FILES, _oxford_flowers),
    "oxford_pets": Kind(PETS_FILES, _oxford_pets),
    "stanford_cars": Kind(CARS_FILES, _stanford_cars),
    "sun397": Kind(SUN397_FILES, _sun397),
    "ucf101": Kind(UCF101_FILES, _ucf101),
}
