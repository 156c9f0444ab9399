"""`python -m tests.fuzz`: many hostile cases for every reader, and a table of what came of them.

The cases run in a process of their own, so that a crash of a library is a finding, too: it is
noted, and another process goes on behind the case that did it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.cases import run_case, seeded, valid_files
from tests.fuzz.reader import Reader
from tests.fuzz.readers import BY_NAME, READERS, counts

SHOWN = 8
FOUND = Path("outputs") / "fuzz"


@dataclass
class Row:
    """What came of a reader's cases."""

    cases: int = 0
    refused: int = 0
    faults: int = 0
    slowest: float = 0.0
    began: float = field(default_factory=time.monotonic)
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)

    def note(self, number: int, refused: bool, seconds: float, fault: str) -> None:
        """Count a case."""
        self.cases += 1
        self.refused += refused
        self.slowest = max(self.slowest, seconds)
        if fault:
            self.faults += 1
            self.kinds[fault] += 1
            self.first.setdefault(fault, number)

    def show(self, name: str) -> None:
        """Print it as a line of the table, and its faults below."""
        seconds = time.monotonic() - self.began
        print(
            f"{name:<18}{self.cases:>8}{self.refused:>9}{self.slowest:>8.2f}s{seconds:>8.0f}s"
            f"{self.faults:>8}",
            flush=True,
        )
        for fault, times in self.kinds.most_common(SHOWN):
            print(f"    {times} x {fault} (such as case {self.first[fault]})", flush=True)


def main() -> int:
    """Run what the command line asks for; 0 if no case has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="in all (100000)")
    parser.add_argument("--seed", type=int, default=0, help="other numbers are other cases (0)")
    parser.add_argument("--readers", default="", help="names, by commas; all if left out")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    parser.add_argument("--here", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        return _run_here(json.loads(asked.here), asked.seed)
    chosen = tuple(BY_NAME[name] for name in asked.readers.split(",") if name) or READERS
    print(f"{'reader':<18}{'cases':>8}{'refused':>9}{'slowest':>9}{'seconds':>9}{'faults':>8}")
    faults = _run(chosen, asked.cases, asked.seed, asked.first)
    print(f"{asked.cases} cases, {faults} faults{f'; their files are in {FOUND}' * bool(faults)}")
    return 1 if faults else 0


def _run(readers: Sequence[Reader], cases: int, seed: int, first: int) -> int:
    left = [[name, first, count] for name, count in counts(cases, readers).items()]
    faults, row = 0, Row()
    while left:
        command = [sys.executable, "-m", "tests.fuzz", f"--seed={seed}"]
        command += ["--here", json.dumps(left)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            number = -1
            for line in process.stdout:
                what = json.loads(line)
                if isinstance(what, int):
                    number = what
                    continue
                row.note(number, *what)
                left[0][1:] = [number + 1, left[0][2] - 1]
                number = -1
                if left[0][2] == 0:
                    faults += row.faults
                    row.show(left.pop(0)[0])
                    row = Row()
                elif row.cases % 500 == 0 and sys.stderr.isatty():
                    print(f"{left[0][0]}: {left[0][2]} left", end="\r", file=sys.stderr)
        if left:
            if number < 0:
                print(f"the process does not begin (status {process.returncode})")
                return faults + 1
            row.note(number, False, 0.0, f"the process ends (status {process.returncode})")
            left[0][1:] = [number + 1, left[0][2] - 1]
            if left[0][2] == 0:
                faults += row.faults
                row.show(left.pop(0)[0])
                row = Row()
    return faults


def _run_here(work: Sequence[tuple[str, int, int]], seed: int) -> int:
    """Run cases one after the other; tell of each on standard output when it begins and ends."""
    tell = os.fdopen(os.dup(1), "w")
    # What a library prints is no word of ours.
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        for name, first, count in work:
            reader = BY_NAME[name]
            valid_files(reader)
            for number in range(first, first + count):
                print(number, file=tell, flush=True)
                keep = FOUND / f"{name.replace(' ', '-')}-{seed}-{number}"
                finding = run_case(reader, seeded(reader, seed, number), Path(root), keep)
                lines = [line.strip() for line in finding.fault.splitlines() if line.strip()]
                if lines:
                    keep.with_suffix(".txt").write_text(finding.fault)
                fault = lines[-1][:300] if lines else ""
                print(json.dumps([finding.refused, finding.seconds, fault]), file=tell, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
