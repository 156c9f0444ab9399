"""The page of a sweep: whole, escaped, readable by everybody, and small."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from safe_ray.report.cells import columns_of, sections
from safe_ray.report.html import page as page_module
from safe_ray.report.html.page import LARGEST, Page, document, render
from safe_ray.report.html.story import TaskStory
from safe_ray.report.html.tags import Markup, tag
from safe_ray.specs import ALL_SHOTS
from tests.report.html.pages import (
    Node,
    candidates,
    check_accessible,
    confusion,
    look,
    read,
    story,
)
from tests.report.results import result


def page_of(*stories: TaskStory, **changes: object) -> Page:
    results = [entry for one in stories for entry in one.results]
    return replace(Page("Sweep first", results, stories), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page() -> Node:
    return read(render(page_of(story(methods=2), story("birds", seed=3))))


def table(page: Node, caption: str) -> list[list[str]]:
    [found] = [
        t for t in page.all("table") if t.all("caption") and t.all("caption")[0].text == caption
    ]
    return [[cell.text for cell in row.all("th") + row.all("td")] for row in found.all("tr")]


def test_it_can_be_read_on_a_phone_and_by_a_screen_reader(page: Node) -> None:
    check_accessible(page)


def test_the_table_is_that_of_the_summary(page: Node) -> None:
    results = [*story(methods=2).results, *story("birds", seed=3).results]
    [part] = sections(results)
    header, *rows = table(page, "Test accuracy in per cent, over all images")
    assert header == [name for name, _ in columns_of(results)]
    assert rows == [list(cells) for cells in part.cells]


def test_a_task_has_its_figures_for_each_method(page: Node) -> None:
    first, second = [s for s in page.all("section") if s.attributes.get("aria-labelledby")]
    assert first.all("h2")[0].text == "foods-2shot-seed1"
    assert [h.text for h in first.all("h3")] == ["SAFE", "GDA", "Where they look"]
    captions = [c.text for c in second.all("figcaption")]
    winner = candidates()[2]
    assert winner.accuracy is not None
    assert (
        f"Validation accuracy over alpha, one line a candidate (40 images). The choice, marked, is "
        f"alpha {winner.at['alpha']:.3g} at {100 * winner.accuracy:.1f}%." in captions
    )
    assert any(c.startswith("The 6 candidates by lr and epochs.") for c in captions)
    assert any("1 diverged (crossed out)" in c for c in captions)
    assert any(c.startswith("Mean training loss of each epoch") for c in captions)
    plots = [s for s in second.all("svg") if s.attributes.get("class") == "plot"]
    lines = [p.attributes["class"] for p in plots[0].all("path")]
    assert lines.count("other") == 4
    assert lines.count("chosen") == 1
    assert [c.attributes["class"] for c in plots[0].all("circle")] == ["choice"]
    discs = [c.attributes["class"] for c in plots[1].all("circle")]
    assert sorted(discs) == ["candidate"] * 4 + ["candidate picked", "failed"]


def test_what_was_taken_for_what_is_a_table_of_the_counts(page: Node) -> None:
    [first, *_] = [t for t in page.all("table") if t.attributes.get("class") == "matrix"]
    rows = [[cell.text for cell in row.all("td")] for row in first.all("tbody")[0].all("tr")]
    counts = [[int(cell or 0) for cell in row] for row in rows]
    assert counts == confusion("safe", seed=1).matrix().tolist()
    assert [cell.text for cell in first.all("tbody")[0].all("th")] == ["1 cat", "2 dog", "3 hen"]


def test_the_best_and_the_worst_classes_are_named() -> None:
    names = tuple(f"class {place}" for place in range(12))
    told = replace(
        story(images=0),
        confusions={
            name: confusion(name, names, seed) for seed, name in enumerate(("zero_shot", "safe"))
        },
    )
    page = read(render(page_of(told)))
    accuracy = told.confusions["safe"].class_accuracy
    header, *best = table(page, "The best classes")
    assert header == ["class", "images", "zero-shot, %", "SAFE, %"]
    _, *worst = table(page, "The worst classes")
    for rows, expected in ((best, np.sort(accuracy)[::-1][:5]), (worst, np.sort(accuracy)[:5])):
        assert [float(row[3]) for row in rows] == pytest.approx((100 * expected).round())
        for name, images, before, after in rows:
            place = names.index(name)
            assert (images, after) == ("10", f"{100 * accuracy[place]:.0f}")
            assert before == f"{100 * told.confusions['zero_shot'].class_accuracy[place]:.0f}"
    _, *mistaken = table(page, "Most often taken for another")
    assert [int(row[2]) for row in mistaken] == [
        m[0] for m in told.confusions["safe"].mistaken()[:5]
    ]


@pytest.mark.parametrize(("classes", "kind"), [(40, "picture"), (80, "nothing")])
def test_many_classes_are_a_picture_and_very_many_none(classes: int, kind: str) -> None:
    names = tuple(f"class {place}" for place in range(classes))
    told = replace(story(images=0), confusions={"safe": confusion("safe", names)})
    page = read(render(page_of(told)))
    check_accessible(page)
    pictures = [s for s in page.all("svg") if "matrix-picture" in (s.attributes["class"] or "")]
    assert len(pictures) == (kind == "picture")
    for picture in pictures:
        assert len(picture.all("rect")) - 1 == len(told.confusions["safe"].count)


def test_images_are_shown_with_both_looks_and_what_is_said(page: Node) -> None:
    shown = [f for f in page.all("figure") if f.attributes.get("class") == "look"]
    assert len(shown) == 8
    first = shown[0]
    assert (
        first.all("figcaption")[0].text
        == "cat. Original: dog at 45%, wrong. SAFE: cat at 88%, right."
    )
    photo, original, tuned = first.all("svg")
    assert photo.attributes["aria-label"] == "A test image of the class cat"
    assert (original.attributes["aria-label"] or "").startswith(
        "Where original looks: most at the "
    )
    assert (tuned.attributes["aria-label"] or "").startswith("Where SAFE looks: most at the ")
    # The image is there once, and is shown three times.
    assert len(photo.all("image")) == len(original.all("image")) == len(tuned.all("image")) == 1
    name = photo.all("image")[0].attributes["id"]
    assert [p.all("use")[0].attributes["href"] for p in (original, tuned)] == [f"#{name}"] * 2


def test_an_image_that_could_not_be_read_is_said_to_be_missing() -> None:
    told = replace(story(), looks=[look(picture=None)])
    page = read(render(page_of(told)))
    check_accessible(page)
    [shown] = [f for f in page.all("figure") if f.attributes.get("class") == "look"]
    assert "no picture" in shown.text


NASTY = "<script>alert('x')</script>\"&amp;"


def test_whatever_comes_from_data_is_escaped() -> None:
    names = (NASTY, "dog", "hen")
    told = replace(
        story(),
        results=[replace(result(), dataset=NASTY, title=NASTY, backbone=NASTY)],
        confusions={"safe": confusion("safe", names)},
        looks=[look(label=NASTY, said=NASTY, original_said=NASTY, path=NASTY)],
    )
    for classes in (names, tuple(NASTY + str(n) for n in range(30))):
        own = replace(told, confusions={"safe": confusion("safe", classes)})
        text = render(page_of(own, title=NASTY, missing=(NASTY,)))
        page = read(text)
        check_accessible(page)
        assert NASTY not in text
        assert page.all("h1")[0].text == NASTY
        assert NASTY in page.all("figcaption")[-1].text
        assert any(NASTY in (s.attributes["aria-label"] or "") for s in page.all("svg"))


def test_fifty_tasks_with_two_methods_stay_below_five_megabytes() -> None:
    stories = [story("foods", seed, images=6, methods=2) for seed in range(1, 51)]
    text = render(page_of(*stories))
    assert len(text.encode()) < LARGEST == 5_000_000
    page = read(text)
    assert len([f for f in page.all("figure") if f.attributes.get("class") == "look"]) == 300
    assert len([s for s in page.all("svg") if s.attributes.get("class") == "plot"]) >= 150


def test_what_does_not_fit_is_left_out_and_that_is_said() -> None:
    page = page_of(*(story("foods", seed, methods=2) for seed in range(1, 4)))
    sizes = [len(document(page, detail).encode()) for detail in page_module.DETAILS]
    assert sizes == sorted(sizes, reverse=True)
    for size, detail in zip(sizes, page_module.DETAILS, strict=True):
        text = render(page, size)
        assert len(text.encode()) <= size
        check_accessible(read(text))
        assert detail.without in text
    # The table is never left out.
    assert "Test accuracy in per cent" in render(page, 0)


def test_a_task_of_which_nothing_more_is_known_has_its_accuracies() -> None:
    page = read(render(page_of(TaskStory([result()]), TaskStory([result(method="zero_shot")]))))
    check_accessible(page)
    assert not page.all("figure")


def test_a_task_with_all_training_images_says_so() -> None:
    text = render(page_of(TaskStory([result(shots=ALL_SHOTS)])))
    assert "All training images, seed 1: " in text
    assert str(ALL_SHOTS) not in text


def test_markup_is_made_of_text_unless_it_is_markup() -> None:
    assert tag("p", "a < b", Markup("<b>c</b>"), None, ["d", 1]) == "<p>a &lt; b<b>c</b>d1</p>"
    assert tag("td", class_="x", data_y='"', hidden=True, id=None) == (
        '<td class="x" data-y="&quot;" hidden></td>'
    )
    assert re.fullmatch(r'<circle cx="3" r="1.5"></circle>', tag("circle", cx=3.0, r=1.49999))
