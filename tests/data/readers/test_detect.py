"""What somebody typed is told by what lies there."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.data.readers import READERS
from safe_ray.data.readers.detect import detect_format
from safe_ray.errors import InputError
from tests.data.coop_tree import png
from tests.data.image_tree import write_tree

WITH_IMAGES = pa.table({"image": [b"1"], "class_name": ["cat"]})
WITH_PATHS = pa.table({"path": ["a.png"], "label": ["cat"]})


def detect(location) -> str:
    found = detect_format(str(location))
    assert found in READERS
    return found


@pytest.mark.parametrize(
    "counts",
    [
        {"cat": 1, "dog": 1},
        {"train/cat": 1, "train/dog": 1, "test/cat": 1},
        {"empty": 0, "cat/deep/deeper": 1},
    ],
)
def test_class_folders(tmp_path, counts):
    write_tree(tmp_path, counts)
    (tmp_path / "labels.csv").write_text("x")
    assert detect(tmp_path) == "folder"
    assert detect(f"file://{tmp_path}") == "folder"


def test_tables_of_paths(tmp_path):
    for name in ("pets.csv", "pets.TSV"):
        (tmp_path / name).write_text("path,label\n")
        assert detect(tmp_path / name) == "table"
    pq.write_table(WITH_PATHS, tmp_path / "pets.parquet")
    assert detect(tmp_path / "pets.parquet") == "table"


def test_parquet_with_images(tmp_path):
    hub = WITH_IMAGES.set_column(0, "img", pa.array([{"bytes": b"1", "path": "a.png"}]))
    for number, table in enumerate((WITH_IMAGES, hub)):
        file = tmp_path / str(number) / "data" / "train-0.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(table, file)
        assert detect(file) == detect(file.parent) == detect(tmp_path / str(number)) == "parquet"


def test_tars(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("train/0.tar", "1.tar", "2.tar.gz"):
        (tmp_path / name).write_bytes(b"")
        assert detect(tmp_path / name) == "webdataset"
    assert detect(tmp_path) == detect(tmp_path / "train") == "webdataset"
    assert detect(tmp_path / "data-{000..010}.tar") == "webdataset"
    assert detect("s3://bucket/data-{000..010}.tar") == "webdataset"


def test_hugging_faces(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"label": ["a"]})
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "many"))
    assert detect(tmp_path / "one") == detect(tmp_path / "many") == "huggingface"
    assert detect("hf://someone/pets") == "huggingface"


def test_a_table_beside_one_folder_of_images_is_pointed_at(tmp_path):
    write_tree(tmp_path, {"images": 3})
    (tmp_path / "labels.csv").write_text("x")
    with pytest.raises(InputError, match=rf"no class folders, but .*give {tmp_path}/labels\.csv"):
        detect(tmp_path)


def test_what_nothing_fits_lists_what_is_understood(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    (tmp_path / "pets.png").write_bytes(png())
    for location in (tmp_path, tmp_path / "pets.zip", tmp_path / "pets.png", tmp_path / "gone"):
        with pytest.raises(InputError, match=r"folder of images for each class.*hf://owner/name"):
            detect(location)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"broken\.parquet cannot be read as Parquet"):
        detect(tmp_path / "broken.parquet")
