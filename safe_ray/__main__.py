"""`safe-ray <verb>` and `python -m safe_ray <verb>`: the same as `python -m safe_ray.<verb>`."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from safe_ray.arguments import EXIT_INPUT, SCRIPT, called_by_script, version

VERBS = {
    "tune": "search the learning rate and the blend of every task, and report on the test split",
    "extract": "fill the feature store, or verify it",
    "datasets": "what there is of the data sets, and a first look at your own",
    "backbones": "which backbones there are",
    "predict": "classify images with a head",
    "export": "write a model that needs this package no more",
    "serve": "answer requests over HTTP",
    "report": "compare sweeps",
    "track": "record sweeps in MLflow",
}
"""The verbs, each with what `--help` says of it; a module of this package does the work."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    known = there()
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage(known))
        return 0 if given else EXIT_INPUT
    if given[0] == "--version":
        print(version())
        return 0
    verb, *rest = given
    if verb not in known:
        print(f"safe_ray: {refusal(verb, known)}", file=sys.stderr)
        return EXIT_INPUT
    called_by_script()
    sys.argv[1:] = rest
    # As `python -m` does it: a module's own last lines call its `main`.
    runpy.run_module(f"safe_ray.{verb}", run_name="__main__", alter_sys=True)
    return 0


def there() -> list[str]:
    """Return the verbs whose modules are there and can be run; none of them is imported."""
    return [verb for verb in VERBS if _can_be_run(f"safe_ray.{verb}")]


def _can_be_run(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    if spec is None:
        return False
    folders = spec.submodule_search_locations
    return folders is None or any((Path(folder) / "__main__.py").is_file() for folder in folders)


def usage(verbs: Sequence[str]) -> str:
    """Return what `--help` prints."""
    width = max(map(len, verbs))
    lines = [f"  {verb:<{width}}   {VERBS[verb]}" for verb in verbs]
    return "\n".join(
        [
            f"usage: {SCRIPT} <command> [...]",
            "",
            "Few-shot fine-tuning of CLIP's attention pooling, searched per task.",
            "",
            "commands:",
            *lines,
            "",
            f"{SCRIPT} <command> --help says what each takes.",
        ]
    )


def refusal(verb: str, known: Sequence[str]) -> str:
    """Return one sentence about a verb that does not exist."""
    from safe_ray.errors import nearest, one_line

    return one_line(
        f"There is no command {verb!r}."
        + (nearest(verb, known) or f" The commands are {', '.join(known)}.")
    )


if __name__ == "__main__":
    sys.exit(main())
