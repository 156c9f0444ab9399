"""Run every bench, print a table, and write docs/performance.json.

python -m bench            all of them, some minutes
python -m bench --quick    tiny forms that prove nothing; nothing is written

The file is written anew after each bench, so that a failure or Ctrl-C leaves the results before it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import arguments
from safe_ray.files import write_atomically

APART = {"serving"}
"""Those that take minutes by themselves, and are run by their own names."""

SCRIPTS = sorted(
    file.stem
    for file in Path(__file__).parent.glob("*.py")
    if '__name__ == "__main__"' in file.read_text()
    and not file.stem.startswith("_")
    and file.stem not in APART
)
RESULTS = Path(__file__).parents[1] / "docs" / "performance.json"

Result = dict[str, Any]
"""A bench's last line; or its name and why it `failed`."""


def run(name: str, command: Sequence[str]) -> Result:
    """Run one bench, show its lines as they come, and return what its last line holds."""
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line
    if process.returncode:
        return {"bench": name, "failed": f"exit status {process.returncode}"}
    try:
        result = json.loads(last)
    except json.JSONDecodeError:
        result = None
    if not isinstance(result, dict) or result.get("bench") != name:
        return {"bench": name, "failed": "its last line is no result"}
    return result


def run_all(
    commands: Mapping[str, Sequence[str]], keep: Callable[[list[Result]], object]
) -> list[Result]:
    """Run them one after another, for each uses all cores, and go on after one that fails.

    Args:
        commands: the command line of each bench by its name.
        keep: called after each bench with the results so far.
    """
    results: list[Result] = []
    start = time.monotonic()
    for number, (name, command) in enumerate(commands.items(), 1):
        elapsed = time.monotonic() - start
        print(f"== {name}: {number} of {len(commands)}, after {elapsed:.0f} s", flush=True)
        results.append(run(name, command))
        keep(results)
    print(f"== {len(commands)} benches in {time.monotonic() - start:.0f} s", flush=True)
    return results


def row(result: Result) -> str:
    """Return a result's line of the table."""
    name = f"{result['bench']:<20}"
    if "failed" in result:
        return f"{name}{'-':>8}  FAILED: {result['failed']}"
    if "inapplicable" in result:
        return f"{name}{'-':>8}  does not apply: {result['inapplicable']}"
    sign = "<=" if result["at_most"] else ">="
    verdict = "holds" if result["holds"] else "MISSED"
    return f"{name}{result['ratio']:>8.2f}  {sign} {result['target']}  {verdict}"


def main() -> int:
    """Run them all; the exit status is 1 if one failed."""
    quick = arguments(str(__doc__)).quick
    options = ["--quick"] if quick else []
    commands = {name: [sys.executable, "-m", f"bench.{name}", *options] for name in SCRIPTS}

    def keep(results: list[Result]) -> None:
        if not quick:
            write_atomically(RESULTS, json.dumps(results, indent=2) + "\n")

    results = run_all(commands, keep)
    print(f"{'bench':<20}{'ratio':>8}  target")
    for result in results:
        print(row(result))
    return int(any("failed" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
