"""`python -m tests.faults`: every kind of fault, many times, and a table of what was lost.

    python -m tests.faults                          10 injections of each kind, hours
    python -m tests.faults --injections 1           one of each
    python -m tests.faults --only MLflow --seed 7   kinds whose name has the word, other seeds
    python -m tests.faults --write docs/reliability.md

With `--world` a later run need not do the undisturbed sweep again; without it, nothing is kept. The
same seed does the same harm at the same moment of the sweep, as far as that is in its hands.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

import tests.conftest  # noqa: F401  sets the environment as it is in the tests
from tests.faults.catalogue import KINDS
from tests.faults.lab import Impossible, Kind, Lab, inject
from tests.faults.table import Tally, replace_table, table
from tests.faults.world import World


def main() -> int:
    """Run the suite; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--injections", type=int, default=10, help="of each kind")
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    parser.add_argument("--seed", type=int, default=0, help="of the first injection")
    parser.add_argument("--write", type=Path, help="a document whose table is replaced")
    parser.add_argument("--world", type=Path, help="a folder that keeps the undisturbed sweep")
    given = parser.parse_args()
    kinds = [kind for kind in KINDS if given.only.lower() in kind.name.lower()]
    if not kinds:
        parser.error(f"no kind has {given.only!r} in its name: {', '.join(k.name for k in KINDS)}")
    tallies = {kind.name: Tally() for kind in kinds}
    # Seed by seed, so that a run that is stopped early has seen all kinds.
    seeds = range(given.seed, given.seed + given.injections)
    work = [(kind, seed) for seed in seeds for kind in kinds]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        world = World(given.world or Path(folder) / "world")
        try:
            for done, (kind, seed) in enumerate(work, 1):
                said = _inject(world, Path(folder) / f"{done:04d}", kind, seed, tallies[kind.name])
                left = (time.monotonic() - began) / done * (len(work) - done)
                print(f"[{done}/{len(work)}, {left / 60:.0f} min left] {said}", flush=True)
        except KeyboardInterrupt:
            print("Stopped; this is what was seen until then.")
        finally:
            world.end()
    print(table(kinds, tallies))
    if given.write is not None:
        replace_table(given.write, KINDS, tallies)
    return int(any(tally.lost for tally in tallies.values()))


def _inject(world: World, folder: Path, kind: Kind, seed: int, tally: Tally) -> str:
    """Do one injection, count it, and return a line about it."""
    began = time.monotonic()
    folder.mkdir()
    lab = Lab(world, folder, random.Random(f"{kind.name} {seed}"))
    try:
        inject(lab, kind)
        word = "nothing lost"
        tally.injections += 1
    except Impossible as reason:
        word = tally.impossible = f"not made here: {reason}"
    except Exception as error:
        traceback.print_exc()
        word = f"LOST: {error}"
        tally.injections += 1
        tally.lost += 1
    seconds = time.monotonic() - began
    return f"{kind.name}, seed {seed}: {word} ({seconds:.0f} s, exit {lab.statuses})"


if __name__ == "__main__":
    sys.exit(main())
