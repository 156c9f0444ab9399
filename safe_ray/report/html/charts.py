"""The figures of a method: rows of alpha, candidates, training, and what was taken for what."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from safe_ray.report.confusion import Confusion
from safe_ray.report.html.story import Candidate
from safe_ray.report.html.svg import axis_of, dot, line, plot, thinned
from safe_ray.report.html.tags import Child, Markup, tag

POINTS = 50
"""A line has at most as many points: a row of a hundred steps looks the same."""

LINES = 32
"""A figure has at most as many lines."""

MATRIX_AS_TABLE, MATRIX_AS_PICTURE = 20, 60
"""Up to how many classes what was taken for what is a table with numbers, and a picture."""

_LONGEST_NAME = 26
_FIRST = ("lr", "epochs", "key_lr", "key_epochs")
_LOGARITHMIC = frozenset({"lr", "key_lr", "weight_decay", "rank"})


def per_cent(value: float) -> str:
    """Return a share in per cent."""
    return f"{100 * value:.0f}"


def figure(content: Child, caption: Child, class_: str | None = None) -> Markup:
    """Return a figure with its caption."""
    return tag("figure", content, tag("figcaption", caption), class_=class_)


def knob_figure(title: str, candidates: Sequence[Candidate], samples: int) -> Markup | None:
    """Return validation accuracy over a knob: a line a candidate, the choice marked.

    Args:
        title: of the method.
        candidates: of one method.
        samples: validation images.

    Returns:
        None if no candidate has a knob that was solved by itself.
    """
    knob = next((name for c in candidates for name in c.curves), None)
    if knob is None:
        return None
    shown = _some([c for c in candidates if knob in c.curves])
    x = axis_of(knob, [v for c in shown for v in c.curves[knob].values])
    y = axis_of(
        "validation accuracy, %",
        [v for c in shown for v in c.curves[knob].accuracy],
        text=per_cent,
    )
    marks, chosen = [], None
    for candidate in sorted(shown, key=lambda c: c.chosen):
        curve = candidate.curves[knob]
        # The choice lies on its line, which therefore has all of its points.
        count = len(curve.values)
        at = thinned(count, count if candidate.chosen else POINTS)
        points = [(curve.values[i], curve.accuracy[i]) for i in at]
        marks.append(line(x, y, points, "chosen" if candidate.chosen else "other"))
        if candidate.chosen and candidate.accuracy is not None:
            chosen = candidate
    if chosen is not None and chosen.accuracy is not None:
        marks.append(dot(x, y, chosen.at[knob], chosen.accuracy, "choice", 5.0))
    said = _choice(chosen, knob)
    label = f"{title}: validation accuracy over {knob}, a line for each of {len(shown)} candidates."
    return figure(
        plot(f"{label} {said}".strip(), x, y, marks),
        f"Validation accuracy over {knob}, one line a candidate ({samples} images). {said}",
    )


def candidates_figure(title: str, candidates: Sequence[Candidate]) -> Markup | None:
    """Return the candidates by what they were trained with, darker where accuracy is higher.

    Args:
        title: of the method.
        candidates: of one method.

    Returns:
        None if they have nothing that was searched.
    """
    sound = [c for c in candidates if c.accuracy is not None]
    if not sound:
        return None
    # The candidates of a method have the same quantities.
    names = [n for n in sound[0].values if len({c.values[n] for c in candidates}) > 1]
    names.sort(key=lambda name: (*_FIRST, name).index(name))
    if not names:
        return None
    across, up = names[0], names[1] if len(names) > 1 else None

    def logarithmic(name: str) -> bool:
        return name in _LOGARITHMIC and all(c.values[name] > 0 for c in candidates)

    x = axis_of(across, [c.values[across] for c in candidates], logarithmic(across))
    heights = (
        [c.accuracy for c in sound if c.accuracy is not None]
        if up is None
        else [c.values[up] for c in candidates]
    )
    y = (
        axis_of("validation accuracy, %", heights, text=per_cent)
        if up is None
        else axis_of(up, heights, logarithmic(up))
    )
    accuracies = [c.accuracy for c in sound if c.accuracy is not None]
    low, high = min(accuracies), max(accuracies)
    marks = []
    for candidate in sorted(candidates, key=lambda c: c.chosen):
        values = ", ".join(f"{n} {v:.3g}" for n, v in candidate.values.items())
        if candidate.accuracy is None:
            if up is not None:
                at = (candidate.values[across], candidate.values[up])
                marks.append(dot(x, y, *at, "failed", title=f"{values}: diverged"))
            continue
        share = 1.0 if high == low else (candidate.accuracy - low) / (high - low)
        marks.append(
            dot(
                x,
                y,
                candidate.values[across],
                candidate.accuracy if up is None else candidate.values[up],
                "candidate picked" if candidate.chosen else "candidate",
                6.0 if candidate.chosen else 5.0,
                title=f"{values}: {100 * candidate.accuracy:.1f}%",
                fill_opacity=f"{0.12 + 0.88 * share:.2f}",
            )
        )
    what = f"{across}" if up is None else f"{across} and {up}"
    scale = f"Fuller discs are better on validation ({100 * low:.1f}% to {100 * high:.1f}%)"
    if low == high:
        scale = f"All have {100 * low:.1f}% on validation"
    ring = "; the winner has a ring." if any(c.chosen for c in candidates) else "."
    failed = len(candidates) - len(sound)
    lost = f" {failed} diverged (crossed out)." if failed else ""
    return figure(
        plot(f"{title}: {len(candidates)} candidates by {what}. {scale}{ring}{lost}", x, y, marks),
        f"The {len(candidates)} candidates by {what}. {scale}{ring}{lost}",
    )


def training_figure(title: str, candidates: Sequence[Candidate]) -> Markup | None:
    """Return training loss over epochs, a line a candidate; None if no pooling was trained."""
    trained = [c for c in candidates if any(math.isfinite(loss) for loss in c.losses)]
    shown = _some(trained)
    if not shown:
        return None
    finite = [v for c in shown for v in c.losses if math.isfinite(v)]
    x = axis_of("epoch", [1.0, float(max(len(c.losses) for c in shown))])
    # One that diverges would press all others to the floor.
    y = axis_of(
        "training loss, nats", [min(finite), min(max(finite), 4 * float(np.median(finite)))]
    )
    marks = []
    for candidate in sorted(shown, key=lambda c: c.chosen):
        at = thinned(len(candidate.losses), POINTS)
        points = [(i + 1.0, min(candidate.losses[i], y.high)) for i in at]
        marks.append(line(x, y, points, "chosen" if candidate.chosen else "other"))
    last = next((c.losses[-1] for c in shown if c.chosen), None)
    end = "" if last is None else f" The winner's ends at {last:.3g}."
    return figure(
        plot(f"{title}: training loss over epochs of {len(shown)} candidates.{end}", x, y, marks),
        f"Mean training loss of each epoch, one line a candidate.{end}",
    )


def _some(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return at most `LINES`, the winner among them."""
    if len(candidates) <= LINES:
        return list(candidates)
    best = sorted(candidates, key=lambda c: (c.chosen, c.accuracy or 0.0), reverse=True)
    return best[:LINES]


