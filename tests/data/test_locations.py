"""Files are read the same way wherever they lie."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest

from safe_ray.data import locations
from safe_ray.data.locations import (
    absent,
    exists,
    is_folder,
    is_uri,
    join,
    list_folder,
    locate,
    open_input,
    read_bytes,
    stamp,
    walk,
)
from safe_ray.data.manifest import read_image_bytes
from safe_ray.data.readers.detect import detect_format
from safe_ray.errors import InputError
from tests.data.image_tree import load, paths, write_tree

FILES = {"a/b.bin": b"0123456789", "a/ü %20#?/c.bin": b"c", "d.bin": b"", "a/.hidden": b"x"}
VISIBLE = ["a/b.bin", "a/ü %20#?/c.bin", "d.bin"]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture(params=["path", "file", "http", "memory", "arrow"])
def root(request, tmp_path, memory) -> str:
    """The same files in each kind of place."""
    folder = tmp_path / "my files"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        memory.pipe(f"/bucket/my files/{name}", content)
    if request.param == "http":
        return f"{request.getfixturevalue('web')}/my%20files"
    if request.param == "arrow":
        # A bucket on disk: everything but the connection is what a bucket elsewhere meets.
        bucket = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
        monkeypatch = request.getfixturevalue("monkeypatch")
        monkeypatch.setattr(locations, "_arrow", lambda *of: (bucket, ""))
        return "s3://bucket/my%20files?region=x"
    return {
        "path": str(folder),
        "file": f"file://{tmp_path}/my%20files",
        "memory": "memory://bucket/my files",
    }[request.param]


def test_all_files_are_listed_and_none_that_is_hidden(root):
    assert walk(root) == VISIBLE
    assert walk(join(root, "a")) == ["b.bin", "ü %20#?/c.bin"]
    assert list_folder(root) == (["a"], ["d.bin"])
    assert list_folder(join(root, "a")) == (["ü %20#?"], ["b.bin"])


def test_what_is_listed_can_be_read_whole_and_in_part(root):
    for name in VISIBLE:
        file = join(root, name)
        assert read_bytes(file) == FILES[name]
        with open_input(file) as source:
            assert source.read() == FILES[name]
    digits = join(root, "a/b.bin")
    assert read_bytes(digits, 3, 4) == b"3456"
    assert read_bytes(digits, 0, 2) == b"01"
    assert read_bytes(digits, 3, 0) == b""
    with open_input(digits) as source:
        source.seek(7)
        assert source.read(2) == b"78"


def test_files_folders_and_nothing_are_told_apart(root):
    for name, expected in {
        "a": (True, True),
        "a/b.bin": (True, False),
        "gone": (False, False),
    }.items():
        location = join(root, name)
        assert (exists(location), is_folder(location)) == expected


def test_what_cannot_be_read_is_an_os_error(root):
    for call in (read_bytes, stamp, open_input):
        with pytest.raises(OSError):
            call(join(root, "gone.bin"))
    for offset, length in ((8, 5), (20, 1)):
        with pytest.raises(OSError):
            read_bytes(join(root, "a/b.bin"), offset, length)


def test_a_folder_that_cannot_be_listed_is_named(root):
    for name in ("gone", "a/b.bin"):
        for call in (walk, list_folder):
            if root.startswith(("http", "memory")) and name == "a/b.bin":
                continue
            with pytest.raises(
                InputError, match=rf"{name}(\?.*)? cannot be read \(.*correct the path"
            ):
                call(join(root, name))


def test_a_stamp_tells_when_a_file_was_written_again(tmp_path, web, memory):
    file = tmp_path / "a.bin"
    for location in (str(file), f"{web}/a.bin", "memory://a.bin"):
        stamps = []
        for number, content in enumerate((b"one", b"two")):
            file.write_bytes(content)
            os.utime(file, (number + 1, number + 1))
            time.sleep(0.001)
            memory.pipe("/a.bin", content)
            stamps.append(stamp(location))
            assert stamp(location) == stamps[-1]
        assert stamps[0][0] == stamps[1][0] == 3
        assert stamps[0][1] != stamps[1][1]
        assert all(stamps)


def test_local_paths_start_at_the_root_and_uris_stay(tmp_path):
    assert locate("a/b", tmp_path) == str(tmp_path / "a" / "b")
    assert locate("/a/b", tmp_path) == "/a/b"
    assert locate("s3://bucket/a", tmp_path) == "s3://bucket/a"
    assert locate("file:///a/b%20c", tmp_path) == "/a/b c"
    assert locate("pkg://safe_ray/data", tmp_path).endswith("safe_ray/data")
    assert is_uri("s3://bucket")
    assert not is_uri("pkg://safe_ray/data")
    assert not is_uri("/a:b")


def test_joined_uris_are_encoded_where_their_scheme_does_and_keep_their_query():
    assert join("s3://bucket/a?region=x", "b c/ü.png") == "s3://bucket/a/b%20c/%C3%BC.png?region=x"
    assert join("memory://a/", "b c") == "memory://a/b c"
    assert join("/a", "b c") == "/a/b c"


def test_a_scheme_without_its_package_names_the_command():
    with pytest.raises(InputError, match=r"Reading sftp://host/a needs .*`pip install paramiko`"):
        walk("sftp://host/a")
    with pytest.raises(InputError, match=r"No file system is known for s4://bucket"):
        exists("s4://bucket")
    with pytest.raises(InputError, match=r"github://a cannot be read \(.*missing"):
        is_folder("github://a")


def test_links_are_followed_and_loops_are_left(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "side").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "a")
    (tmp_path / "other" / "y").symlink_to(tmp_path / "a" / "x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert walk(str(tmp_path)) == [
        "a/b/side/y",
        "a/x",
        "nowhere",
        "other/back/x",
        "other/y",
        "self",
    ]
    for name in ("nowhere", "self"):
        with pytest.raises(OSError):
            read_bytes(str(tmp_path / name))


def test_a_pipe_which_would_never_end_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    assert walk(str(tmp_path)) == []


def test_a_folder_of_class_folders_may_lie_on_a_web_server(tmp_path, web):
    write_tree(tmp_path / "my pets", {"cat": 4, "dög": 4})
    manifest = load("folder", f"{web}/my%20pets")
    assert detect_format(f"{web}/my%20pets") == "folder"
    assert manifest.classes == ("cat", "dög")
    assert paths(manifest, "test") == paths(load("folder", tmp_path / "my pets"), "test")
    table = manifest.split("train")
    expected = [(tmp_path / "my pets" / path).read_bytes() for path in paths(manifest, "train")]
    assert read_image_bytes(table, range(table.num_rows)) == expected


@pytest.mark.parametrize("name", ["pets.csv", "pets.parquet", "pets.tar"])
def test_tables_and_tars_may_lie_on_any_file_system(tmp_path, memory, web, name):
    import io
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    images = {f"{number}.png": b"image %d" % number for number in range(4)}
    if name == "pets.csv":
        rows = "".join(f"{path},{'ab'[row % 2]}\n" for row, path in enumerate(images))
        (tmp_path / name).write_text("path,label\n" + rows)
    elif name == "pets.parquet":
        columns = {"image": list(images.values()), "label": ["a", "b", "a", "b"]}
        pq.write_table(pa.table(columns), tmp_path / name)
    else:
        with tarfile.open(tmp_path / name, "w") as tar:
            for row, (path, content) in enumerate(images.items()):
                for member, data in ((path, content), (f"{row}.cls", b"ab"[row % 2 :][:1])):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    for path, content in images.items():
        (tmp_path / path).write_bytes(content)
        memory.pipe(f"/bucket/{path}", content)
    memory.pipe(f"/bucket/{name}", (tmp_path / name).read_bytes())
    for folder in (str(tmp_path), "memory://bucket", web):
        format = detect_format(f"{folder}/{name}")
        manifest = load(format, f"{folder}/{name}")
        tables = [manifest.split(split) for split in ("train", "test")]
        read = [image for table in tables for image in read_image_bytes(table, [0, 1])]
        assert sorted(read) == sorted(images.values())


def test_absent_files_are_found_by_listing_each_folder_once(tmp_path, monkeypatch):
    write_tree(tmp_path, {"a": 50, "b": 50})
    here = [f"{tmp_path}/{folder}/{n:03d}.png" for folder in "ab" for n in range(50)]
    gone = [f"{tmp_path}/a/050.png", f"{tmp_path}/c/000.png"]
    listed: list[str] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or listdir(folder))
    files = [*here, *gone, "s3://nowhere/at/all.png", f"file://{gone[0]}"]
    assert absent(files) == [*gone, f"file://{gone[0]}"]
    assert sorted(listed) == [f"{tmp_path}/{folder}" for folder in "abc"]
