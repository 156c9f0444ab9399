"""A table of paths and labels is a data set, wherever the images lie."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.data.manifest import read_image_bytes
from safe_ray.errors import InputError
from tests.data.coop_tree import png
from tests.data.image_tree import load, paths, sizes, write_tree

load = partial(load, "table")
ROWS = [("a.png", "cat"), ("b.png", "dog"), ("c.png", "cat"), ("sub/d.png", "dog")]


def write(folder: Path, text: str | bytes, name: str = "pets.csv") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def csv(rows, header=("path", "label"), delimiter=",") -> str:
    return "".join(delimiter.join(map(str, row)) + "\n" for row in [header, *rows])


def files(manifest) -> set[str]:
    return {file for table in manifest.tables.values() for file in table.column("file").to_pylist()}


def test_paths_start_at_the_folder_of_the_table(tmp_path):
    manifest = load(write(tmp_path, csv(ROWS)))
    assert manifest.classes == ("cat", "dog")
    assert sizes(manifest) == {"train": 2, "val": 0, "test": 2}
    assert manifest.listed
    assert files(manifest) == {str(tmp_path / path) for path, _ in ROWS}
    assert set(paths(manifest, "train") + paths(manifest, "test")) == {path for path, _ in ROWS}


def test_rows_whose_file_is_not_there_are_counted_whoever_draws_them(tmp_path):
    write_tree(tmp_path, {"cat": 4, "dog": 4})
    rows = [(f"{name}/{n:03d}.png", name) for name in ("cat", "dog") for n in range(6)]
    manifest = load(write(tmp_path, csv([*rows, ("gone/a.png", "cat")])))
    missing = [str(tmp_path / path) for path in ("cat/004.png", "cat/005.png", "dog/004.png")]
    assert manifest.notes[-1] == (
        f"In {tmp_path}/pets.csv, 5 rows name files that are not there ({', '.join(missing)}, "
        "...): a task that draws one, or the test split if one is in it, stops the run, unless "
        "data.skip_bad=true."
    )
    assert sum(sizes(manifest).values()) == 13
    whole = load(write(tmp_path, csv(rows[:4] + rows[6:10])))
    assert not any("not there" in note for note in whole.notes)


@pytest.mark.parametrize("path", ["path", "File", "FILENAME", "file_name", "image", "image_path"])
@pytest.mark.parametrize("label", ["label", "Class", "class_name", "category"])
def test_columns_are_found_by_their_usual_names(tmp_path, path, label):
    table = csv([("x", *row) for row in ROWS], ("note", path, label))
    assert load(write(tmp_path, table)).classes == ("cat", "dog")


def test_columns_can_be_named(tmp_path):
    rows = [
        (path, "wrong", label, split) for (path, label), split in zip(ROWS, "aabb", strict=True)
    ]
    rows = [(*row[:3], {"a": "Training", "b": "testing"}[row[3]]) for row in rows]
    file = write(tmp_path, csv(rows, ("where", "label", "kind", "part")))
    options = {"path_column": "where", "label_column": "kind", "split_column": "part"}
    manifest = load(file, **options)
    assert sizes(manifest) == {"train": 2, "val": 0, "test": 2}
    assert not manifest.listed
    with pytest.raises(InputError, match=r"no column 'knd', which options\.label_column.*'kind'"):
        load(file, **{**options, "label_column": "knd"})


@pytest.mark.parametrize(
    ("delimiter", "name"), [("\t", "pets.tsv"), (";", "pets.csv"), ("|", "pets.csv")]
)
def test_the_delimiter_is_found_or_given(tmp_path, delimiter, name):
    assert load(write(tmp_path, csv(ROWS, delimiter=delimiter), name)).classes == ("cat", "dog")
    file = write(tmp_path, csv(ROWS, ("path,", "label"), delimiter=delimiter), name)
    options = {"delimiter": delimiter, "path_column": "path,"}
    assert load(file, **options).classes == ("cat", "dog")


def test_quotes_windows_line_ends_and_a_byte_order_mark_are_understood(tmp_path):
    text = '\ufeff"path","label"\r\n"a, b.png","sea ""lion"""\r\nc.png,café\r\n'
    manifest = load(write(tmp_path, text))
    assert manifest.classes == ("café", 'sea "lion"')
    assert "a, b.png" in paths(manifest, "train")


def test_what_looks_like_a_number_or_nothing_stays_text(tmp_path):
    rows = [("1.png", "007"), ("2.png", "NA"), ("3.png", "null"), ("4.png", "1e5")]
    assert load(write(tmp_path, csv(rows))).classes == ("007", "1e5", "NA", "null")


def test_numbers_are_names_unless_names_are_listed(tmp_path):
    rows = [("a.png", 1), ("b.png", 0), ("c.png", 10), ("d.png", 2)]
    file = write(tmp_path, csv(rows))
    manifest = load(file)
    assert manifest.classes == ("0", "1", "2", "10")
    assert any("list their names" in note for note in manifest.notes)
    named = load(write(tmp_path, csv(rows[:2])), classes=["cat", "dog"])
    assert named.classes == ("cat", "dog")
    assert named.split("train").column("label").to_pylist() == [1, 0]
    with pytest.raises(InputError, match=r"label 10, but options\.classes.*names 2 classes"):
        load(write(tmp_path, csv(rows)), classes=["cat", "dog"])


