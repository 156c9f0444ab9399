"""The page as a whole, and how much of it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_ray.report.cells import Section, columns_of, notes, sections
from safe_ray.report.confusion import Confusion
from safe_ray.report.correct import Correct
from safe_ray.report.html import charts
from safe_ray.report.html.pictures import looks_part
from safe_ray.report.html.story import TaskStory
from safe_ray.report.html.style import STYLE
from safe_ray.report.html.tags import Child, Markup, joined, tag
from safe_ray.report.outcomes import Outcomes
from safe_ray.report.summary import ZERO_SHOT, TaskResult
from safe_ray.specs import ALL_SHOTS, shots_in_words

REPORT_FILE = "report.html"
LARGEST = 5_000_000
"""A page has fewer bytes: of a sweep that would make more, some details are left out."""

EXTREMES = 5
"""How many classes are the best ones, and the worst."""

_TO_THE_LEFT = frozenset({"data set", "method", "chosen by", "seeds"})


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    Attributes:
        title: its heading.
        results: an entry a task and method.
        stories: of the tasks.
        correct: which test images were right, for the intervals.
        missing: why tasks have no result, by their names.
        extra: what follows the table, such as a comparison.
    """

    title: str
    results: Sequence[TaskResult]
    stories: Sequence[TaskStory]
    correct: Sequence[Correct] = ()
    missing: Sequence[str] = ()
    extra: Child = None


@dataclass(frozen=True)
class Detail:
    """How much is told.

    Attributes:
        methods: whether each method of a task has figures, or only the one that is shown.
        charts: whether there are figures at all.
        pictures: whether there are images.
        without: what a reader is told about it.
    """

    methods: bool = True
    charts: bool = True
    pictures: bool = True
    without: str = ""


DETAILS = (
    Detail(),
    Detail(
        methods=False, without="Of each task one method has figures, so that the page stays small."
    ),
    Detail(methods=False, pictures=False, without="There are too many tasks for images."),
    Detail(
        methods=False, charts=False, pictures=False, without="There are too many tasks for figures."
    ),
)


def render(page: Page, largest: int = LARGEST) -> str:
    """Return the page with as many details as fit into so many bytes."""
    text = ""
    for detail in DETAILS:
        text = document(page, detail)
        if len(text.encode()) <= largest:
            break
    return text


