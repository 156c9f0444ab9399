"""The comparison as a page: a sweep's own report made again, or several sweeps side by side."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from safe_ray.comparison.tables import Table
from safe_ray.files import write_atomically
from safe_ray.report.correct import read_correct
from safe_ray.report.html.charts import figure
from safe_ray.report.html.page import Page, accuracy_part, render, table
from safe_ray.report.html.tags import Markup, tag
from safe_ray.report.summary import SUMMARY_FILE, in_order, read_summary


def write_page(
    folders: Sequence[Path],
    head: Sequence[str],
    tables: Sequence[Table],
    figures: Mapping[str, bytes],
    file: Path,
) -> Path:
    """Write the page of a comparison, and return its path.

    Args:
        folders: of the sweeps; of one that has its summary everything is told.
        head: what is said of the comparison.
        tables: of the comparison.
        figures: PNG files, by what they show.
        file: where to.

    Raises:
        InputError: a file of a sweep is damaged, or the page cannot be written.
    """
    compared = comparison_part(head, tables, figures)
    ended = [folder for folder in folders if (folder / SUMMARY_FILE).is_file()]
    if len(folders) == 1 and ended:
        # Its module reads the sweep's own records, for which torch has to be imported.
        from safe_ray.sweep.page import make_page

        return make_page(folders[0], file, extra=compared)
    parts = [compared]
    for folder in ended:
        results = in_order(read_summary(folder))
        parts.append(accuracy_part(results, read_correct(folder), f"Sweep {folder.name}"))
    title = f"{len(folders)} sweep{'s' * (len(folders) != 1)} compared"
    write_atomically(file, render(Page(title, (), (), extra=parts)))
    return file


def comparison_part(
    head: Sequence[str], tables: Sequence[Table], figures: Mapping[str, bytes]
) -> Markup:
    """Return the section of a comparison.

    Args:
        head: what is said of it.
        tables: of it.
        figures: PNG files, by what they show.
    """
    drawn = [
        figure(
            tag(
                "img",
                src=f"data:image/png;base64,{base64.b64encode(content).decode()}",
                alt=what,
                class_="drawing",
            ),
            what,
        )
        for what, content in figures.items()
    ]
    return tag(
        "section",
        tag("h2", "Comparison of methods"),
        (tag("p", sentence) for sentence in head),
        tag("div", drawn, class_="pair") if drawn else None,
        (
            (
                table(one.title, one.columns, [(row, None) for row in one.rows], frozenset()),
                (tag("p", note, class_="soft") for note in one.notes),
            )
            for one in tables
        ),
    )
