"""Readers of data sets and images: what a person was given, or fetched from somewhere."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from safe_ray.data.images import BadImageError, decode_image, decoder_warning
from safe_ray.data.manifest import Manifest, load_manifest, read_image_bytes
from safe_ray.data.prompts import read_descriptions
from safe_ray.data.readers.detect import detect_format
from safe_ray.features.inventory import take_inventory
from safe_ray.specs import DatasetSpec
from tests.data.coop_tree import png, write_coop, write_images
from tests.data.official_tree import OFFICIAL, imagenet, write_classnames, write_setid
from tests.fuzz.reader import Fold, Reader

CLASSES = ("cat", "dog")


def _spec(format: str, path: str, **options: object) -> DatasetSpec:
    return DatasetSpec("pets", format, path, options=options)


def _take(manifest: Manifest, folder: Path) -> object:
    """Read all images of a data set as a sweep does, leaving the bad ones out."""
    for split in ("train", "val", "test"):
        table = manifest.split(split)
        if table.num_rows:
            inventory = take_inventory(table, folder / "inventory.arrow", skip_bad=True)
            read_image_bytes(inventory.table, range(min(3, inventory.table.num_rows)))
    return manifest.prompts


def _reading(format: str, path: str, **options: object) -> Fold:
    def read(folder: Path) -> object:
        return _take(load_manifest(_spec(format, str(folder / path), **options), folder), folder)

    return read


def _rows() -> list[dict[str, object]]:
    return [
        {
            "image": png(f"#{number}0{number}0ff"),
            "class_name": CLASSES[number % 2],
            "split": ("train", "train", "val", "test")[number // 2],
            "path": f"{CLASSES[number % 2]}/{number}.png",
        }
        for number in range(8)
    ]


def _make_parquet(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(_rows()), folder / "pets.parquet")


def _make_hub_parquet(folder: Path) -> None:
    """Parquet as Hugging Face writes it: structs of bytes, coded labels, names in the metadata."""
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    for split in ("train", "test"):
        rows = [
            {"image": {"bytes": row["image"], "path": None}, "label": number % 2}
            for number, row in enumerate(_rows())
        ]
        table = pa.Table.from_pylist(rows).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def _write_pictures(folder: Path) -> None:
    for row in _rows():
        file = folder / str(row["path"])
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(row["image"]))  # type: ignore[arg-type]


def _make_csv(folder: Path) -> None:
    _write_pictures(folder)
    lines = [f"{row['path']},{row['class_name']},{row['split']}" for row in _rows()]
    (folder / "pets.csv").write_text("path,label,split\n" + "\n".join(lines) + "\n")


def _make_table(folder: Path) -> None:
    _write_pictures(folder)
    rows = [{key: row[key] for key in ("path", "class_name", "split")} for row in _rows()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "pets.parquet")


def _make_coop(folder: Path) -> None:
    split = {
        name: [[f"{at}/{name}{n}.png", at, CLASSES[at]] for at in (0, 1) for n in (0, 1)]
        for name in ("train", "val", "test")
    }
    write_coop(folder, split)
    write_images(folder, split)


def _make_tar(folder: Path) -> None:
    with tarfile.open(folder / "pets.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, row in enumerate(_rows()):
            long = "long/" * 40 if number == 3 else ""
            parts = {
                "png": row["image"],
                "cls": str(number % 2).encode(),
                "json": json.dumps({"class": row["class_name"], "text": "ü" * 30}).encode(),
            }
            for suffix, content in parts.items():
                assert isinstance(content, bytes)
                info = tarfile.TarInfo(f"{long}{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "classnames.txt").write_text("\n".join(CLASSES))


def _make_gnu_tar(folder: Path) -> None:
    with tarfile.open(folder / "pets.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number, row in enumerate(_rows()[:4]):
            label = CLASSES[number % 2].encode()
            for suffix, content in (("png", row["image"]), ("txt", label)):
                assert isinstance(content, bytes)
                info = tarfile.TarInfo(f"{'deep/' * 30}{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _make_saved(folder: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()
    features = Features(
        {"image": ImageFeature(), "label": ClassLabel(names=list(CLASSES)), "note": Value("string")}
    )
    rows = {
        "image": [{"bytes": row["image"], "path": None} for row in _rows()],
        "label": [number % 2 for number in range(8)],
        "note": ["x"] * 8,
    }
    part = Dataset.from_dict(rows, features=features)
    DatasetDict({"train": part, "test": part}).save_to_disk(str(folder / "pets"))


def _official(name: str, location: str, split: str | None = None) -> tuple[Fold, Fold]:
    def make(folder: Path) -> None:
        OFFICIAL[name](folder)
        if name == "oxford_flowers":
            write_setid(folder, [1, 2, 11, 12], [3, 13], [4, 14])

    def read(folder: Path) -> object:
        images = {"oxford_flowers": "jpg", "fgvc_aircraft": "images", "sun397": "SUN397"}
        options = {"official": name, "images": images.get(name, ".")}
        return load_manifest(_spec("coop", str(folder / location), **options), folder)

    return make, read


def _make_imagenet(folder: Path) -> None:
    imagenet(folder)
    write_classnames(folder / "imagenet")


def _make_descriptions(folder: Path) -> None:
    (folder / "cupl.json").write_text(
        json.dumps({"cat": ["a cat.", "a small cat."], "dog": ["a dog."]})
    )


def _image(kind: str, mode: str = "RGB", **options: object) -> Fold:
    def make(folder: Path) -> None:
        pixels = np.arange(24 * 20 * 4, dtype=np.uint8).reshape(20, 24, 4)
        image = Image.fromarray(pixels, "RGBA")
        image.convert(mode).save(folder / f"picture.{kind.lower()}", kind, **options)

    return make


def _read_image(folder: Path) -> object:
    for file in folder.iterdir():
        content = file.read_bytes() if file.is_file() and file.stat().st_size < 2**28 else b""
        image = decode_image(content)
        decoder_warning(content)
        decode_image(content, side=8)
        assert image.mode == "RGB"
    return None


def _pictures() -> tuple[Reader, ...]:
    kinds: dict[str, Fold] = {
        "png": _image("PNG", "RGBA"),
        "palette png": _image("PNG", "P"),
        "16-bit png": _image("PNG", "I;16"),
        "jpeg": _image("JPEG", exif=_exif()),
        "progressive jpeg": _image("JPEG", "CMYK", progressive=True),
        "gif": _image("GIF", "P"),
        "bmp": _image("BMP"),
        "ppm": _image("PPM"),
        "tiff": _image("TIFF", compression="tiff_lzw"),
        "webp": _image("WEBP", "RGBA"),
        "ico": _image("ICO", "RGBA", sizes=[(16, 16)]),
        "jpeg2000": _image("JPEG2000"),
        "avif": _image("AVIF"),
    }
    kinds = {name: make for name, make in kinds.items() if _can_make(make)}
    return tuple(
        Reader(name, make, _read_image, allowed=(BadImageError,), own=False, share=2)
        for name, make in kinds.items()
    )


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    return exif.tobytes()


def _can_make(make: Callable[[Path], object]) -> bool:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        try:
            make(Path(folder))
        # This build of Pillow came without the format.
        except (OSError, KeyError):
            return False
    return True


def _detect(folder: Path) -> object:
    return detect_format(str(folder / "pets.parquet"))


_flowers = _official("oxford_flowers", "oxford_flowers")
_cars = _official("stanford_cars", "stanford_cars")
_aircraft = _official("fgvc_aircraft", "fgvc_aircraft")
_pets = _official("oxford_pets", "oxford_pets")
_sun = _official("sun397", "sun397")
_ucf = _official("ucf101", "ucf101")
_LISTS = ("**/*.mat", "**/*.json", "**/*.txt")

READERS = (
    Reader("parquet", _make_parquet, _reading("parquet", "pets.parquet"), own=False, share=8),
    Reader("hub parquet", _make_hub_parquet, _reading("parquet", "."), own=False, share=4),
    Reader("detect", _make_parquet, _detect, own=False, share=2),
    Reader(
        "csv",
        _make_csv,
        _reading("table", "pets.csv"),
        ("pets.csv",),
        own=False,
        confined=False,
    ),
    Reader(
        "table",
        _make_table,
        _reading("table", "pets.parquet"),
        ("*.parquet",),
        own=False,
        confined=False,
    ),
    Reader(
        "coop",
        _make_coop,
        _reading("coop", "tiny", images="images", split="split_zhou_Tiny.json"),
        ("tiny/*.json",),
        own=False,
        share=6,
    ),
    Reader("webdataset", _make_tar, _reading("webdataset", "pets.tar"), own=False, share=8),
    Reader("gnu tar", _make_gnu_tar, _reading("webdataset", "pets.tar"), own=False, share=4),
    Reader("hugging face", _make_saved, _reading("huggingface", "pets"), own=False, share=2),
    Reader("flowers", *_flowers, _LISTS, own=False, share=4),
    Reader("cars", *_cars, _LISTS, own=False, share=4),
    Reader("aircraft", *_aircraft, _LISTS, own=False, share=1),
    Reader("pets", *_pets, _LISTS, own=False, share=1),
    Reader("sun397", *_sun, _LISTS, own=False, share=1),
    Reader("ucf101", *_ucf, _LISTS, own=False, share=1),
    Reader(
        "imagenet", _make_imagenet, _reading("imagenet", "imagenet"), _LISTS, own=False, share=1
    ),
    Reader(
        "descriptions",
        _make_descriptions,
        lambda folder: read_descriptions(folder / "cupl.json", CLASSES),
        own=False,
        share=3,
    ),
    *_pictures(),
)
