"""What the commands `python -m safe_ray.<verb>` share: arguments, help, errors and exit statuses.

Nothing heavy is imported before the arguments are understood, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safe_ray import job
from safe_ray.arguments import (
    CONFIG_DIR,
    HELP,
    VERSION,
    Option,
    answer,
    help_lines,
    parse,
    told_of_itself,
)
from safe_ray.errors import InputError
from safe_ray.redaction import redacted_values

if TYPE_CHECKING:
    from safe_ray.config import SweepConfig

SHOW_CONFIG = Option("--show-config", "print the composed configuration as YAML, and do nothing")
RESTART = (
    Option("--restart", "begin the sweep of this name anew: all that is in its folder is removed"),
    Option("--yes", "agree to that without being asked"),
)
COMMON = (CONFIG_DIR, SHOW_CONFIG, VERSION, HELP)


@dataclass(frozen=True)
class Command:
    """One `python -m safe_ray.<verb>`.

    Attributes:
        verb: the module's name.
        summary: what it does, in a sentence.
        examples: command lines after the module's name, each with what it does.
        run: does the work; it is given the flags of `options`, too, and returns the exit status,
            None being 0.
        options: what it takes beside what all commands take.
    """

    verb: str
    summary: str
    examples: tuple[tuple[str, str], ...]
    run: Callable[[SweepConfig, frozenset[str]], int | None]
    options: tuple[Option, ...] = ()


def main(command: Command, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Returns:
        0 for success, 1 when a part of the results is missing or of the store damaged, 2 for a
        mistake in what was asked for (told in one sentence on standard error), 130 after an
        interruption.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: _run(command, arguments))


def _run(command: Command, arguments: Sequence[str]) -> int:
    given = parse(arguments, (*command.options, *COMMON))
    config_dir = given.value(CONFIG_DIR.name)
    if told_of_itself(given, lambda: help_text(command, config_dir)):
        return 0
    from safe_ray.compose import load_config

    config = load_config(given.rest, config_dir)
    if SHOW_CONFIG.name in given.flags:
        import yaml

        shown = redacted_values(config.to_dict())
        print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")
        return 0
    _warn_of_passing_storage(config)

    def work() -> int:
        return command.run(config, given.flags) or 0

    return answer(
        work,
        "Interrupted; nothing that was finished is lost. To go on, give the same command "
        f"with sweep={config.sweep}",
    )


def _warn_of_passing_storage(config: SweepConfig) -> None:
    """Say so if the results would lie in the folder that Ray makes, and removes, for a job."""
    folder = job.passing_folder()
    if folder is not None and config.storage.is_relative_to(folder):
        print(
            f"safe_ray: results go to {config.storage}, which belongs to this job and goes with "
            "it; name a folder that stays, and that all nodes see, with storage=<folder>.",
            file=sys.stderr,
        )


def restarts(flags: frozenset[str], sweeps: Sequence[SweepConfig]) -> bool:
    """Return whether sweeps begin anew, having asked whoever sits there.

    Args:
        flags: of the command line, `RESTART` among what they may be.
        sweeps: those that the command runs.

    Raises:
        InputError: the person says no, or nobody can be asked; or `--yes` has nothing to agree to.
    """
    restart, agree = (option.name for option in RESTART)
    if restart not in flags:
        if agree in flags:
            raise InputError(f"{agree} agrees to {restart}: leave it out, or add {restart}.")
        return False
    from safe_ray.sweep.claim import was_begun

    folders = [str(sweep.outputs) for sweep in sweeps if was_begun(sweep)]
    if not folders or agree in flags:
        return True
    what = " and ".join(folders)
    if not sys.stdin.isatty():
        raise InputError(
            f"{restart} removes {what}, and nobody can be asked here: add {agree} to agree to it."
        )
    said = input(f"Remove {what} with every head in there, and begin anew? [y/N] ")
    if said.strip().lower() not in ("y", "yes"):
        raise InputError(f"{what} is as it was: leave {restart} out to go on with it.")
    return True


def help_text(command: Command, config_dir: str | None = None) -> str:
    """Return what `--help` prints: groups with their choices, and every knob with a line."""
    from omegaconf import OmegaConf

    from safe_ray.compose import DATASETS, METHODS, ConfigTree, compose_tree
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
    lines += [f"  {'method':<11} {', '.join(tree.choices(METHODS))}"]
    lines += [f"  {'data sets':<11} {', '.join(tree.choices(DATASETS))}", "", "knobs:"]
    for knob in knobs():
        value = OmegaConf.select(composed, knob.path)
        if OmegaConf.is_config(value):
            text = str(OmegaConf.to_container(value)).replace("'", "")
        else:
            text = "null" if value is None else str(value)
        lines += [f"  {knob.path}={text}", f"      {knob.meaning} ({knob.type})"]
    lines += ["", "options:", *help_lines((*command.options, *COMMON))]
    return "\n".join(lines)
