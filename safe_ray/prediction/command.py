"""`python -m safe_ray.predict`: classify images with a head."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safe_ray.arguments import (
    HELP,
    VERSION,
    Arguments,
    Option,
    answer,
    parse,
    told_of_itself,
    usage,
)
from safe_ray.errors import InputError
from safe_ray.progress import duration

if TYPE_CHECKING:
    from safe_ray.prediction.classifying import Classified
    from safe_ray.prediction.images import Picture
    from safe_ray.prediction.judging import Judgement
    from safe_ray.prediction.rows import Writer

TOP = Option("--top", "how many classes each image gets, the most probable first (1)", "N")
OUT = Option("--out", "a file that ends in .csv, .parquet or .jsonl; else CSV is printed", "FILE")
BATCH = Option("--batch", "how many images are classified together (64)", "N")
ALPHA = Option("--alpha", "0 is zero-shot, 1 is tuned; by default what validation chose", "A")
RAY = Option("--ray", "use the cluster of RAY_ADDRESS, or a Ray of this machine's own")
IMPORT = Option("--import", "a module of your own that the head's method is in", "MODULE")
OPTIONS = (TOP, OUT, BATCH, ALPHA, RAY, IMPORT, HELP, VERSION)
USAGE = """usage: python -m safe_ray.predict HEAD IMAGES... [options]

Classify images with a head that a sweep has trained. HEAD is the head's folder, a sweep's folder
with a task in it (outputs/demo/icon_kinds-2shot-seed1), models:/<name>@best in the MLflow that
MLFLOW_TRACKING_URI names, or a bundle that safe_ray.export wrote. IMAGES are files, folders,
patterns, tables with a column `path`, URIs, or - for paths on standard input. An image that cannot
be read is a row with its error.

Where folders are called as the classes, or a table has a column `class`, a report follows.

examples:
  python -m safe_ray.predict outputs/demo/icon_kinds-2shot-seed1 photos/ --out photos.csv
      the class of each image in a folder
  python -m safe_ray.predict outputs/mine test.csv --top 3 --alpha 0
      the three most probable classes, by the original model alone
  find . -name '*.jpg' | python -m safe_ray.predict models:/mine@best -
      paths on standard input, a head from MLflow

