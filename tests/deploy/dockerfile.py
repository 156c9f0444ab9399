"""The steps of the Dockerfile, run without a container engine: `python -m tests.deploy.dockerfile`.

Each stage is a folder that stands for /home/ray, with an environment of its own. Files are copied
as a build would copy them, .dockerignore included, and every RUN is run by sh. The environment sees
all packages that this one has but the project itself, and pip may not download: so what is covered
is every step, the wheel, and that all that the image asks for is pinned and installed. Not covered
are the base image, torch's own index, and the time and space of a real build.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).parents[2]
HOME = "/home/ray"


@dataclass(frozen=True)
class Step:
    """An instruction of a Dockerfile: its first word, and the rest in one line."""

    instruction: str
    rest: str


@dataclass(frozen=True)
class Stage:
    """What begins with a FROM."""

    base: str
    name: str
    steps: tuple[Step, ...]


@dataclass
class Built:
    """A stage whose steps were run.

    Attributes:
        root: the folder that stands for /home/ray.
        environment: what ENV and ARG have set; paths are the root's.
        folder: the last WORKDIR, below the root.
        user: the last USER.
        labels: of LABEL.
        command: of CMD.
    """

    root: Path
    environment: dict[str, str]
    folder: Path
    user: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.root / "environment" / "bin" / "python"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the stage, as `docker run` would."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env=_variables(self),
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )


def parse(text: str) -> tuple[list[Step], list[Stage]]:
    """Return what stands before the first FROM, and the stages."""
    steps = list(_steps(text))
    starts = [number for number, step in enumerate(steps) if step.instruction == "FROM"]
    stages = []
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        base, *name = re.split(r"\s+AS\s+", steps[start].rest, flags=re.IGNORECASE)
        stages.append(Stage(base, name[0] if name else "", tuple(steps[start + 1 : end])))
    return steps[: starts[0]], stages


def _steps(text: str) -> Iterator[Step]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for joined in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if joined.strip():
            instruction, rest = joined.split(maxsplit=1)
            yield Step(instruction.upper(), rest.strip())


def expand(text: str, variables: dict[str, str]) -> str:
    """Put in variables as a build does: $NAME, ${NAME}, ${NAME:-word} and ${NAME:+word}."""

    def value(found: re.Match[str]) -> str:
        name, how, word = found[1] or found[4], found[2], found[3]
        given = variables.get(name, "")
        if how == ":+":
            return expand(word, variables) if given else ""
        return given or (word if how == ":-" else "")

    return re.sub(r"\$(?:\{(\w+)(?:(:[-+])([^}]*))?\}|(\w+))", value, text)


def replay(place: Path, **arguments: str) -> dict[str, Built]:
    """Run all steps of the Dockerfile and return the stages by their names, the last one as "".

    Args:
        place: a folder for them.
        arguments: build arguments.

    Raises:
        AssertionError: a step fails, with what it printed.
    """
    before, stages = parse((PROJECT / "Dockerfile").read_text())
    wide = dict(_argument(step) for step in before)
    wide |= {name: value for name, value in arguments.items() if name in wide}
    built: dict[str, Built] = {}
    for number, stage in enumerate(stages):
        root = place / f"stage-{number}"
        base = built.get(stage.base)
        if base is None:
            done = Built(_empty(root), {}, root)
        else:
            shutil.copytree(base.root, root, symlinks=True)
            done = Built(_moved(root), dict(base.environment), root, base.user)
        for step in stage.steps:
            _do(step, done, built, {**wide, **arguments})
        built[stage.name] = done
    return built


def _do(step: Step, stage: Built, built: dict[str, Built], given: dict[str, str]) -> None:
    match step.instruction:
        case "ARG":
            name, default = _argument(step)
            stage.environment[name] = given.get(name, default)
        case "ENV":
            for name, value in _pairs(step.rest, stage):
                stage.environment[name] = value
        case "LABEL":
            stage.labels.update(_pairs(step.rest, stage))
        case "USER":
            stage.user = step.rest
        case "WORKDIR":
            stage.folder = Path(_inside(step.rest, stage.root))
            stage.folder.mkdir(parents=True, exist_ok=True)
        case "COPY":
            _copy(step.rest, stage, built)
        case "RUN":
            command = _inside(step.rest, stage.root)
            done = stage.run("sh", "-c", command)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        case "CMD":
            stage.command = tuple(json.loads(step.rest))
        case _:
            raise AssertionError(f"the instruction {step.instruction} is not known here")


def _argument(step: Step) -> tuple[str, str]:
    name, _, default = step.rest.partition("=")
    return name, default


def _pairs(text: str, stage: Built) -> Iterator[tuple[str, str]]:
    for word in shlex.split(text):
        name, _, value = word.partition("=")
        yield name, _inside(expand(value, stage.environment), stage.root)


def _inside(text: str, root: Path) -> str:
    return text.replace(HOME, str(root))


def _copy(text: str, stage: Built, built: dict[str, Built]) -> None:
    words = text.split()
    options = dict(word.split("=", 1) for word in words if word.startswith("--"))
    *sources, target = [word for word in words if not word.startswith("--")]
    assert options.get("--chown") == stage.user, "files belong to somebody else than the user"
    into = stage.folder / _inside(target, stage.root)
    for source in sources:
        if "--from" in options:
            there = built[options["--from"]]
            shutil.copytree(_inside(source, there.root), into, dirs_exist_ok=True)
        elif (PROJECT / source).is_dir():
            shutil.copytree(PROJECT / source, into, ignore=_ignored, dirs_exist_ok=True)
        else:
            assert not _ignored(str(PROJECT), [source]), f"{source} is left out of the build"
            shutil.copy(PROJECT / source, into)


def _ignored(folder: str, names: Sequence[str]) -> set[str]:
    """Return which names .dockerignore leaves out of the build."""
    patterns = (PROJECT / ".dockerignore").read_text().split()
    place = Path(folder).relative_to(PROJECT)
    paths = {name: (place / name).as_posix() for name in names}
    return {
        name
        for name, path in paths.items()
        for pattern in patterns
        if fnmatch.fnmatch(path, pattern)
        or (pattern.startswith("**/") and fnmatch.fnmatch(name, pattern.removeprefix("**/")))
    }


def _empty(root: Path) -> Path:
    """Make a folder with an environment that sees this one's packages, but not the project."""
    root.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", root / "environment"], check=True
    )
    packages = root / "packages"
    packages.mkdir()
    for entry in Path(next(p for p in sys.path if p.endswith("site-packages"))).iterdir():
        if not entry.name.startswith(("safe_ray", "_safe_ray")) and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    return _moved(root)


def _moved(root: Path) -> Path:
    """Let the environment find the packages where the stage is now."""
    site = next((root / "environment" / "lib").glob("python*/site-packages"))
    (site / "packages.pth").write_text(f"{root / 'packages'}\n")
    return root


def _variables(stage: Built) -> dict[str, str]:
    return {
        **stage.environment,
        "HOME": str(stage.root),
        "PATH": f"{stage.python.parent}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for device in sys.argv[1:] or ["cpu"]:
            stages = replay(Path(temporary) / device, DEVICE=device)
            print(f"{device}: all steps of {len(stages)} stages have run")
