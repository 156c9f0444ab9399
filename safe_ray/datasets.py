"""`python -m safe_ray.datasets`: what data sets there are, what is in them, and what is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safe_ray.arguments import (
    CONFIG_DIR,
    HELP,
    VERSION,
    Arguments,
    Option,
    answer,
    parse,
    told_of_itself,
    usage,
)
from safe_ray.errors import InputError, nearest
from safe_ray.progress import Reporter

if TYPE_CHECKING:
    from safe_ray.compose import ConfigTree
    from safe_ray.data.manifest import Manifest
    from safe_ray.specs import DatasetSpec

EXIT_BAD_IMAGES = 1
EPISODES = "episodes"

OPTIONS = (
    Option("--verify", "decode every image, and look for duplicates"),
    Option("--root", "the same as data.root=DIR", "DIR"),
    CONFIG_DIR,
    VERSION,
    HELP,
)
USAGE = """\
usage: python -m safe_ray.datasets [options] [NAME...] [data.knob=value]
       python -m safe_ray.datasets data=LOCATION [group.knob=value]
       python -m safe_ray.datasets episodes SPLIT.json [options]

List the data sets of the configuration: what of each is there, what is missing, and where to get
it. With names, count the images of each of these by split and class. With data=, take a first look
at images of your own: classes and splits, what is assumed, bad images, duplicates, disk and time.

examples:
  python -m safe_ray.datasets
  python -m safe_ray.datasets dtd eurosat data.root=/data
  python -m safe_ray.datasets dtd --verify
  python -m safe_ray.datasets data=/path/to/folder
  python -m safe_ray.datasets episodes SPLIT.json --shots 1 2 4 8 16 --seeds 1 2 3

options:"""

EPISODES_OPTIONS = (
    Option("--shots", "training images a class (1 2 4 8 16)", "NUMBERS", many=True),
    Option("--seeds", "one episode each (1 2 3)", "NUMBERS", many=True),
    Option("--convention", "how samples are drawn: coop, clip_lora, tip_adapter", "NAME"),
    HELP,
)
EPISODES_USAGE = """\
usage: python -m safe_ray.datasets episodes SPLIT.json [options]

Draw few-shot episodes from a split file in CoOp's layout, without its images, and print a table of
their digests (16 hexadecimal digits of a SHA-256 over the lines `path<TAB>label`), to compare with
those of another program or machine.

