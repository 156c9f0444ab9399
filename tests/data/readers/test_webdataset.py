"""Images in tar files are read where they lie."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from functools import partial
from pathlib import Path

import pytest

from safe_ray.data.manifest import read_image_bytes
from safe_ray.data.readers.webdataset import expand_braces
from safe_ray.errors import InputError
from tests.data.coop_tree import png
from tests.data.image_tree import load, paths, sizes

load = partial(load, "webdataset")
CATS_AND_DOGS = ["cat", "dog"]


def write_tar(file: Path, members: list[tuple[str, bytes | str]], **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", **options) as tar:
        for name, content in members:
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def picture(number: int) -> bytes:
    return png(f"#{number:06x}", (8 + number % 5, 8))


def samples(numbers, suffix: str = "cls", label=lambda number: str(number % 2)):
    members = []
    for number in numbers:
        members += [
            (f"{number:04d}.png", picture(number)),
            (f"{number:04d}.{suffix}", label(number)),
        ]
    return members


def test_an_image_is_a_range_of_bytes_of_its_tar(tmp_path):
    file = write_tar(tmp_path / "data.tar", samples(range(20)))
    manifest = load(file, classes=CATS_AND_DOGS)
    assert sizes(manifest) == {"train": 14, "val": 0, "test": 6}
    for table in manifest.tables.values():
        assert table.column_names == ["path", "label", "file", "offset", "length"]
        numbers = [int(Path(path).stem) for path in table.column("path").to_pylist()]
        assert table.column("label").to_pylist() == [number % 2 for number in numbers]
        read = read_image_bytes(table, range(table.num_rows))
        assert read == [picture(number) for number in numbers]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_every_dialect(tmp_path, format):
    deep = "/".join(["a folder"] * 12)
    members = [
        (f"{deep}/猫.png", picture(1)),
        (f"{deep}/猫.cls", "0"),
        ("./dog.png", picture(2)),
        ("./dog.cls", "1"),
    ]
    table = load(write_tar(tmp_path / "data.tar", members, format=format)).split("train")
    assert table["path"].to_pylist() == [f"data.tar/{deep}/猫.png", "data.tar/dog.png"]
    assert read_image_bytes(table, [0, 1]) == [picture(1), picture(2)]


@pytest.mark.parametrize(
    ("suffix", "label"),
    [
        ("txt", lambda number: f" {CATS_AND_DOGS[number % 2]}\n"),
        ("json", lambda number: json.dumps({"class_name": CATS_AND_DOGS[number % 2], "label": 7})),
        ("json", lambda number: json.dumps({"label": CATS_AND_DOGS[number % 2], "x": [1]})),
        ("cls", lambda number: CATS_AND_DOGS[number % 2]),
    ],
)
def test_labels_are_names_too(tmp_path, suffix, label):
    file = write_tar(tmp_path / "data.tar", samples(range(6), suffix, label))
    assert load(file).classes == ("cat", "dog")


def test_the_key_of_the_label_can_be_named(tmp_path):
    members = samples(range(6), "json", lambda number: json.dumps({"kind": number % 2, "label": 0}))
    file = write_tar(tmp_path / "data.tar", members)
    assert load(file, label_key="kind", classes=CATS_AND_DOGS).classes == ("cat", "dog")
    with pytest.raises(InputError, match=r"no label for the image '0000\.png'.*label_key"):
        load(file, label_key="sort")


def test_a_list_of_names_beside_the_tars_names_the_numbers(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", samples(range(6)))
    write_tar(tmp_path / "test" / "0.tar", samples(range(6, 10)))
    (tmp_path / "classnames.txt").write_text("cat\nsea lion\n")
    manifest = load(tmp_path)
    assert manifest.classes == ("cat", "sea lion")
    assert sizes(manifest) == {"train": 6, "val": 0, "test": 4}
    assert not manifest.listed


@pytest.mark.parametrize("pattern", ["", "data-{train,test}-{0000..0001}.tar"])
def test_the_split_is_in_the_names_of_the_tars(tmp_path, pattern):
    for number, name in enumerate(["train-0000", "train-0001", "test-0000", "test-0001"]):
        write_tar(tmp_path / f"data-{name}.tar", samples(range(4 * number, 4 * number + 4)))
    manifest = load(tmp_path / pattern)
    assert sizes(manifest) == {"train": 8, "val": 0, "test": 8}
    assert paths(manifest, "test")[0] == "data-test-0000.tar/0008.png"


def test_a_name_of_which_only_some_hold_a_split_is_refused(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples(range(4)))
    write_tar(tmp_path / "more-0.tar", samples(range(4, 8)))
    with pytest.raises(InputError, match=r"such as train-0\.tar, and others .*more-0\.tar"):
        load(tmp_path)


def test_braces_stand_for_numbers_and_words():
    assert expand_braces("a{08..10}b") == ["a08b", "a09b", "a10b"]
    assert expand_braces("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]
    assert expand_braces("plain") == ["plain"]


def test_what_belongs_to_no_sample_is_left_out(tmp_path):
    members = [
        ("README", "x"),
        ("._0000.png", "x"),
        ("9999.cls", "1"),
        *samples(range(4)),
        ("0003.mask.png", picture(9)),
    ]
    manifest = load(write_tar(tmp_path / "data.tar", members))
    assert sum(sizes(manifest).values()) == 4
    assert f"Left out of {tmp_path}/data.tar: samples without an image (1)." in manifest.notes


def test_two_images_of_one_sample_and_a_sample_without_a_label_are_refused(tmp_path):
    two = [("1.png", picture(1)), ("1.jpg", picture(1)), ("1.cls", "0")]
    with pytest.raises(InputError, match=r"two images for the sample '1', '1\.png' and '1\.jpg'"):
        load(write_tar(tmp_path / "two.tar", two))
    with pytest.raises(InputError, match=r"no label for the image '1\.png': add 1\.cls"):
        load(write_tar(tmp_path / "none.tar", two[:1]))
    with pytest.raises(InputError, match=r"unreadable label '1\.json'"):
        load(write_tar(tmp_path / "bad.tar", [two[0], ("1.json", "{")]))


def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path):
    file = write_tar(tmp_path / "plain" / "data.tar", samples(range(4)))
    for name in ("a/data.tar.gz", "b/data.tar"):
        packed = tmp_path / name
        packed.parent.mkdir()
        packed.write_bytes(gzip.compress(file.read_bytes()))
        for location in (packed, packed.parent):
            with pytest.raises(InputError, match=r"data\.tar.* is a compressed tar.*gunzip"):
                load(location)


def test_damaged_and_missing_tars_are_named(tmp_path):
    whole = write_tar(tmp_path / "data.tar", samples(range(4))).read_bytes()
    for content in (b"", b"not a tar" * 200, whole[:700], whole[: len(whole) // 2]):
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.tar (cannot be read as a tar|has no image)"):
            load(tmp_path / "bad.tar")
    with pytest.raises(InputError, match=r"no file .*gone-1\.tar"):
        load(tmp_path / "gone-{1..2}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \*\.tar file"):
        load(tmp_path / "empty")