def _choice(chosen: Candidate | None, knob: str) -> str:
    if chosen is None or chosen.accuracy is None:
        return "The winner is not among them."
    return f"The choice, marked, is {knob} {chosen.at[knob]:.3g} at {100 * chosen.accuracy:.1f}%."


def confusion_figure(title: str, confusion: Confusion) -> Markup | None:
    """Return what was taken for what: numbers, or with many classes a picture; None with more."""
    names = confusion.class_names
    if len(names) > MATRIX_AS_PICTURE:
        return None
    counts = confusion.matrix()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    caption = (
        f"{title}: test images by class (rows) and by what is said (columns). "
        "The diagonal is right."
    )
    if len(names) > MATRIX_AS_TABLE:
        return figure(_picture(caption, names, shares), caption, "wide")
    header = tag(
        "tr",
        tag("th", "class", scope="col"),
        (
            tag("th", tag("span", place + 1, title=name, aria_label=name), scope="col")
            for place, name in enumerate(names)
        ),
    )
    rows = [
        tag(
            "tr",
            tag("th", f"{row + 1} {name}", scope="row"),
            (
                _cell(int(count), float(share), row == column)
                for column, (count, share) in enumerate(zip(counts[row], shares[row], strict=True))
            ),
        )
        for row, name in enumerate(names)
    ]
    table = tag("table", tag("thead", header), tag("tbody", rows), class_="matrix")
    return figure(tag("div", table, class_="scroll"), caption, "wide")


def _cell(count: int, share: float, diagonal: bool) -> Markup:
    if not count:
        return tag("td", class_="right" if diagonal else None)
    # A full cell would hide its number.
    style = f"--v:{100 * (0.1 + 0.6 * share):.0f}%"
    return tag("td", count, class_="right" if diagonal else "wrong", style=style)


def _picture(label: str, names: Sequence[str], shares: np.ndarray) -> Markup:
    """Return the matrix as squares, with the names of the rows beside them."""
    cell, beside = 8, 92
    side = len(names) * cell
    squares = [
        tag(
            "rect",
            tag("title", f"{names[i]} as {names[j]}: {100 * shares[i, j]:.0f}%"),
            x=beside + int(j) * cell,
            y=int(i) * cell,
            width=cell,
            height=cell,
            fill_opacity=f"{0.1 + 0.9 * float(shares[i, j]):.2f}",
            class_="right" if i == j else "wrong",
        )
        for i, j in zip(*np.nonzero(shares), strict=True)
    ]
    rows = [
        tag("text", _short(name), x=beside - 3, y=place * cell + 6, text_anchor="end")
        for place, name in enumerate(names)
    ]
    frame = tag("rect", x=beside, width=side, height=side, class_="frame")
    return tag(
        "svg",
        tag("g", rows, class_="names"),
        squares,
        frame,
        viewBox=f"0 -1 {beside + side + 1} {side + 2}",
        role="img",
        aria_label=label,
        class_="plot matrix-picture",
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