options:"""


@dataclass(frozen=True)
class Stock:
    """What of one data set is there.

    Attributes:
        spec: the data set.
        found: files and folders that are there, in words.
        missing: what must still be put there.
        remote: it lies behind a URI, where nothing was looked at.
    """

    spec: DatasetSpec
    found: tuple[str, ...]
    missing: tuple[str, ...]
    remote: bool = False

    @property
    def state(self) -> str:
        """`ready`, `missing`, `incomplete` or `remote`."""
        if self.remote:
            return "remote"
        if not self.missing:
            return "ready"
        return "incomplete" if self.found else "missing"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Returns:
        0 for success, 1 if an image is bad, 2 for a mistake in what was asked for, 130 after an
        interruption.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == [EPISODES]:
        return answer(lambda: _episodes(parse(arguments[1:], EPISODES_OPTIONS)))
    return answer(lambda: _datasets(parse(arguments, OPTIONS)))


def _datasets(given: Arguments) -> int:
    if told_of_itself(given, lambda: usage(USAGE, OPTIONS)):
        return 0
    if any(argument.startswith("data=") for argument in given.rest):
        return _first_look(given)
    from safe_ray.compose import ConfigTree, load_dataset

    tree = ConfigTree.of(given.value(CONFIG_DIR.name))
    overrides = [argument for argument in given.rest if "=" in argument]
    names = [argument for argument in given.rest if "=" not in argument]
    if (folder := given.value("--root")) is not None:
        overrides.append(f"data.root={folder}")
    root = data_root(tree, overrides)
    known = known_datasets(tree)
    for name in names:
        if name not in known:
            raise InputError(
                f"There is no data set {name!r} in "
                f"{' or '.join(str(folder) for folder in tree.folders)}."
                + (nearest(name, known) or f" There are: {', '.join(known)}.")
            )
    specs = [load_dataset(tree, name).spec() for name in names or known]
    verify = "--verify" in given.flags
    if not names and not verify:
        print("\n".join(listing([take_stock(spec, root) for spec in specs], root)))
        return 0
    if not names:
        specs = [spec for spec in specs if take_stock(spec, root).state == "ready"]
    return _count(specs, root, verify)


def _first_look(given: Arguments) -> int:
    from safe_ray.compose import load_config
    from safe_ray.sweep.overview import show_overview

    names = [argument for argument in given.rest if "=" not in argument]
    if names:
        raise InputError(
            f"data= names a data set without a YAML file, and {names[0]!r} one that has one: give "
            "one or the other."
        )
    config = load_config(given.rest, given.value(CONFIG_DIR.name))
    return EXIT_BAD_IMAGES if show_overview(config).bad else 0


def data_root(tree: ConfigTree, overrides: Sequence[str]) -> Path:
    """Return the folder of the data sets, as the other commands compose it.

    Raises:
        InputError: an override that is none of the data's.
    """
    from omegaconf import OmegaConf

    from safe_ray.compose import compose_tree
    from safe_ray.files import resolve_path

    for override in overrides:
        if not override.startswith("data."):
            raise InputError(f"{override!r} has no effect here: only data.<knob>=<value> has.")
    return resolve_path(str(OmegaConf.select(compose_tree(tree, overrides), "data.root")))


def known_datasets(tree: ConfigTree) -> list[str]:
    """Return the names of the data sets of a configuration tree."""
    from safe_ray.compose import DATASETS

    return tree.choices(DATASETS)


def take_stock(spec: DatasetSpec, root: Path) -> Stock:
    """Look what of a data set is there, without reading its lists.

    Raises:
        InputError: an option that its format does not have.
    """
    from safe_ray.data.locations import exists, is_uri, locate
    from safe_ray.data.readers import coop, imagenet

    location = locate(spec.path, root)
    if is_uri(location):
        return Stock(spec, (location,), (), remote=True)
    look = {"coop": coop.take_stock, "imagenet": imagenet.take_stock}.get(spec.format)
    if look is None:
        return Stock(spec, (location,), ()) if exists(location) else Stock(spec, (), (location,))
    found, missing = look(spec, location)
    return Stock(spec, tuple(found), tuple(missing))


def listing(stocks: Sequence[Stock], root: Path) -> Iterator[str]:
    """Yield the lines that say what of each data set is there, and where to get the rest."""
    yield f"Data sets with relative paths are looked for in {root} (data.root=<folder>)."
    width = max((len(stock.spec.name) for stock in stocks), default=0)
    margin = " " * (width + 2)
    for stock in stocks:
        ready = "; ".join(stock.found) if not stock.missing else ""
        yield f"{stock.spec.name:<{width}}  {stock.state:<10}  {ready}".rstrip()
        for part in stock.missing:
            yield f"{margin}missing: {part}"
        if stock.missing and stock.spec.source:
            yield f"{margin}get it from: {stock.spec.source.strip()}"


def _count(specs: Iterable[DatasetSpec], root: Path, verify: bool) -> int:
    from safe_ray.data.manifest import load_manifest
    from safe_ray.features.survey import survey

    bad = 0
    for spec in specs:
        manifest = load_manifest(spec, root)
        print("\n".join(described(manifest)))
        if verify:
            size = sum(table.num_rows for table in manifest.tables.values())
            with Reporter() as reporter:
                found = survey(manifest, reporter.phase(f"{spec.name}, images"), most=size)
            print("\n".join(f"  {line}" for line in found.lines()))
            bad += len(found.bad)
    return EXIT_BAD_IMAGES if bad else 0


def described(manifest: Manifest) -> Iterator[str]:
    """Yield the lines that say how many images each split and class has, after the notes."""
    from safe_ray.data.tally import counts

    yield f"{manifest.name}: {len(manifest.classes)} classes"
    for line in (*manifest.notes, *counts(manifest)):
        yield f"  {line}"


def _episodes(given: Arguments) -> int:
    if HELP.name in given.flags:
        print(usage(EPISODES_USAGE, EPISODES_OPTIONS))
        return 0
    if len(given.rest) != 1:
        raise InputError(
            f"{EPISODES} needs one split file: write {EPISODES} SPLIT.json (--help lists what "
            "there is)."
        )
    from safe_ray.files import resolve_path

    rows = list(
        episode_rows(
            resolve_path(given.rest[0]),
            _numbers(given, "--shots", (1, 2, 4, 8, 16)),
            _numbers(given, "--seeds", (1, 2, 3)),
            given.value("--convention") or "coop",
        )
    )
    print("\n".join("\t".join(row) for row in rows))
    return 0


def _numbers(given: Arguments, name: str, default: Sequence[int]) -> Sequence[int]:
    texts = given.values.get(name, ())
    for text in texts:
        if not text.isdecimal():
            raise InputError(f"{name} holds {text!r}: write whole numbers, as in {name} 1 2 4.")
    return [int(text) for text in texts] or default


def episode_rows(
    split_file: Path, shots: Sequence[int], seeds: Sequence[int], convention: str = "coop"
) -> Iterator[tuple[str, str, str, str]]:
    """Yield the head and the rows of a table of episodes.

    Args:
        split_file: in CoOp's layout; no image of it need be there.
        shots: training images a class.
        seeds: of the drawing.
        convention: a key of `safe_ray.data.episodes.CONVENTIONS`.

    Yields:
        shots, seed, digest of the training samples, digest of the validation samples.

    Raises:
        InputError: the split file is missing or wrong, or an argument out of range.
    """
    from safe_ray.data.episodes import draw_episode
    from safe_ray.data.manifest import load_manifest
    from safe_ray.specs import DatasetSpec

    spec = DatasetSpec(
        split_file.stem, "coop", str(split_file.parent), options={"split": split_file.name}
    )
    manifest = load_manifest(spec, split_file.parent)
    yield "shots", "seed", "train_digest", "validation_digest"
    for count in shots:
        for seed in seeds:
            episode = draw_episode(manifest, count, seed, convention)
            yield str(count), str(seed), episode.train_digest, episode.validation_digest


if __name__ == "__main__":
    sys.exit(main())