def test_a_split_column_is_followed(tmp_path):
    rows = [("a.png", "cat", "train"), ("b.png", "dog", "TRAIN"), ("c.png", "cat", "valid")]
    manifest = load(write(tmp_path, csv(rows, ("path", "label", "split"))))
    assert sizes(manifest) == {"train": 2, "val": 0, "test": 1}
    assert any("validation split, 1 image, serves" in note for note in manifest.notes)
    rows[1] = ("b.png", "dog", "tran")
    with pytest.raises(InputError, match=r"row 1 is in the unknown split 'tran'.*mean 'train'"):
        load(write(tmp_path, csv(rows, ("path", "label", "split"))))


def test_images_may_lie_in_another_folder(tmp_path):
    write_tree(tmp_path / "pictures", {"x": 4})
    rows = [(f"x/{number:03d}.png", "ab"[number % 2]) for number in range(4)]
    file = write(tmp_path / "tables", csv(rows))
    for images in ("../pictures", str(tmp_path / "pictures"), f"file://{tmp_path}/pictures"):
        table = load(file, images=images).split("train")
        expected = [
            (tmp_path / "pictures" / path).read_bytes() for path in table["path"].to_pylist()
        ]
        assert read_image_bytes(table, range(table.num_rows)) == expected
    with pytest.raises(InputError, match=r"no folder .*picture; correct options\.images"):
        load(file, images="../picture")


def test_absolute_paths_and_uris_get_relative_names_that_are_unique(tmp_path):
    rows = [
        (tmp_path / "a.png", "cat"),
        ("./b.png", "dog"),
        ("../other/c.png", "cat"),
        ("memory://bucket/a.png", "dog"),
        (f"file://{tmp_path}/my%20d.png", "dog"),
    ]
    manifest = load(write(tmp_path / "pets", csv(rows)))
    assert files(manifest) == {
        f"{tmp_path}/a.png",
        f"{tmp_path}/pets/b.png",
        f"{tmp_path}/other/c.png",
        "memory://bucket/a.png",
        f"{tmp_path}/my d.png",
    }
    names = paths(manifest, "train") + paths(manifest, "test")
    assert len(set(names)) == 5
    assert not any(name.startswith("/") or ".." in name for name in names)


def test_the_drawn_split_does_not_depend_on_where_the_table_lies(tmp_path):
    rows = [(f"{number}.png", "ab"[number % 2]) for number in range(40)]
    here, there = (load(write(tmp_path / name, csv(rows))) for name in "xy")
    assert paths(here, "test") == paths(there, "test")
    assert len(paths(here, "test")) == 12


def test_an_image_that_is_listed_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'a\.png' twice"):
        load(write(tmp_path, csv([*ROWS, ("./a.png", "cat")])))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,cat\nb.png,dog\n", r"lacks a column 'path' \(it has 'a.png', 'cat'\)"),
        ("path,kind\na.png,cat\n", r"lacks a column 'class_name'.*options\.label_column"),
        ("path,label\na.png,cat\nb.png\n", "cannot be read as a table"),
        ("path,label\na.png,cat\nb.png,\n", "row 1 has no label"),
        ("path,label\n,cat\nb.png,dog\n", "row 0 has no path"),
        ("path,label,label\na.png,cat,dog\n", "two columns 'label'"),
        (b"path,label\na.png,caf\xe9\nb.png,dog\n", "cannot be read as a table.*UTF-8"),
        (b"", "lacks a column 'path'"),
        ("path,label\n", "no classes"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load(write(tmp_path, text))


def test_a_missing_table_and_a_folder_in_its_place_are_named(tmp_path):
    for location in (tmp_path / "gone.csv", tmp_path):
        with pytest.raises(InputError, match=r"no file .*data\.root"):
            load(location)


def test_parquet_may_hold_paths_and_labels_too(tmp_path):
    file = tmp_path / "pets.parquet"
    table = {"path": [path for path, _ in ROWS], "label": [0, 1, 0, 1]}
    pq.write_table(pa.table(table), file)
    manifest = load(file, classes=["cat", "dog"])
    assert manifest.classes == ("cat", "dog")
    assert files(manifest) == {str(tmp_path / path) for path, _ in ROWS}
    pq.write_table(pa.table({**table, "label": [0.5, 1, 0, 1]}), file)
    with pytest.raises(InputError, match="column 'label' of type double"):
        load(file)
    file.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        load(file)


def test_a_missing_image_is_named_when_it_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(InputError, match=r"The image .*png cannot be read \(No such file"):
        read_image_bytes(load(write(tmp_path, csv(ROWS))).split("train"), [0, 1])


def test_twenty_thousand_classes_load_in_seconds(tmp_path):
    rows = [(f"{number}.png", f"kind {number % 20_000}") for number in range(60_000)]
    file = write(tmp_path, csv(rows))
    start = time.monotonic()
    manifest = load(file)
    assert time.monotonic() - start < 10
    assert len(manifest.classes) == 20_000
    assert sizes(manifest) == {"train": 40_000, "val": 0, "test": 20_000}
