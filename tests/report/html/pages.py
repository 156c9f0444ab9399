"""Reads pages as a browser would, and makes stories to tell."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from safe_ray.report.confusion import Confusion, count_pairs
from safe_ray.report.html.story import Candidate, Curve, TaskStory
from safe_ray.report.html.tags import VOID
from safe_ray.report.looks import LookedAt
from tests.report.results import result


@dataclass
class Node:
    """An element: its name, its attributes, what is in it."""

    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, name: str) -> list[Node]:
        """Every element of that name below this one."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                found += [child] * (child.name == name) + child.all(name)
        return found


class Reader(HTMLParser):
    """Builds the tree, and refuses what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("root")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        node = Node(tag, dict(attrs))
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].name == tag, f"</{tag}> closes <{self._open[-1].name}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def done(self) -> Node:
        self.close()
        assert self._open == [self.root], [node.name for node in self._open]
        return self.root


def read(text: str) -> Node:
    """The tree of a page, all of whose elements are closed in their order."""
    reader = Reader()
    reader.feed(text)
    return reader.done()


def check_accessible(page: Node) -> None:
    """What a phone and a screen reader need."""
    [html] = page.all("html")
    assert html.attributes["lang"] == "en"
    metas = {meta.attributes.get("name"): meta.attributes for meta in page.all("meta")}
    assert metas["viewport"]["content"] == "width=device-width, initial-scale=1"
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert page.all("head")[0].all("title")[0].text == page.all("h1")[0].text
    levels = [
        int(node.name[1]) for node in _in_order(page) if node.name in {"h1", "h2", "h3", "h4"}
    ]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for shown in page.all("svg"):
        assert shown.attributes["role"] == "img"
        assert (shown.attributes["aria-label"] or "").strip()
        assert "width" not in shown.attributes
    for image in page.all("img"):
        assert (image.attributes["alt"] or "").strip()
    for figure in page.all("figure"):
        assert figure.all("figcaption")[0].text.strip()
    for header in page.all("th"):
        assert header.attributes["scope"] in {"row", "col"}
    ids = [n.attributes["id"] for n in _in_order(page) if "id" in n.attributes]
    assert len(set(ids)) == len(ids)
    for node in _in_order(page):
        for key in ("href", "src"):
            link = node.attributes.get(key)
            if link is not None:
                inside = link.startswith("#") and link[1:] in ids
                assert inside or link.startswith("data:image/"), link
    assert not page.all("script")
    assert not page.all("link")
    style = page.all("style")[0].text
    assert "prefers-color-scheme:dark" in style
    assert "url(" not in style
    assert "@import" not in style


def _in_order(node: Node) -> list[Node]:
    found = [node]
    for child in node.children:
        if isinstance(child, Node):
            found += _in_order(child)
    return found


def small_picture(seed: int = 0) -> bytes:
    """A WebP file as large as those of reports, of what compresses badly."""
    noise = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((96, 96)).save(file, "WEBP", quality=60)
    return file.getvalue()


def look(place: int = 0, method: str = "safe", label: str = "cat", **changes: object) -> LookedAt:
    generator = np.random.default_rng(place)
    original, tuned = generator.dirichlet(np.ones(16), 2).astype(np.float32).reshape(2, 4, 4)
    values: dict[str, object] = {
        "dataset": "foods",
        "shots": 2,
        "seed": 1,
        "method": method,
        "path": f"{place}.png",
        "label": label,
        "original_said": "dog",
        "original_probability": 0.45,
        "said": label,
        "probability": 0.875,
        "original": original,
        "tuned": tuned,
        "picture": small_picture(place),
    }
    return LookedAt(**{**values, **changes})  # type: ignore[arg-type]


def confusion(
    method: str = "safe", names: tuple[str, ...] = ("cat", "dog", "hen"), seed: int = 0
) -> Confusion:
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(names)), 10)
    said = np.where(
        generator.random(len(labels)) < 0.6,
        labels,
        generator.integers(len(names), size=len(labels)),
    )
    return Confusion("foods", 2, 1, method, names, *count_pairs(labels, said, len(names)))


def candidates(count: int = 6, epochs: int = 12, alphas: int = 101) -> list[Candidate]:
    """Candidates of SAFE: the third is the winner, and the last one diverged."""
    generator = np.random.default_rng(1)
    found = []
    for place in range(count):
        accuracy = np.clip(0.4 + 0.02 * generator.standard_normal(alphas).cumsum(), 0, 1)
        values = np.linspace(0, 1, alphas)
        best = int(accuracy.argmax())
        found.append(
            Candidate(
                {"lr": 10 ** (-4 + 0.3 * place), "weight_decay": 0.01, "epochs": epochs + place},
                {"alpha": float(values[best])},
                None if place == count - 1 else float(accuracy[best]),
                {}
                if place == count - 1
                else {"alpha": Curve(values.tolist(), accuracy.tolist(), (1 - accuracy).tolist())},
                [3.0 / (1 + 0.3 * epoch) for epoch in range(epochs)]
                + [float("nan")] * (place == 5),
                chosen=place == 2,
            )
        )
    return found


def story(dataset: str = "foods", seed: int = 1, images: int = 4, methods: int = 1) -> TaskStory:
    """A task with everything that a page can tell of it."""
    names = ("safe", "gda")[:methods]
    results = [result(dataset, seed=seed, method=name) for name in names]
    return TaskStory(
        results,
        {name: candidates() for name in names},
        {name: confusion(name, seed=place) for place, name in enumerate(("zero_shot", *names))},
        [look(place) for place in range(images)],
    )
