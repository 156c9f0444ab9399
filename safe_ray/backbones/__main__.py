"""`python -m safe_ray.backbones`: open_clip's models by family, their sizes, and their weights."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from safe_ray.arguments import HELP, VERSION, Option, answer, parse, told_of_itself, usage
from safe_ray.errors import InputError, nearest

if TYPE_CHECKING:
    from safe_ray.backbones.claims import Claim

FAMILY = Option("--family", "list the models of this family alone", "NAME")
OPTIONS = (FAMILY, VERSION, HELP)
USAGE = """\
usage: python -m safe_ray.backbones [options] [NAME...]

List open_clip's models by the family that tunes them: the side of an image in pixels, the tokens of
a dense map and their width, what a cached view takes (fp16), the parameters that are tuned, and the
tags of weights, those on this machine with a star. With names, list the models that have one of
them in theirs. Any of them is used with backbone.model=NAME backbone.pretrained=TAG.

examples:
  python -m safe_ray.backbones
  python -m safe_ray.backbones ViT-B-16
  python -m safe_ray.backbones --family last_block

options:"""
_HEADER = ("model", "px", "tokens", "width", "KiB a view", "tuned", "weights")
_TAGS = 48
# From this many bytes on, a fraction of a KiB is not worth its place.
_WHOLE = 10240


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: _run(given))


def _run(arguments: Sequence[str]) -> int:
    given = parse(arguments, OPTIONS)
    if told_of_itself(given, lambda: usage(USAGE, OPTIONS)):
        return 0
    import open_clip

    from safe_ray.backbones.claims import claim
    from safe_ray.poolings.base import families

    titles = {
        family.__module__.removeprefix("safe_ray.poolings."): _title(family.__module__)
        for family in families()
    }
    wanted = given.value(FAMILY.name)
    if wanted is not None and wanted not in titles:
        raise InputError(
            f"There is no family {wanted!r}: the families are {', '.join(titles)}."
            f"{nearest(wanted, list(titles))}"
        )
    known = open_clip.list_models()
    models = [name for name in known if _is_asked_for(name, given.rest)]
    if not models:
        raise InputError(
            f"No model of open_clip {open_clip.__version__} has {' or '.join(given.rest)} in its "
            f"name.{nearest(given.rest[0], known)}"
        )
    claims = [claim(name) for name in models]
    for family, title in titles.items():
        members = [one for one in claims if one.family == family]
        if members and wanted in (None, family):
            print(f"{family}: {title}\n")
            print("\n".join(_table(members)), end="\n\n")
    left_out = [one for one in claims if not one.family]
    if left_out and wanted is None:
        print("left out:\n")
        print("\n".join(f"  {one.model}: {one.why}" for one in left_out))
    return 0


def _title(module: str) -> str:
    text = sys.modules[module].__doc__ or ""
    return text.partition("\n")[0]


def _is_asked_for(model: str, names: Sequence[str]) -> bool:
    return not names or any(name.lower() in model.lower() for name in names)


def _table(claims: Iterable[Claim]) -> list[str]:
    rows = [_HEADER, *(_row(one) for one in claims)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADER))]
    lines = []
    for row in rows:
        name, *numbers, weights = (
            (text.ljust if place in (0, len(row) - 1) else text.rjust)(widths[place])
            for place, text in enumerate(row)
        )
        lines.append("  " + "  ".join((name, *numbers, weights)).rstrip())
    return lines


def _row(one: Claim) -> tuple[str, ...]:
    return (
        one.model,
        str(one.pixels),
        str(one.tokens),
        str(one.width),
        f"{one.view_bytes / 1024:.{0 if one.view_bytes >= _WHOLE else 1}f}",
        f"{one.tuned:,}",
        _weights(one.model),
    )


def _weights(model: str) -> str:
    """Return the tags of a model, those that are here first and with a star, cut to a width."""
    import open_clip

    from safe_ray.backbones.openclip import is_downloaded

    tags = open_clip.list_pretrained_tags_by_model(model)
    here = {tag for tag in tags if is_downloaded(model, tag)}
    shown = [f"{tag}*" if tag in here else tag for tag in sorted(tags, key=lambda t: t not in here)]
    text = ", ".join(shown)
    return text if len(text) <= _TAGS else f"{text[: _TAGS - 4].rpartition(', ')[0]}, ..."


if __name__ == "__main__":
    sys.exit(main())
