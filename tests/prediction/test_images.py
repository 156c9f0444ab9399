"""What a person names, as images in an order, with labels where they are known."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.errors import InputError
from safe_ray.prediction.images import Picture, find_pictures, other_names

CLASSES = ("red circle", "blue square")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("red_circle/b.png", "red_circle/a.jpg", "Blue Square/deep/c.PNG", "odd/d.webp"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "photos" / "notes.txt").touch()
    (tmp_path / "photos" / ".hidden.png").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def found(*named: str, lines: tuple[str, ...] = ()) -> list[Picture]:
    return list(find_pictures(named, CLASSES, lines))


def test_a_folder_gives_its_images_and_the_labels_of_folders_called_as_classes(
    photos: Path,
) -> None:
    assert [(one.path, one.label) for one in found("photos")] == [
        ("photos/Blue Square/deep/c.PNG", "blue square"),
        ("photos/odd/d.webp", None),
        ("photos/red_circle/a.jpg", "red circle"),
        ("photos/red_circle/b.png", "red circle"),
    ]
    assert all(Path(one.file).is_absolute() for one in found("photos"))


def test_files_patterns_and_standard_input_keep_their_order(photos: Path) -> None:
    named = ("photos/odd/d.webp", "photos/red*/*", "-")
    pictures = found(*named, lines=("photos/Blue Square/deep/c.PNG\n", "\n"))
    assert [one.path for one in pictures] == [
        "photos/odd/d.webp",
        "photos/red_circle/a.jpg",
        "photos/red_circle/b.png",
        "photos/Blue Square/deep/c.PNG",
    ]
    assert not any(one.label for one in pictures)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_a_table_names_paths_from_its_own_folder_and_perhaps_classes(
    photos: Path, kind: str
) -> None:
    rows = [
        {"note": "a, b", "Path": "red_circle/a.jpg", "Class": "Red Circle"},
        {"note": "", "Path": "/elsewhere/x.png", "Class": ""},
        {"note": "", "Path": "https://host/y.png", "Class": "blue square"},
    ]
    file = photos / f"some.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "," if kind == "csv" else "\t"
        lines = [mark.join(f'"{v}"' for v in row.values()) for row in rows]
        file.write_text("\n".join([mark.join(rows[0]), *lines]) + "\n")
    pictures = found(str(file))
    assert [(one.path, one.label) for one in pictures] == [
        ("red_circle/a.jpg", "red circle"),
        ("/elsewhere/x.png", None),
        ("https://host/y.png", "blue square"),
    ]
    assert [one.file for one in pictures] == [
        str(photos / "red_circle/a.jpg"),
        "/elsewhere/x.png",
        "https://host/y.png",
    ]


def test_a_file_that_is_not_there_is_for_its_own_row_to_tell(photos: Path) -> None:
    assert [one.path for one in found("photos/gone.png")] == ["photos/gone.png"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "image_id,class\n1,red circle\n", "no column 'path'"),
        ("a.csv", "path,class\nx.png,green star\n", "row 1 has the class 'green star'"),
        ("a.csv", "path\n", "no rows"),
        ("a.jsonl", "[1]\n", "cannot be read as a table"),
        ("a.jsonl", "{]\n", "cannot be read as a table"),
        ("a.parquet", "nothing", "cannot be read as a table"),
    ],
)
def test_a_table_that_is_wrong_is_told_in_a_sentence(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        found(str(tmp_path / name))


@pytest.mark.parametrize(
    ("named", "words"),
    [("empty", "no image in empty"), ("empty/*.jpg", "No image matches")],
)
def test_nothing_to_classify_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        found(named)


def test_folders_may_be_called_as_they_were_before_their_classes_had_better_words(
    tmp_path: Path,
) -> None:
    card = {"class_names": ["tench", "sofa"], "names": [["tench"], ["sofa", "couch"]]}
    others = other_names({**card, "called": ["n01440764", "c12"]})
    for name in ("n01440764", "sofa", "couch", "else"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    found = find_pictures([str(tmp_path)], card["class_names"], (), others)
    labels = {picture.path.split("/")[-2]: picture.label for picture in found}
    assert labels == {"n01440764": "tench", "sofa": "sofa", "couch": "sofa", "else": None}
