"""Every image is checked once, before anything expensive starts."""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from PIL import Image

from safe_ray.errors import InputError
from safe_ray.features.inventory import describe_warned, take_inventory
from tests.conftest import SHAPES, draw_shape
from tests.data.image_tree import load, write_tree

NAMES = list(SHAPES)


def images(count: int) -> list[bytes]:
    return [draw_shape(NAMES[number % len(NAMES)], number) for number in range(count)]


def file_table(folder: Path, contents: list[bytes]) -> pa.Table:
    files = []
    for number, content in enumerate(contents):
        file = folder / f"{number:02d}.png"
        file.write_bytes(content)
        files.append(file)
    return pa.table(
        {
            "path": [file.name for file in files],
            "label": pa.array(range(len(files)), pa.int32()),
            "file": [str(file) for file in files],
        }
    )


def image_table(contents: list[bytes]) -> pa.Table:
    return pa.table(
        {
            "path": [f"{number:02d}.png" for number in range(len(contents))],
            "label": pa.array(range(len(contents)), pa.int32()),
            "image": pa.array(contents, pa.large_binary()),
        }
    )


def digests(contents: list[bytes]) -> list[str]:
    return [hashlib.sha256(content).hexdigest()[:32] for content in contents]


@pytest.fixture(params=["file", "image"])
def make_table(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "image":
        return image_table
    folder = tmp_path / "images"
    folder.mkdir()
    return lambda contents: file_table(folder, contents)


def test_a_sample_is_named_by_the_digest_of_its_bytes(make_table, tmp_path: Path) -> None:
    contents = images(7)
    table = make_table(contents)
    inventory = take_inventory(table, tmp_path / "cache.arrow")
    assert inventory.samples == digests(contents)
    assert inventory.table.drop_columns(["sample"]).equals(table)
    assert (inventory.bad, inventory.checked) == ((), 7)


def test_the_second_run_checks_nothing(make_table, tmp_path: Path) -> None:
    table = make_table(images(7))
    first = take_inventory(table, tmp_path / "cache.arrow")
    second = take_inventory(table, tmp_path / "cache.arrow")
    assert second.checked == 0
    assert second.table.equals(first.table)


def test_files_known_from_before_are_not_read(tmp_path: Path) -> None:
    table = file_table(tmp_path, images(3))
    take_inventory(table, tmp_path / "cache.arrow")
    file = Path(table["file"][1].as_py())
    status = file.stat()
    file.write_bytes(b"x" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert take_inventory(table, tmp_path / "cache.arrow").checked == 0


def test_a_changed_file_is_checked_again(tmp_path: Path) -> None:
    contents = images(4)
    table = file_table(tmp_path, contents[:3])
    take_inventory(table, tmp_path / "cache.arrow")
    Path(table["file"][1].as_py()).write_bytes(contents[3])
    inventory = take_inventory(table, tmp_path / "cache.arrow")
    assert inventory.checked == 1
    assert inventory.samples == digests([contents[0], contents[3], contents[2]])


def test_what_the_decoder_warns_of_is_kept_and_said_in_every_run(make_table, tmp_path) -> None:
    contents = images(3)
    buffer = io.BytesIO()
    Image.effect_noise((90, 90), 80).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    contents[1] = jpeg[: len(jpeg) // 2] + bytes(400) + jpeg[len(jpeg) // 2 + 400 :]
    table = make_table(contents)
    for checked in (3, 0):
        inventory = take_inventory(table, tmp_path / "cache.arrow")
        ((path, warning),) = inventory.warned
        assert (inventory.checked, inventory.bad, path) == (checked, (), "01.png")
        assert warning.startswith("Corrupt JPEG data")
        assert inventory.samples == digests(contents)
    said = describe_warned(inventory.warned)
    assert said.startswith("1 image decodes with a warning and may be damaged: 01.png (Corrupt")
    assert describe_warned(inventory.warned * 5).count("01.png") == 3


def test_a_cache_without_warnings_is_made_anew(make_table, tmp_path: Path) -> None:
    table, cache = make_table(images(3)), tmp_path / "cache.arrow"
    take_inventory(table, cache)
    with pa.ipc.open_file(cache.read_bytes()) as reader:
        older = reader.read_all().drop_columns(["warning"])
    with pa.ipc.new_file(str(cache), older.schema) as writer:
        writer.write_table(older)
    assert take_inventory(table, cache).checked == 3
    assert take_inventory(table, cache).checked == 0


def test_tables_share_one_cache(tmp_path: Path) -> None:
    contents = images(4)
    cache = tmp_path / "cache.arrow"
    take_inventory(image_table(contents[:2]), cache)
    files = file_table(tmp_path, contents)
    take_inventory(files, cache)
    assert take_inventory(image_table(contents), cache).checked == 0
    assert take_inventory(files, cache).checked == 0


def test_bad_images_stop_the_run_with_a_list(make_table, tmp_path: Path) -> None:
    contents = images(15)
    for number in range(1, 13):
        contents[number] = b"this is not an image" if number % 2 else contents[number][:60]
    table = make_table(contents)
    with pytest.raises(InputError) as error:
        take_inventory(table, tmp_path / "cache.arrow")
    message = str(error.value)
    assert message.startswith("12 of 15 images cannot be used: 01.png (")
    assert "10.png" in message
    assert "11.png" not in message
    assert "; and 2 more." in message
    assert "data.skip_bad=true" in message


def test_bad_images_are_left_out_and_counted_on_request(make_table, tmp_path: Path) -> None:
    contents = images(5)
    contents[1], contents[3] = b"", b"GIF89a"
    inventory = take_inventory(make_table(contents), tmp_path / "cache.arrow", skip_bad=True)
    assert [path for path, _ in inventory.bad] == ["01.png", "03.png"]
    assert inventory.table["label"].to_pylist() == [0, 2, 4]
    assert inventory.samples == digests([contents[0], contents[2], contents[4]])


def test_bad_images_are_never_remembered_as_sound(make_table, tmp_path: Path) -> None:
    contents = [*images(2), b"broken"]
    table = make_table(contents)
    for _ in range(2):
        inventory = take_inventory(table, tmp_path / "cache.arrow", skip_bad=True)
        assert len(inventory.bad) == 1
    assert inventory.checked == 1


def test_what_is_wrong_in_a_folder_of_images_is_named(tmp_path: Path, monkeypatch) -> None:
    folder = write_tree(tmp_path / "pets", {"cat": 2, "dog": 2})
    (folder / "cat" / "empty.png").touch()
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "dog" / "half.png").write_bytes(images(1)[0][:200])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    Image.new("1", (200, 200)).save(folder / "dog" / "bomb.png")
    manifest = load("folder", folder)
    table = pa.concat_tables([manifest.split("train"), manifest.split("test")])
    inventory = take_inventory(table, tmp_path / "cache.arrow", skip_bad=True)
    assert len(inventory.samples) == 4
    reasons = dict(inventory.bad)
    assert set(reasons) == {"cat/empty.png", "cat/gone.png", "dog/half.png", "dog/bomb.png"}
    assert "empty" in reasons["cat/empty.png"]
    assert "No such file" in reasons["cat/gone.png"]
    assert "damaged" in reasons["dog/half.png"]
    assert "too many pixels" in reasons["dog/bomb.png"]


def part_table(file: Path, contents: list[bytes]) -> pa.Table:
    file.write_bytes(b"header" + b"".join(contents))
    lengths = [len(content) for content in contents]
    return pa.table(
        {
            "path": [f"{number:02d}.png" for number in range(len(contents))],
            "label": pa.array(range(len(contents)), pa.int32()),
            "file": [str(file)] * len(contents),
            "offset": [6 + sum(lengths[:number]) for number in range(len(contents))],
            "length": lengths,
        }
    )


def test_parts_of_a_file_are_known_by_their_place_until_it_changes(tmp_path: Path) -> None:
    contents = images(5)
    cache = tmp_path / "cache.arrow"
    table = part_table(tmp_path / "all.bin", contents[:4])
    assert take_inventory(table, cache).samples == digests(contents[:4])
    again = take_inventory(table, cache)
    assert (again.checked, again.samples) == (0, digests(contents[:4]))
    longer = part_table(tmp_path / "all.bin", contents)
    assert take_inventory(longer, cache).checked == 5


def test_a_part_beyond_the_end_of_its_file_is_bad(tmp_path: Path) -> None:
    table = part_table(tmp_path / "all.bin", images(3))
    file = tmp_path / "all.bin"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"1 of 3 images .*: 02\.png \(the file ends before byte"):
        take_inventory(table, tmp_path / "cache.arrow")


def test_files_of_a_remote_system_are_remembered_until_they_change(tmp_path: Path) -> None:
    contents = images(3)
    memory = fsspec.filesystem("memory")
    uris = [f"memory://inventory/{number}.png" for number in range(2)]
    memory.pipe(dict(zip(uris, contents, strict=False)))
    table = pa.table({"path": ["0.png", "1.png"], "file": uris})
    cache = tmp_path / "cache.arrow"
    assert take_inventory(table, cache).samples == digests(contents[:2])
    assert take_inventory(table, cache).checked == 0
    memory.pipe(uris[1], contents[2])
    changed = take_inventory(table, cache)
    assert (changed.checked, changed.samples) == (1, digests([contents[0], contents[2]]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    table = file_table(tmp_path, images(3))
    Path(table["file"][2].as_py()).unlink()
    with pytest.raises(InputError, match=re.escape("02.png (No such file or directory)")):
        take_inventory(table, tmp_path / "cache.arrow")


def test_a_table_of_nothing_but_bad_images_is_refused(make_table, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="None of the 2 images can be read"):
        take_inventory(make_table([b"a", b"b"]), tmp_path / "cache.arrow", skip_bad=True)


def test_a_table_without_rows_is_an_inventory_without_rows(make_table, tmp_path: Path) -> None:
    inventory = take_inventory(make_table(images(1)).slice(0, 0), tmp_path / "cache.arrow")
    assert inventory.samples == []
    assert "sample" in inventory.table.column_names


@pytest.mark.parametrize("content", [b"", b"not arrow"])
def test_a_damaged_cache_only_costs_time(tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "cache.arrow"
    cache.write_bytes(content)
    table = image_table(images(2))
    assert take_inventory(table, cache).checked == 2
    assert take_inventory(table, cache).checked == 0


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inventory = take_inventory(image_table(images(2)), tmp_path / "file" / "cache.arrow")
    assert inventory.checked == 2


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float | None]] = []
    take_inventory(
        image_table(images(6)), tmp_path / "cache.arrow", progress=lambda *at: seen.append(at)
    )
    assert seen[-1] == (6, 6, 0.0)


@pytest.mark.parametrize("known", [0, 3, 70, 150])
def test_images_that_others_decode_come_to_the_same_inventory(
    make_table, tmp_path: Path, known: int
) -> None:
    contents = images(150)
    contents[5], contents[80] = b"no image", contents[2]
    table = make_table(contents)
    if "file" in table.column_names:
        Path(table["file"][100].as_py()).unlink()
    caches = [tmp_path / f"cache-{where}.arrow" for where in ("here", "there")]
    if known:
        for cache in caches:
            take_inventory(table.slice(0, known), cache, skip_bad=True)
    handed_out: list[int] = []

    def spread(work, items):
        for item in items:
            handed_out.append(len(item))
            yield work(item)

    here, there = (
        take_inventory(table, cache, skip_bad=True, spread=how)
        for cache, how in zip(caches, (None, spread), strict=True)
    )
    assert there.table.equals(here.table)
    assert there.bad == here.bad
    assert all(0 < count <= 64 for count in handed_out)
    again = take_inventory(table, caches[1], skip_bad=True, spread=spread)
    assert again.table.equals(here.table)
    assert again.checked == len([reason for _, reason in here.bad if "No such file" not in reason])


def test_images_that_are_not_seen_where_they_are_decoded_are_not_bad(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    table = file_table(folder, images(3))

    def spread(work, items):
        for item in items:
            folder.rename(tmp_path / "hidden")
            answer = work(item)
            (tmp_path / "hidden").rename(folder)
            yield answer

    with pytest.raises(InputError) as caught:
        take_inventory(table, tmp_path / "cache.arrow", skip_bad=True, spread=spread)
    assert str(folder / "00.png") in str(caught.value)
    assert "keep images where every node sees them" in str(caught.value)
