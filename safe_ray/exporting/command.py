"""`python -m safe_ray.export`: write a head as a self-contained model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_ray.arguments import (
    HELP,
    VERSION,
    Arguments,
    Option,
    answer,
    parse,
    spelled,
    told_of_itself,
    usage,
)
from safe_ray.errors import InputError, nearest

OUT = Option("--out", "the folder of the bundle, new or empty", "DIR")
FORMAT = Option("--format", "open_clip (default), onnx or torch", "FORMAT")
ALPHA = Option("--alpha", "0 is zero-shot, 1 is tuned; by default what validation chose", "A")
IMPORT = Option("--import", "a module of your own that the head's method is in", "MODULE")
OPTIONS = (OUT, FORMAT, ALPHA, IMPORT, HELP, VERSION)
USAGE = """usage: python -m safe_ray.export HEAD --out DIR [options]

Write a head with all that it needs as one folder: trunk, original and tuned pooling, blend,
classifier, preprocessing, class names and temperature. HEAD is what python -m safe_ray.predict
takes: a head's folder, a sweep's folder with a task in it (outputs/demo/icon_kinds-2shot-seed1), or
models:/<name>@best in the MLflow that MLFLOW_TRACKING_URI names.

formats:
  open_clip  open_clip's own two files, original pooling and classifier: for methods that are a
             linear classifier on blended features
  onnx       one graph from uint8 pixels to probabilities and logits
  torch      the same as a program of torch.export

bundle.json beside them says what is in them, and which lines of Python use them.

examples:
  python -m safe_ray.export outputs/demo/icon_kinds-2shot-seed1 --out icons
  python -m safe_ray.export models:/mine@best --out mine --format onnx

options:"""


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    head: str
    out: Path
    format: str
    alpha: float | None
    imported: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: _run(parse(arguments, OPTIONS)))


def _run(given: Arguments) -> int:
    if told_of_itself(given, lambda: usage(USAGE, OPTIONS)):
        return 0
    return export(_request(given))


def _request(given: Arguments) -> Request:
    from safe_ray.files import resolve_path
    from safe_ray.prediction.bundle_files import FORMATS

    if len(given.rest) != 1:
        count = "Which head?" if not given.rest else "One head at a time."
        raise InputError(f"{count} Write python -m safe_ray.export <head> --out <folder>.")
    out = given.value(OUT.name)
    if out is None:
        raise InputError("Where to? Name a new folder with --out <dir>.")
    kind = given.value(FORMAT.name) or FORMATS[0]
    if kind not in FORMATS:
        raise InputError(
            f"--format is {kind!r}, and must be one of {', '.join(FORMATS)}."
            f"{nearest(kind, FORMATS)}"
        )
    text = given.value(ALPHA.name)
    try:
        alpha = None if text is None else float(text)
    except ValueError:
        raise InputError(f"{ALPHA.name} is {text!r}, and must be a number.") from None
    return Request(given.rest[0], resolve_path(out), kind, alpha, given.value(IMPORT.name))


def export(request: Request) -> int:
    """Write the bundle, and say what is in it and how it is used.

    Raises:
        InputError: no head, a folder that is not empty, or see `write_bundle`.
    """
    from safe_ray.exporting.checks import check_folder, check_packages
    from safe_ray.prediction.bundle_files import is_bundle
    from safe_ray.prediction.heads import find_head

    check_folder(request.out)
    head = find_head(request.head)
    if is_bundle(head):
        raise InputError(f"{head} is a bundle already: name the head that it was made of.")
    check_packages(request.format)
    from safe_ray.exporting.bundle import write_bundle
    from safe_ray.prediction.predictor import Predictor

    trusted = () if request.imported is None else (request.imported,)
    predictor = Predictor.load(head, alpha=request.alpha, trusted=trusted)
    written = write_bundle(request.out, predictor, request.format)
    here, cwd = written.folder, Path.cwd()
    shown = here.relative_to(cwd) if here.is_relative_to(cwd) else here
    width = max(map(len, written.sizes))
    print(shown)
    for name, size in written.sizes.items():
        print(f"  {name:<{width}}  {_size(size):>9}")
    same = written.difference == 0.0
    far = "are the head's" if same else f"differ from the head's by {written.difference:.1g}"
    print(f"On {written.images} images of noise, its logits {far}.")
    if request.format == "torch":
        print(f"  to use it  the lines `how_to_load` in {shown / 'bundle.json'}")
    else:
        print(spelled(f"  to use it  python -m safe_ray.predict {shown} <images>"))
    return 0


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
