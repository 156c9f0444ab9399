"""Run every bench, print a table, and write docs/performance.json.

python -m bench            all of them, some minutes
python -m bench --quick    tiny forms that prove nothing; nothing is written
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.harness import arguments

# It runs two whole sweeps, which take as long as all the others together: python -m bench.transfer
LONG = ("transfer",)
SCRIPTS = sorted(
    file.stem
    for file in Path(__file__).parent.glob("*.py")
    if '__name__ == "__main__"' in file.read_text()
    and not file.stem.startswith("_")
    and file.stem not in LONG
)
RESULTS = Path(__file__).parents[1] / "docs" / "performance.json"


def run(script: str, quick: bool) -> dict[str, Any]:
    """Run one script and return its last line."""
    command = [sys.executable, "-m", f"bench.{script}", *(["--quick"] if quick else [])]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(f"== {script}\n{output}", flush=True)
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    """Run them all, one after another, for each uses all cores."""
    quick = arguments(str(__doc__)).quick
    results = [run(script, quick) for script in SCRIPTS]
    print(f"{'bench':<20}{'ratio':>8}  target")
    for result in results:
        sign = "<=" if result["at_most"] else ">="
        verdict = "holds" if result["holds"] else "MISSED"
        print(f"{result['bench']:<20}{result['ratio']:>8.2f}  {sign} {result['target']}  {verdict}")
    if not quick:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
