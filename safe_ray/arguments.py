"""What all commands share of a command line: a table of options, one parser, exit statuses."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from safe_ray import __version__
from safe_ray.errors import IncompleteError, InputError, nearest
from safe_ray.interruption import (
    EXIT_INTERRUPTED,
    end_if_terminated,
    handle_interruptions,
    say_farewell,
)
from safe_ray.redaction import redacted

SCRIPT = "safe-ray"
"""What the console script is called."""
EXIT_INCOMPLETE = 1
EXIT_INPUT = 2
EXIT_NOBODY_READS = 128 + signal.SIGPIPE


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        name: with its dashes.
        meaning: the line that `--help` prints for it.
        value: what follows it, as `--help` calls it; "" for a flag.
        many: all arguments up to the next option follow it, not one.
    """

    name: str
    meaning: str
    value: str = ""
    many: bool = False


HELP = Option("--help", "print this")
VERSION = Option("--version", "print the version")
CONFIG_DIR = Option(
    "--config-dir", "a tree like conf/ of your own; its files go before the packaged ones", "DIR"
)


@dataclass(frozen=True)
class Arguments:
    """A command line that was understood.

    Attributes:
        flags: the names of the options without a value that were given.
        values: what was given for the others, by name.
        rest: what belongs to no option, in its order.
    """

    flags: frozenset[str]
    values: Mapping[str, Sequence[str]]
    rest: tuple[str, ...]

    def value(self, name: str) -> str | None:
        """Return what was given for an option, the last time if several."""
        return self.values[name][-1] if name in self.values else None


def parse(arguments: Sequence[str], options: Sequence[Option]) -> Arguments:
    """Tell the options in a command line from what belongs to none.

    Raises:
        InputError: an option that does not exist or lacks its value, or a flag that is given one.
    """
    known = {option.name: option for option in options}
    flags: set[str] = set()
    values: dict[str, list[str]] = {}
    rest: list[str] = []
    given = list(arguments)
    while given:
        argument = given.pop(0)
        # A dash by itself is standard input.
        if not argument.startswith("-") or argument == "-":
            rest.append(argument)
            continue
        name, equals, value = ("--help", "", "") if argument == "-h" else argument.partition("=")
        option = known.get(name)
        if option is None:
            raise InputError(
                f"There is no option {argument}: settings are written group.knob=value, and "
                f"--help lists all.{nearest(name, known)}"
            )
        if not option.value:
            if equals:
                raise InputError(f"{name} takes no value: write {name} alone.")
            flags.add(name)
            continue
        found = [value] if equals else []
        while not equals and given and not given[0].startswith("-"):
            found.append(given.pop(0))
            if not option.many:
                break
        if not any(found):
            raise InputError(f"{name} needs a value: write {name} <{option.value.lower()}>.")
        values.setdefault(name, []).extend(found)
    return Arguments(frozenset(flags), values, tuple(rest))


def help_lines(options: Sequence[Option]) -> Iterator[str]:
    """Yield the lines of `--help` about options."""
    names = [f"{option.name} {option.value}".rstrip() for option in options]
    width = max(map(len, names))
    for name, option in zip(names, options, strict=True):
        yield f"  {name:<{width}}   {option.meaning}"


def usage(text: str, options: Sequence[Option]) -> str:
    """Return what `--help` prints: what a command does, and its options."""
    return "\n".join([text, *help_lines(options)])


class _Called:
    """How this process was called."""

    by_script = False


def called_by_script() -> None:
    """Take note that the command was called by the console script."""
    _Called.by_script = True


def spelled(text: str) -> str:
    """Return a text whose commands are called as this one was: by module, or by the script.

    Args:
        text: with commands as `python -m safe_ray.<verb>`.
    """
    if not _Called.by_script:
        return text
    return re.sub(r"python -m safe_ray\.(?=[a-z])", f"{SCRIPT} ", text)


def version() -> str:
    """Return what `--version` prints."""
    return f"safe_ray {__version__}"


def told_of_itself(given: Arguments, help_text: Callable[[], str]) -> bool:
    """Print what `--version` or `--help` asks for; return whether one of them was given.

    Args:
        given: the arguments of a command.
        help_text: what `--help` prints.
    """
    if VERSION.name in given.flags:
        print(version())
    elif HELP.name in given.flags:
        print(spelled(help_text()))
    else:
        return False
    return True


def answer(work: Callable[[], int], interrupted: str = "Interrupted.") -> int:
    """Do a command's work, and turn how it ends into an exit status.

    Args:
        work: returns the status of a work that ended well.
        interrupted: what to say after Ctrl-C or SIGTERM.

    Returns:
        That of `work`; 1 when a part of the results is missing and 2 for a mistake in what was
        asked for, both told in one sentence on standard error; 130 after an interruption; 141 if
        whoever read standard output stopped reading.
    """
    handle_interruptions(interrupted)
    try:
        status = work()
        sys.stdout.flush()
        return status
    except InputError as error:
        print(redacted(spelled(f"safe_ray: {error}")), file=sys.stderr)
        return EXIT_INPUT
    except IncompleteError as error:
        print(redacted(spelled(f"safe_ray: {error}")), file=sys.stderr)
        return EXIT_INCOMPLETE
    except KeyboardInterrupt:
        say_farewell()
        end_if_terminated()
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        # The interpreter flushes standard output once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NOBODY_READS


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose other end was closed, as `| head` does."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
