"""The files of an exported bundle: `bundle.json`, which names all others with their digests."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from safe_ray.data.locations import first_line
from safe_ray.errors import InputError
from safe_ray.files import digest_json, sha256_hex
from safe_ray.outside import GIB, MIB, is_module_name, is_plain_name, read_file, read_json

FORMAT_VERSION = 1
FORMATS = ("open_clip", "onnx", "torch")
RECORD = "bundle.json"
CONFIG, MODEL = "open_clip_config.json", "open_clip_model.safetensors"
"""The names that open_clip looks for in a folder."""
ORIGINAL, CLASSIFIER = "original_pooling.safetensors", "classifier.safetensors"
GRAPH, PROGRAM = "model.onnx", "model.pt2"
FILES: Mapping[str, tuple[str, ...]] = {
    "open_clip": (CONFIG, MODEL, ORIGINAL, CLASSIFIER),
    "onnx": (GRAPH,),
    "torch": (PROGRAM,),
}
EXTRA = "pip install 'safe-ray[onnx]'"
LARGEST_RECORD = 16 * MIB
LARGEST_FILE = 4 * GIB
LARGEST_IMAGE_SIDE = 4096


def _module(name: str) -> str:
    if not is_module_name(name):
        raise ValueError("no dotted name of a module")
    return name


def _plain(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError("no name of a file in the folder")
    return name


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Module = Annotated[str, AfterValidator(_module)]
_Name = Annotated[str, AfterValidator(_plain)]


@dataclass(frozen=True)
class FileRecord:
    """A file of a bundle.

    Attributes:
        sha256: of its content.
        bytes: its length.
    """

    sha256: str
    bytes: Annotated[int, Field(ge=0, le=LARGEST_FILE)]


@dataclass(frozen=True)
class Pixels:
    """How an image is made into pixels; see `safe_ray.data.views.Preprocessing`."""

    size: Annotated[int, Field(ge=1, le=LARGEST_IMAGE_SIDE)]
    mean: tuple[_Finite, _Finite, _Finite]
    std: tuple[_Positive, _Positive, _Positive]
    interpolation: str
    resize_mode: Literal["shortest", "longest", "squash"]
    fill: Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True)
class Record:
    """What `bundle.json` holds.

    Attributes:
        format_version: of this record.
        format: one of `FORMATS`.
        class_names: in the order of the logits.
        preprocessing: of images.
        logit_scale: what cosines are multiplied with.
        temperature: what logits are divided by before they become probabilities.
        knobs: the fitted method's, at which it was exported.
        alpha: of the blend; None where the graph has it in itself.
        blended: see `safe_ray.methods.linear`.
        alpha_is_open: whether the bundle holds the method at any other alpha, too.
        pooling: a module of somebody's own that knows the image tower.
        method: what it is called.
        backbone: name and digest of the model that was tuned.
        files: by name.
        how_to_load: lines of Python.
    """

    format_version: int
    format: Literal["open_clip", "onnx", "torch"]
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    preprocessing: Pixels
    logit_scale: _Positive
    temperature: _Positive
    knobs: Mapping[str, _Finite]
    alpha: _Share | None
    blended: Literal["features", "logits"] | None
    alpha_is_open: bool
    pooling: _Module | None
    method: str
    backbone: Mapping[str, str | None]
    files: Mapping[_Name, FileRecord]
    how_to_load: tuple[str, ...]


def is_bundle(folder: Path) -> bool:
    """Return whether a folder holds an exported bundle."""
    return (folder / RECORD).is_file()


def read_bundle(folder: Path) -> Record:
    """Read and check `bundle.json` alone.

    Raises:
        InputError: there is none, it is damaged, a newer version wrote it, or it does not name the
            files of its format.
    """
    file = folder / RECORD
    try:
        value = read_json(file, LARGEST_RECORD, follow=False)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): check the path.") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): {_AGAIN}.") from error
    version = value.get("format_version") if isinstance(value, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError(f"{file} has no format_version: it is no exported bundle's.")
    if not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            f"{file} has format_version {version}, and this version of safe_ray reads "
            f"{FORMAT_VERSION} at most: upgrade safe_ray."
        )
    if value.pop("digest", None) != digest_json(value):
        raise InputError(f"{file} is damaged, or was edited (its digest differs): {_AGAIN}.")
    try:
        record = _adapter().validate_python(value)
    except ValidationError as error:
        wrong = dict.fromkeys(".".join(map(str, one["loc"])) for one in error.errors())
        raise InputError(
            f"{file} has something else than belongs there in {', '.join(wrong)}: {_AGAIN}."
        ) from error
    missing = [name for name in FILES[record.format] if name not in record.files]
    if missing:
        raise InputError(f"{file} does not name the file {missing[0]}: {_AGAIN}.")
    return record


def read_content(folder: Path, record: Record, name: str) -> bytes:
    """Return the content of one of a bundle's files.

    Raises:
        InputError: it is missing, or not the one that the record names.
    """
    file = folder / name
    try:
        content = read_file(file, record.files[name].bytes, follow=False)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}): {_AGAIN}.") from error
    if len(content) < record.files[name].bytes:
        raise InputError(
            f"{file} has {len(content)} bytes instead of {record.files[name].bytes}: {_AGAIN}."
        )
    if sha256_hex(content) != record.files[name].sha256:
        raise InputError(
            f"{file} is not the file that {folder / RECORD} was written for (its SHA-256 differs): "
            f"{_AGAIN}."
        )
    return content


_AGAIN = "copy the bundle again, or export it again"


@functools.cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def plain(value: Any) -> Any:
    """Return mappings and sequences as JSON has them."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