options:"""

_EVERY = 5.0


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    head: str
    images: tuple[str, ...]
    top: int
    batch: int
    alpha: float | None
    out: Path | None
    ray: bool
    imported: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 1 if no image could be read."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: _run(parse(arguments, OPTIONS)))


def _run(given: Arguments) -> int:
    if told_of_itself(given, lambda: usage(USAGE, OPTIONS)):
        return 0
    return predict(_request(given))


def _request(given: Arguments) -> Request:
    from safe_ray.files import resolve_path

    if not given.rest:
        raise InputError("Which head? Write python -m safe_ray.predict <head> <images>...")
    head, *images = given.rest
    if not images:
        raise InputError(f"Which images? Write them after {head}, or - for paths on its input.")
    out = given.value(OUT.name)
    return Request(
        head,
        tuple(images),
        _whole(given, TOP, 1),
        _whole(given, BATCH, 64),
        _number(given, ALPHA),
        None if out is None else resolve_path(out),
        RAY.name in given.flags or bool(os.environ.get("RAY_ADDRESS")),
        given.value(IMPORT.name),
    )


def _whole(given: Arguments, option: Option, default: int) -> int:
    text = given.value(option.name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100_000:
        raise InputError(f"{option.name} is {text!r}, and must be a whole number from 1 on.")
    return int(text)


def _number(given: Arguments, option: Option) -> float | None:
    text = given.value(option.name)
    try:
        return None if text is None else float(text)
    except ValueError:
        raise InputError(f"{option.name} is {text!r}, and must be a number.") from None


def predict(request: Request) -> int:
    """Classify images, write a row for each, and a report where there are labels.

    Raises:
        InputError: no head, no image, or a file that cannot be written.
    """
    from safe_ray.prediction.heads import find_head
    from safe_ray.prediction.images import find_pictures
    from safe_ray.prediction.judging import Judgement, report
    from safe_ray.prediction.models import names_and_temperature, others_of
    from safe_ray.prediction.rows import check_out, writer

    if request.out is not None:
        check_out(request.out)
    folder = find_head(request.head)
    names, temperature = names_and_temperature(folder)
    top = min(request.top, len(names))
    pictures = find_pictures(request.images, names, sys.stdin, others_of(folder))
    judgement = Judgement.of(names)
    began = time.monotonic()
    counted = _Count(quiet=request.out is None and sys.stdout.isatty())
    with ExitStack() as stack:
        stream = _stream(request, folder, pictures)
        rows = stack.enter_context(writer(request.out, top))
        for done in stream:
            _take(done, names, top, temperature, rows, judgement)
            counted.add(len(done.pictures), sum(error is not None for error in done.errors))
    seconds = time.monotonic() - began
    say = sys.stdout if request.out is not None else sys.stderr
    print(counted.summary(seconds), file=say)
    if judgement.samples:
        print("\n".join(["", *report(judgement)]), file=say)
    if request.out is not None:
        print(f"  predictions  {request.out}")
        if judgement.samples:
            beside = request.out.with_suffix(".report.json")
            judgement.save(beside)
            print(f"  report       {beside}")
    return 1 if counted.images == counted.errors else 0


def _stream(request: Request, folder: Path, pictures: Iterable[Picture]) -> Iterator[Classified]:
    import torch

    from safe_ray.prediction.classifying import classified
    from safe_ray.prediction.models import load_model

    trusted = () if request.imported is None else (request.imported,)
    if not request.ray:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(folder, device, request.alpha, trusted)
        return classified(model, pictures, request.batch)
    from safe_ray.cluster import connect
    from safe_ray.prediction.distributed import classified_on_cluster

    connect(None, None, [folder])
    return classified_on_cluster(folder, pictures, request.batch, request.alpha, trusted)


def _take(
    done: Classified,
    names: Sequence[str],
    top: int,
    temperature: float,
    rows: Writer,
    judgement: Judgement,
) -> None:
    import torch

    from safe_ray.prediction.rows import predictions

    paths = [picture.path for picture in done.pictures]
    probabilities = torch.softmax(done.logits / temperature, -1)
    rows.write(predictions(paths, done.errors, probabilities, names, top))
    good = [
        picture for picture, error in zip(done.pictures, done.errors, strict=True) if error is None
    ]
    labelled = [place for place, picture in enumerate(good) if picture.label is not None]
    if labelled:
        place_of = {name: place for place, name in enumerate(names)}
        judgement.add(
            [good[place].path for place in labelled],
            [place_of[str(good[place].label)] for place in labelled],
            done.logits[labelled],
            temperature,
        )


class _Count:
    """Says now and then how many images are done: nobody knows beforehand how many there are."""

    def __init__(self, quiet: bool) -> None:
        self.images = self.errors = 0
        self._quiet = quiet
        self._began = self._said = time.monotonic()

    def add(self, images: int, errors: int) -> None:
        """Count some more."""
        self.images += images
        self.errors += errors
        now = time.monotonic()
        if not self._quiet and now - self._said >= _EVERY:
            self._said = now
            done, rate = _images(self.images), _a_second(self.images, now - self._began)
            print(f"{done} so far, {rate}", file=sys.stderr, flush=True)

    def summary(self, seconds: float) -> str:
        """Return the line at the end."""
        text = f"{_images(self.images)} in {duration(seconds)}"
        if seconds > 0:
            text += f" ({_a_second(self.images, seconds)})"
        if self.errors:
            text += f"; {self.errors} could not be read, and their rows say why"
        return f"{text}."


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _a_second(count: int, seconds: float) -> str:
    rate = count / seconds
    return f"{rate:.0f} a second" if rate >= 10 else f"{rate:.1f} a second"
