"""The field's data sets as their authors publish them, a few images of each, written to disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CARS = ("AM General Hummer SUV 2000", "Audi A4 Sedan 2012", "Ram C/V Cargo Van Minivan 2012")
FLOWERS = {"1": "pink primrose", "2": "hard-leaved pocket orchid"}
# Two WordNet ids of one name each: CLIP's authors call both missile.
WNIDS = {"n01440764": "tench", "n03773504": "missile", "n04008634": "missile"}


def write_jpegs(folder: Path, names: Iterable[str]) -> None:
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (10, 8), (number * 20 % 256, 90, 200))
        image.save(file, format="JPEG")


def write_lines(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def numbered(prefix: str, count: int, suffix: str = "", start: int = 1) -> list[str]:
    return [f"{prefix}{number}{suffix}" for number in range(start, start + count)]


def caltech101(root: Path) -> None:
    folder = root / "caltech-101/101_ObjectCategories"
    for name in ("BACKGROUND_Google", "Faces", "Faces_easy", "airplanes", "car_side"):
        write_jpegs(folder / name, numbered("image_000", 10, ".jpg", start=10))
    (folder / "BACKGROUND_Google" / "tmp").write_text("left behind by its authors")
    (folder / "Faces" / ".DS_Store").write_text("left behind by a computer")


def eurosat(root: Path) -> None:
    for name in ("SeaLake", "AnnualCrop", "Forest"):
        write_jpegs(root / "eurosat/2750" / name, numbered(f"{name}_", 10, ".jpg"))


def dtd(root: Path) -> None:
    folder = root / "dtd"
    for split, start in (("train", 1), ("val", 4), ("test", 6)):
        count = {"train": 3, "val": 2, "test": 1}[split]
        names = [
            path
            for texture in ("zigzagged", "banded")
            for path in numbered(f"{texture}/{texture}_000", count, ".jpg", start)
        ]
        write_lines(folder / f"labels/{split}1.txt", names)
        write_jpegs(folder / "images", names)


def food101(root: Path) -> None:
    folder = root / "food-101"
    for split, start, count in (("train", 100, 5), ("test", 200, 2)):
        names = [
            path
            for dish in ("pad_thai", "apple_pie")
            for path in numbered(f"{dish}/", count, start=start)
        ]
        write_lines(folder / f"meta/{split}.txt", names)
        write_jpegs(folder / "images", [f"{name}.jpg" for name in names])


def fgvc_aircraft(root: Path) -> None:
    folder = root / "fgvc_aircraft"
    write_lines(folder / "variants.txt", ["707-320", "Model B200", "F/A-18"])
    images = {
        "train": ["1025794 Model B200", "1340192 707-320", "0056978 F/A-18"],
        "val": ["0481847 707-320"],
        "test": ["1514522 Model B200", "0747566 F/A-18"],
    }
    for split, lines in images.items():
        write_lines(folder / f"images_variant_{split}.txt", lines)
        write_jpegs(folder / "images", [f"{line.split()[0]}.jpg" for line in lines])


def oxford_pets(root: Path) -> None:
    folder = root / "oxford_pets"
    breeds = {"Abyssinian": (1, 1), "american_bulldog": (2, 2), "Egyptian_Mau": (3, 1)}
    for split, start, count in (("trainval", 1, 5), ("test", 100, 2)):
        rows = [
            (f"{breed}_{number}", label, species)
            for breed, (label, species) in breeds.items()
            for number in range(start, start + count)
        ]
        lines = [f"{name} {label} {species} 1" for name, label, species in rows]
        write_lines(folder / f"annotations/{split}.txt", lines)
        write_jpegs(folder / "images", [f"{name}.jpg" for name, *_ in rows])


def annotations(rows: Iterable[tuple[str, int]]) -> np.ndarray:
    names = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    boxed = [(1, 1, 9, 7, label, file) for file, label in rows]
    return np.array(boxed, dtype=[(name, object) for name in names])


def stanford_cars(root: Path) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(CARS, dtype=object)})
    train = [(f"{5 * label + n:05d}.jpg", label) for label in (3, 1, 2) for n in range(1, 6)]
    test = [(f"{n:05d}.jpg", n) for n in (1, 2, 3)]
    write_jpegs(folder / "cars_train", [file for file, _ in train])
    write_jpegs(folder / "cars_test", [file for file, _ in test])
    savemat(folder / "devkit/cars_train_annos.mat", {"annotations": annotations(train)})
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": annotations(test)})


def oxford_flowers(root: Path) -> None:
    folder = root / "oxford_flowers"
    labels = [2] * 10 + [1] * 10
    write_jpegs(folder / "jpg", [f"image_{number:05d}.jpg" for number in range(1, 21)])
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    (folder / "cat_to_name.json").write_text(json.dumps(FLOWERS))


def write_setid(root: Path, train: list[int], val: list[int], test: list[int]) -> None:
    ids = {"trnid": np.array([train]), "valid": np.array([val]), "tstid": np.array([test])}
    savemat(root / "oxford_flowers/setid.mat", ids)


def sun397(root: Path) -> None:
    folder = root / "sun397"
    places = ["a/abbey", "a/apse/indoor", "b/bus_interior"]
    write_lines(folder / "ClassName.txt", [f"/{place}" for place in places])
    for name, start, count in (("Training_01", 1, 5), ("Testing_01", 7, 2)):
        names = [
            path for place in places for path in numbered(f"{place}/sun_", count, ".jpg", start)
        ]
        write_lines(folder / f"{name}.txt", [f"/{path}" for path in names])
        write_jpegs(folder / "SUN397", names)


def ucf101(root: Path) -> None:
    folder = root / "ucf101"
    actions = {"ApplyEyeMakeup": "ApplyEyeMakeup", "HandstandPushups": "HandStandPushups"}
    indices = [f"{number} {action}" for number, action in enumerate(actions, start=1)]
    write_lines(folder / "ucfTrainTestlist/classInd.txt", indices)
    lists: dict[str, list[str]] = {"trainlist01": [], "testlist01": []}
    for label, (action, spelt) in enumerate(actions.items(), start=1):
        frames = {"ApplyEyeMakeup": "Apply_Eye_Makeup"}.get(action, "Handstand_Pushups")
        for name, groups in (("trainlist01", range(8, 13)), ("testlist01", range(1, 3))):
            videos = [f"v_{spelt}_g{group:02d}_c01" for group in groups]
            ends = f" {label}" if name == "trainlist01" else ""
            lists[name] += [f"{action}/{video}.avi{ends}" for video in videos]
            write_jpegs(folder / "UCF-101-midframes" / frames, [f"{v}.jpg" for v in videos])
    for name, lines in lists.items():
        write_lines(folder / f"ucfTrainTestlist/{name}.txt", lines)


OFFICIAL: Mapping[str, Callable[[Path], None]] = {
    "caltech101": caltech101,
    "dtd": dtd,
    "eurosat": eurosat,
    "fgvc_aircraft": fgvc_aircraft,
    "food101": food101,
    "oxford_flowers": oxford_flowers,
    "oxford_pets": oxford_pets,
    "stanford_cars": stanford_cars,
    "sun397": sun397,
    "ucf101": ucf101,
}


def write_classnames(folder: Path) -> None:
    write_lines(folder / "classnames.txt", [f"{wnid} {name}" for wnid, name in WNIDS.items()])


def imagenet(root: Path) -> None:
    folder = root / "imagenet/images"
    for wnid in WNIDS:
        write_jpegs(folder / "train" / wnid, [f"{wnid}_{number}.JPEG" for number in (12, 3, 7)])
        write_jpegs(folder / "val" / wnid, [f"ILSVRC2012_val_{wnid[-3:]}.JPEG"])
