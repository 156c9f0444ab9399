"""The notebook of the documentation runs, and shows what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "few_shot.ipynb"
# Rounding may move a validation image, and with it the choice.
MOVES = 6.0


def printed(notebook: Any) -> str:
    """Return what the cells of a notebook have printed or returned, as text."""
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.get("name") != "stderr"
    )


def scores(text: str) -> dict[str, float]:
    """Return the scores in per cent, by what has them."""
    return {name: float(value) for name, value in re.findall(r"^(\S+) +(\d+\.\d)%$", text, re.M)}


@pytest.fixture(scope="module")
def committed() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_as_it_was_run(committed: Any) -> None:
    nbformat.validate(committed)
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert scores(printed(committed)).keys() == {"zero-shot", "tuned"}
    assert NOTEBOOK.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_prints_what_it_shows(committed: Any) -> None:
    expected = printed(committed)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    found = printed(notebook)
    assert scores(found).keys() == scores(expected).keys()
    for name, score in scores(expected).items():
        assert scores(found)[name] == pytest.approx(score, abs=MOVES), name
    for line in (
        "320 icons of 16 themes, and 316 to test on",
        "head.json head.safetensors",
        "True",
    ):
        assert line in expected
        assert line in found