def document(page: Page, detail: Detail = DETAILS[0]) -> str:
    """Return the page with so many details."""
    body = (
        tag("a", "To the tasks", href="#tasks", class_="skip") if page.stories else None,
        tag("header", tag("h1", page.title), tag("p", _opening(page)) if page.results else None),
        tag(
            "main",
            accuracy_part(page.results, page.correct) if page.results else None,
            page.extra,
            tag("p", f"Without a result: {', '.join(page.missing)}.") if page.missing else None,
            tag("p", detail.without, class_="soft") if detail.without else None,
            _contents(page.stories),
            (_task(story, place, detail) for place, story in enumerate(page.stories)),
        ),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", page.title),
        tag("style", Markup(STYLE)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", *body), lang="en") + "\n"


def _opening(page: Page) -> str:
    methods = list(dict.fromkeys(result.title for result in page.results))
    backbones = ", ".join(dict.fromkeys(result.backbone for result in page.results))
    tasks = len({(r.dataset, r.shots, r.seed) for r in page.results})
    return f"{tasks} task{'s' * (tasks != 1)} with {', '.join(methods)} on {backbones}."


def accuracy_part(
    results: Sequence[TaskResult],
    correct: Sequence[Correct] = (),
    heading: str = "Test accuracy",
) -> Markup:
    """Return the section with the tables of a sweep, which are those of its `results.md`.

    Args:
        results: an entry a task and method.
        correct: which test images were right, for the intervals.
        heading: of the section.
    """
    parts = sections(results, Outcomes(correct) if correct else None)
    names = [name for name, _ in columns_of(results)]
    return tag(
        "section",
        tag("h2", heading),
        (_section(part, names) for part in parts),
        (tag("p", note, class_="soft") for note in notes(results, parts)),
    )


def _section(part: Section, names: Sequence[str]) -> Markup:
    rows = [
        (cells, "average" if row.is_average else None)
        for row, cells in zip(part.rows, part.cells, strict=True)
    ]
    caption = part.title or "Test accuracy in per cent, over all images"
    return table(caption, names, rows, frozenset(names) & _TO_THE_LEFT)


def table(
    caption: Child,
    names: Sequence[str],
    rows: Sequence[tuple[Sequence[Child], str | None]],
    to_the_left: frozenset[str] = _TO_THE_LEFT,
) -> Markup:
    """Return a table that scrolls by itself where it is too wide; each row may have a class."""
    # The first column has the names of the rows.
    sides = ["text" if i == 0 or n in to_the_left else None for i, n in enumerate(names)]
    header = tag(
        "tr", (tag("th", n, scope="col", class_=s) for n, s in zip(names, sides, strict=True))
    )
    lines = [
        tag(
            "tr",
            tag("th", cells[0], scope="row"),
            (tag("td", c, class_=s) for c, s in zip(cells[1:], sides[1:], strict=True)),
            class_=kind,
        )
        for cells, kind in rows
    ]
    inside = tag(
        "table", tag("caption", tag("span", caption)), tag("thead", header), tag("tbody", lines)
    )
    # What scrolls can be reached by the keyboard.
    return tag(
        "div", inside, class_="scroll", tabindex="0", role="region", aria_label=_plain(caption)
    )


def _plain(caption: Child) -> str:
    return caption if isinstance(caption, str) and not isinstance(caption, Markup) else "table"


def _contents(stories: Sequence[TaskStory]) -> Markup | None:
    if not stories:
        return None
    entries = (
        tag("li", tag("a", story.name, href=f"#task-{place}"))
        for place, story in enumerate(stories)
    )
    return tag("nav", tag("h2", "Tasks", id="tasks"), tag("ol", entries), aria_label="Tasks")


def _shots(shots: int) -> str:
    return "All training images" if shots == ALL_SHOTS else f"{shots_in_words(shots)} a class"


def _task(story: TaskStory, place: int, detail: Detail) -> Markup:
    anchor = f"task-{place}"
    shown = story.shown
    protocol = shown.protocol
    methods = [result for result in story.results if detail.methods or result is shown]
    facts = (
        f"{_shots(shown.shots)}, seed {shown.seed}: "
        f"{protocol.support_samples} support images, chosen on {protocol.validation_samples} "
        f"validation images ({protocol.selection}), {shown.test.samples} test images."
    )
    return tag(
        "section",
        tag("h2", story.name, id=anchor),
        tag("p", facts),
        _results(story),
        (_method(story, result, detail) for result in methods) if detail.charts else None,
        _pictures(story, anchor) if detail.pictures else None,
        tag("p", tag("a", "To the list of tasks", href="#tasks")),
        aria_labelledby=anchor,
    )


def _results(story: TaskStory) -> Markup:
    def cells(title: str, result: TaskResult, method: str) -> Sequence[Child]:
        test = result.test
        shown = [test.accuracy, test.mean_per_class, test.ece]
        return [title, *(f"{100 * figures[method]:.1f}" for figures in shown)]

    first = story.results[0]
    others = [result for result in story.results if result.method != ZERO_SHOT]
    rows = [cells("zero-shot", first, ZERO_SHOT)]
    rows += [cells(result.title, result, result.method) for result in others]
    names = ["method", "accuracy, %", "mean per class, %", "calibration error, %"]
    caption = f"The test images of {first.dataset}"
    chosen = [
        tag(
            "p",
            f"{result.title} was chosen with "
            + ", ".join(f"{name} {value:.3g}" for name, value in result.best.items())
            + ".",
            class_="soft",
        )
        for result in others
        if result.best
    ]
    return joined([table(caption, names, [(row, None) for row in rows]), chosen])


def _method(story: TaskStory, result: TaskResult, detail: Detail) -> Markup | None:
    candidates = story.candidates.get(result.method, ())
    title = result.title
    samples = result.protocol.validation_samples
    drawn = [
        charts.knob_figure(title, candidates, samples),
        charts.candidates_figure(title, candidates),
        charts.training_figure(title, candidates),
    ]
    figures = [one for one in drawn if one is not None]
    confusion = story.confusions.get(result.method)
    if not figures and confusion is None:
        return None
    return joined(
        [
            tag("h3", title if len(story.results) > 1 else f"How {title} was chosen"),
            tag("div", figures, class_="figures") if figures else None,
            _classes(story, result, confusion),
        ]
    )


def _classes(story: TaskStory, result: TaskResult, confusion: Confusion | None) -> Child:
    if confusion is None:
        return None
    before = story.confusions.get(ZERO_SHOT)
    accuracy, samples = confusion.class_accuracy, confusion.samples
    order = [int(i) for i in np.argsort(accuracy, kind="stable") if samples[i]]
    worst = order[:EXTREMES]
    best = [i for i in reversed(order) if i not in worst][:EXTREMES]

    def row(index: int) -> tuple[Sequence[Child], None]:
        old = "-" if before is None else f"{100 * before.class_accuracy[index]:.0f}"
        name = confusion.class_names[index]
        return [name, int(samples[index]), old, f"{100 * accuracy[index]:.0f}"], None

    names = ["class", "images", "zero-shot, %", f"{result.title}, %"]
    left = frozenset({"class"})
    tables = [table("The worst classes", names, [row(i) for i in worst], left)]
    if best:
        tables.insert(0, table("The best classes", names, [row(i) for i in best], left))
    mistaken = [
        ([confusion.class_names[i], confusion.class_names[j], count], None)
        for count, i, j in confusion.mistaken()[:EXTREMES]
    ]
    if mistaken:
        heads = ["class", "taken for", "images"]
        most = table("Most often taken for another", heads, mistaken, frozenset(heads[:2]))
        tables.append(most)
    return (
        tag("h4", "Classes"),
        tag("div", tables, class_="pair"),
        charts.confusion_figure(result.title, confusion),
    )


def _pictures(story: TaskStory, anchor: str) -> Child:
    title = story.shown.title
    part = looks_part(story.looks, title, f"{anchor}-look")
    if part is None:
        return None
    how = (
        f"Heat shows how much each place counts in what the attention pooling returns: the "
        f"original one, and that of {title}. Bright is much, violet is little; the two of an image "
        "share a scale. Of a class, images that only one of the two gets right come first, then "
        "the first of the test split."
    )
    return tag("h3", "Where they look"), tag("p", how, class_="soft"), part
