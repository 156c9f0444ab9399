"""Attacks that somebody thinks of, and chance does not: bombs, ways out, code in data."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import tarfile
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from safe_ray.cli import main
from safe_ray.data.images import BadImageError, decode_image
from safe_ray.data.locations import read_bytes
from safe_ray.data.manifest import load_manifest
from safe_ray.data.readers.matlab import read_variables
from safe_ray.data.readers.webdataset import expand_braces
from safe_ray.errors import DamagedFileError, InputError
from safe_ray.features.inventory import take_inventory
from safe_ray.features.store import FeatureStore, MissingFeatures, StoreKey
from safe_ray.prediction.images import find_pictures
from safe_ray.prediction.predictor import Predictor
from safe_ray.report.summary import read_summary, write_summary
from safe_ray.specs import BackboneSpec, DatasetSpec
from safe_ray.tracking.heads import store_head
from safe_ray.tracking.runs import Known, find_runs
from safe_ray.training.outcome import BankOutcome
from safe_ray.tune import COMMAND
from tests.data.coop_tree import OPTIONS, png, write_coop, write_images
from tests.fuzz.predicting import _make_sweep
from tests.report.results import result
from tests.search.outcomes import outcome_of

pytestmark = pytest.mark.timeout(60)


# Bombs: images


def test_a_picture_of_too_many_pixels_is_not_decoded() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(2501 * 20_000), 9)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    assert len(bomb) < 100_000
    with pytest.raises(BadImageError, match="too many pixels"):
        decode_image(bomb)


def test_a_jpeg_of_endless_scans_is_not_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4000, 4000)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rfind(b"\xff\xda")
    bomb = content[:last] + content[last:-2] * 2000 + content[-2:]
    began = time.process_time()
    with pytest.raises(BadImageError, match=r"too many scans: \d+ over 16000000 pixels"):
        decode_image(bomb)
    assert time.process_time() - began < 2


# Bombs: archives, tables, lists


def _tar(folder: Path, header: bytes) -> DatasetSpec:
    with tarfile.open(folder / "pets.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (("0.png", png()), ("0.txt", b"cat"), ("1.png", png("blue"))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = (folder / "pets.tar").read_bytes()
    end = len(content.rstrip(b"\0")) + 511 & ~511
    (folder / "pets.tar").write_bytes(content[:end] + header + bytes(1024))
    return DatasetSpec("pets", "webdataset", str(folder / "pets.tar"))


def _header(name: str, kind: bytes, size: bytes) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108] = b"0000644\0"
    block[124:136] = size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar  \0"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        # In base 256 a size may be below nothing, and leads back to the headers before.
        (b"0", b"\xff" * 10 + b"\xfe\x00"),
        (b"L", b"\xff" * 10 + b"\xfe\x00"),
        (b"L", b"77777777777\0"),
        (b"x", b"77777777777\0"),
        (b"0", b"77777777777\0"),
        (b"S", b"77777777777\0"),
    ],
)
def test_a_tar_whose_headers_lie_ends(tmp_path: Path, kind: bytes, size: bytes) -> None:
    spec = _tar(tmp_path, _header("2.txt", kind, size))
    began = time.process_time()
    with pytest.raises(InputError, match=r"pets\.tar (cannot be read as a tar file|has no label)"):
        load_manifest(spec, tmp_path)
    assert time.process_time() - began < 2


def test_a_label_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    spec = _tar(tmp_path, _header("1.txt", b"0", b"10000000000\0"))
    with (tmp_path / "pets.tar").open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(InputError, match=r"has a label '1\.txt' of 1073741824 bytes"):
        load_manifest(spec, tmp_path)


@pytest.mark.parametrize("pattern", ["{0..99999999999}.tar", "{a,b}" * 40, "{0..9}" * 9])
def test_braces_that_stand_for_billions_of_files_are_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="stands for more than 100000 files"):
        expand_braces(pattern)


def test_a_matlab_file_that_inflates_or_claims_to_be_huge_is_refused() -> None:
    from scipy.io import savemat

    deflated = zlib.compressobj()
    zeros = b"".join(deflated.compress(bytes(2**20)) for _ in range(300)) + deflated.flush()
    header = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
    bomb = header + struct.pack("<II", 15, len(zeros)) + zeros
    assert len(bomb) < 1_000_000
    with pytest.raises(ValueError, match="comes to more than"):
        read_variables(bomb)
    buffer = io.BytesIO()
    savemat(buffer, {"cells": np.array(["a", "b"], dtype=object)})
    claims = buffer.getvalue().replace(struct.pack("<ii", 1, 2), struct.pack("<ii", 2**15, 2**15))
    with pytest.raises(ValueError, match="larger than its bytes"):
        read_variables(claims)


def test_a_yaml_bomb_is_a_sentence_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.test_outside import BOMB

    for place in ("dataset/pets.yaml", "search/default.yaml"):
        file = tmp_path / place
        file.parent.mkdir()
        file.write_text(BOMB)
        asked = ["tasks.datasets=[pets]", "--config-dir", str(tmp_path), "--show-config"]
        assert main(COMMAND, asked) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"safe_ray: {file} cannot be read: it has more than 200000 values")
        assert said.count("\n") == 1
        file.unlink()


# Ways out


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_a_split_file_leads_to_no_image_elsewhere(tmp_path: Path, path: str) -> None:
    split = {"train": [[path, 0, "cat"], ["b.png", 1, "dog"]], "val": [], "test": []}
    spec = write_coop(tmp_path, split, OPTIONS)
    with pytest.raises(InputError, match="paths are relative to the image folder and stay inside"):
        load_manifest(spec, tmp_path)


def test_a_name_in_a_tar_leads_to_no_file_elsewhere(tmp_path: Path) -> None:
    spec = _tar(tmp_path, _header("../../1.txt", b"0", b"00000000000\0"))
    with pytest.raises(InputError, match="no label for the image"):
        load_manifest(spec, tmp_path)
    with tarfile.open(tmp_path / "pets.tar", "w") as tar:
        for name, content in (
            ("../../x.png", b"..."),
            ("../../x.txt", b"cat"),
            ("y.png", b"..."),
            ("y.txt", b"dog"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match="stay inside"):
        load_manifest(spec, tmp_path)


def test_a_pipe_or_a_device_in_place_of_an_image_blocks_nobody(tmp_path: Path) -> None:
    split = {"train": [["a.png", 0, "cat"], ["b.png", 1, "dog"], ["c.png", 1, "dog"]]}
    spec = write_coop(tmp_path, split)
    write_images(tmp_path, split)
    images = tmp_path / "tiny" / "images"
    (images / "a.png").unlink()
    os.mkfifo(images / "a.png")
    (images / "b.png").unlink()
    (images / "b.png").symlink_to("/dev/zero")
    table = load_manifest(spec, tmp_path).split("train")
    inventory = take_inventory(table, tmp_path / "cache.arrow", skip_bad=True)
    assert dict(inventory.bad) == dict.fromkeys(("a.png", "b.png"), "it is no regular file")


def test_an_outcome_and_a_summary_name_no_head_elsewhere(tmp_path: Path) -> None:
    outcome = outcome_of([{"lr": 1e-3, "weight_decay": 0.0, "epochs": 4}])
    (candidate,) = outcome.candidates
    for head in ("../../../secret", "/etc", "..", "a/b"):
        fit = replace(candidate.fits["safe"], head=head)
        replace(outcome, candidates=(replace(candidate, fits={"safe": fit}),)).save(tmp_path)
        with pytest.raises(DamagedFileError):
            BankOutcome.load(tmp_path)
    for head in ("../../../secret", "../a/../../b", "/etc", "..", "../..", "a/../b"):
        write_summary([replace(result(), head=head)], tmp_path)
        with pytest.raises(InputError, match="out of its folder"):
            read_summary(tmp_path)
    for changes in ({"task_id": "../.."}, {"group": "/etc"}):
        replace(outcome, **changes).save(tmp_path)
        with pytest.raises(DamagedFileError):
            BankOutcome.load(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/hosts", "a/../../secret"])
def test_a_list_of_data_sets_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    from safe_ray.compose import load_config

    (tmp_path / "secret.yaml").write_text("format: [a, secret]\n")
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    with pytest.raises(InputError, match="there is no file dataset/") as caught:
        load_config([f"tasks.datasets=['{name}']"], tmp_path / "conf")
    assert "a, secret" not in str(caught.value)


def test_a_tracking_server_cannot_name_where_files_are_written(tmp_path: Path) -> None:
    head, elsewhere = tmp_path / "head", tmp_path / "elsewhere"
    head.mkdir()
    (head / "head.json").write_text("{}")
    run = "0123456789abcdef"
    for uri in (
        f"file://{elsewhere}",
        str(elsewhere),
        f"file://{tmp_path}/{run}/../elsewhere",
        f"file://somewhere{elsewhere}",
        "../elsewhere",
    ):
        with pytest.raises(InputError, match="no folder of its own"):
            store_head(None, Known(run, 0, uri, False, frozenset()), head)  # type: ignore[arg-type]
    assert not elsewhere.exists()
    own = tmp_path / "mlruns" / run / "artifacts"
    store_head(None, Known(run, 0, own.as_uri(), False, frozenset()), head)  # type: ignore[arg-type]
    assert (own / "head" / "head.json").read_text() == "{}"


def test_a_tracking_server_that_always_has_another_page_is_left() -> None:
    class Page(list[object]):
        token = "more"

    class Client:
        def search_runs(self, *arguments: object, **options: object) -> Page:
            return Page()

    with pytest.raises(InputError, match="more than 1000 pages"):
        find_runs(Client(), "1", {"a": "b"})  # type: ignore[arg-type]


def test_an_index_that_lies_about_a_part_gives_no_wrong_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safe_ray.features import store as module
    from safe_ray.features.index import PartKeys, write_index

    key = StoreKey("trunk", {}, "fp32", "1")
    maps = np.arange(2 * 3 * 4, dtype=np.float16).reshape(2, 3, 4)
    part = FeatureStore(tmp_path, key, 3, 4).write_part(["a", "b"], [0, 0], maps)
    lie = PartKeys(part.stat().st_size, pa.array(["b", "a", "c"]), np.zeros(3, np.int64))
    write_index(part.parent, {part.name: lie})
    monkeypatch.setattr(module, "_INDEX_AFTER_PARTS", 1)
    store = FeatureStore(tmp_path, key, 3, 4)
    with pytest.raises(MissingFeatures, match="does not say what is in"):
        store.read(["c"], [0])
    assert np.array_equal(store.read(["a", "b"], [0])[:, 0], maps)


@pytest.mark.parametrize(
    ("row", "reason"),
    [("simplecache::http://127.0.0.1:9/a.png", "scheme"), ("ssh://host/a.png", "scheme 'ssh'")],
)
def test_a_table_chooses_no_file_system_of_its_own(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "pets.csv").write_text(f"path,label\n{row},cat\nb.png,dog\n")
    with pytest.raises(InputError, match=reason):
        load_manifest(DatasetSpec("pets", "table", str(tmp_path / "pets.csv")), tmp_path)
    with pytest.raises(InputError, match=reason):
        list(find_pictures([str(tmp_path / "pets.csv")], ("cat", "dog")))
    with pytest.raises(InputError, match="chains file systems"):
        read_bytes("simplecache::http://127.0.0.1:9/a.png")


def test_folders_that_hold_each_other_are_walked_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(png())
    for name in ("a", "b", "c"):
        for other in ("a", "b", "c"):
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    found = [picture.path for picture in find_pictures([str(tmp_path)], ("x", "y"))]
    assert len(found) == len(set(found)) < 50


# Code in data


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)

    def __init__(self, place: Path) -> None:
        self.place = place


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_weights_that_are_a_program_are_not_run(tmp_path: Path, suffix: str) -> None:
    from safe_ray.backbones.openclip import load_backbone
    from tests.fuzz.predicting import _model

    proof = tmp_path / "it ran"
    file = tmp_path / f"weights{suffix}"
    for write in (
        lambda: torch.save({"visual.conv1.weight": _Evil(proof)}, file),
        lambda: file.write_bytes(pickle.dumps(_Evil(proof))),
    ):
        write()
        with pytest.raises(InputError, match="give safetensors, or a PyTorch state dict"):
            load_backbone(BackboneSpec("tiny", _model().stem, str(file), str(_model())))
        assert not proof.exists()


@pytest.mark.parametrize("field", ["method", "pooling"])
def test_a_head_that_names_a_module_does_not_have_it_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    evil = f"evil_{field}"
    (tmp_path / f"{evil}.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    _make_sweep(tmp_path)
    file = tmp_path / "results" / "head" / "head.json"
    card = json.loads(file.read_bytes())
    if field == "method":
        card["method"]["module"] = evil
    else:
        card["backbone"]["pooling"] = evil
    file.write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"which is not of this package.*--import"):
        Predictor.load(file.parent)
    assert not (tmp_path / "it ran").exists()
    assert evil not in sys.modules
    with pytest.raises(InputError):
        Predictor.load(file.parent, trusted=(evil,))
    assert (tmp_path / "it ran").exists()


def test_a_folder_of_save_to_disk_names_no_file_elsewhere(tmp_path: Path) -> None:
    from tests.fuzz.data import _make_saved

    _make_saved(tmp_path)
    spec = DatasetSpec("pets", "huggingface", str(tmp_path / "pets"))
    load_manifest(spec, tmp_path)
    state = tmp_path / "pets" / "train" / "state.json"
    value = json.loads(state.read_bytes())
    value["_data_files"] = [{"filename": "../../secret.arrow"}]
    state.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"names '\.\./\.\./secret\.arrow', which is none of its"):
        load_manifest(spec, tmp_path)
