"""What the commands `python -m safe_ray.<verb>` share: arguments, help, errors and exit statuses.

Nothing heavy is imported before the arguments are understood, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safe_ray import __version__
from safe_ray.cluster import JOB_VARIABLE
from safe_ray.errors import InputError
from safe_ray.interruption import treat_sigterm_as_interrupt

if TYPE_CHECKING:
    from safe_ray.config import SweepConfig

EXIT_INPUT = 2
EXIT_INTERRUPTED = 130

OPTIONS = """options:
  --config-dir DIR   a tree like conf/ of your own; its files go before the packaged ones
  --show-config      print the composed configuration as YAML, and do nothing
  --version          print the version
  --help             print this"""


@dataclass(frozen=True)
class Command:
    """One `python -m safe_ray.<verb>`.

    Attributes:
        verb: the module's name.
        summary: what it does, in a sentence.
        examples: command lines after the module's name, each with what it does.
        run: does the work.
    """

    verb: str
    summary: str
    examples: tuple[tuple[str, str], ...]
    run: Callable[[SweepConfig], object]


def main(command: Command, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Returns:
        0 for success, 2 for a mistake in what was asked for (told in one sentence on standard
        error), 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config = _configure(command, arguments)
    except InputError as error:
        return _refuse(error)
    if config is None:
        return 0
    treat_sigterm_as_interrupt()
    _warn_of_passing_storage(config)
    try:
        command.run(config)
    except InputError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        print(
            "\nInterrupted; nothing that was finished is lost. To go on, give the same command "
            f"with sweep={config.sweep}",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    return 0


def _refuse(error: InputError) -> int:
    print(f"safe_ray: {error}", file=sys.stderr)
    return EXIT_INPUT


def _warn_of_passing_storage(config: SweepConfig) -> None:
    """Say so if the results would lie in the folder that Ray makes, and removes, for a job."""
    if JOB_VARIABLE in os.environ and config.storage.is_relative_to(Path.cwd()):
        print(
            f"safe_ray: results go to {config.storage}, which belongs to this job and goes with "
            "it; name a folder that stays, and that all nodes see, with storage=<folder>.",
            file=sys.stderr,
        )


def _configure(command: Command, arguments: Sequence[str]) -> SweepConfig | None:
    """Return the configuration, or None if the arguments asked for words only."""
    overrides: list[str] = []
    config_dir: str | None = None
    show = False
    rest = iter(arguments)
    asked_for_help = False
    for argument in rest:
        if argument in ("--help", "-h"):
            asked_for_help = True
        elif argument == "--version":
            print(f"safe_ray {__version__}")
            return None
        elif argument == "--show-config":
            show = True
        elif argument == "--config-dir" or argument.startswith("--config-dir="):
            _, equals, value = argument.partition("=")
            config_dir = value if equals else next(rest, None)
            if not config_dir:
                raise InputError("--config-dir needs a folder: write --config-dir <folder>.")
        elif argument.startswith("-"):
            raise InputError(
                f"There is no option {argument}: settings are written group.knob=value, and "
                "--help lists them."
            )
        else:
            overrides.append(argument)
    if asked_for_help:
        print(help_text(command, config_dir))
        return None
    from safe_ray.compose import load_config

    config = load_config(overrides, config_dir)
    if show:
        import yaml

        print(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), end="")
        return None
    return config


def help_text(command: Command, config_dir: str | None = None) -> str:
    """Return what `--help` prints: groups with their choices, and every knob with a line."""
    from omegaconf import OmegaConf

    from safe_ray.compose import DATASETS, ConfigTree, compose_tree
    from safe_ray.config import groups, knobs

    tree = ConfigTree.of(config_dir)
    composed = compose_tree(tree)
    lines = [
        f"usage: python -m safe_ray.{command.verb} [options] [group=choice] [group.knob=value]",
        "",
        command.summary,
        "",
        "examples:",
    ]
    for arguments, meaning in command.examples:
        lines += [f"  python -m safe_ray.{command.verb} {arguments}".rstrip(), f"      {meaning}"]
    lines += ["", "groups, and the files to choose from:"]
    lines += [f"  {name:<11} {', '.join(tree.choices(name))}" for name in groups()]
    lines += [f"  {'data sets':<11} {', '.join(tree.choices(DATASETS))}", "", "knobs:"]
    for knob in knobs():
        value = OmegaConf.select(composed, knob.path)
        if OmegaConf.is_config(value):
            text = str(OmegaConf.to_container(value)).replace("'", "")
        else:
            text = "null" if value is None else str(value)
        lines += [f"  {knob.path}={text}", f"      {knob.meaning} ({knob.type})"]
    return "\n".join([*lines, "", OPTIONS])
