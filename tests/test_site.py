"""The documentation as a site: `make docs`, whose warnings are errors.

A link to a page, a heading or a file that is not there is a warning, and so is a docstring that
cannot be read.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("sphinx", reason="the site's builder is not installed")

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(1000)
PUBLIC = {
    "classifier": ["safe_ray.FewShotClassifier", "safe_ray.FewShotClassifier.fit"],
    "prediction": ["safe_ray.prediction.predictor.Predictor"],
    "data": ["safe_ray.data.manifest.load_manifest", "safe_ray.data.episodes.draw_episode"],
    "backbones": ["safe_ray.backbones.openclip.load_backbone", "safe_ray.specs.BackboneSpec"],
    "poolings": ["safe_ray.poolings.Pooling", "safe_ray.poolings.find_pooling"],
    "heads": ["safe_ray.heads.artifact.save_head", "safe_ray.heads.bank.Bank"],
    "methods": ["safe_ray.methods.base.Method", "safe_ray.methods.base.make_method"],
    "errors": ["safe_ray.errors.InputError"],
}


class Read(HTMLParser):
    """A page's anchors, and what it names: links, images, scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attributes if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if "href" in given:
            (self.loaded if tag == "link" else self.links).append(given["href"])
        if "src" in given:
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command of `make docs` builds, elsewhere."""
    recipe = (ROOT / "Makefile").read_text().partition("\ndocs:")[2].partition("\n\n")[0]
    found = re.search(r"\$\(BIN\)/python (-m sphinx .*) build/docs\n", recipe)
    assert found is not None, recipe
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, *shlex.split(found[1]), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Read]:
    return {page: Read(page) for page in site.rglob("*.html")}


def test_every_document_is_a_page_that_the_contents_name(site: Path, pages: dict[Path, Read]):
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    documents += (ROOT / "docs").glob("notebooks/*.ipynb")
    named = {(site / urlsplit(link).path).resolve() for link in pages[site / "README.html"].links}
    for document in documents:
        page = (site / document.relative_to(ROOT)).with_suffix(".html")
        assert page in pages
        assert page == site / "README.html" or page in named, page


@pytest.mark.parametrize("page", PUBLIC)
def test_what_a_person_imports_is_described(page: str, pages: dict[Path, Read], site: Path):
    assert set(PUBLIC[page]) <= pages[site / "docs" / "api" / f"{page}.html"].anchors


def test_the_notebook_shows_what_it_printed(site: Path):
    text = (site / "docs" / "notebooks" / "few_shot.html").read_text()
    assert "320 icons of 16 themes, and 316 to test on" in text
    assert "data:image/" in text


def test_every_link_leads_somewhere_in_the_site(site: Path, pages: dict[Path, Read]):
    for page, read in pages.items():
        for link in read.links + read.loaded:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            assert target.is_file(), (page, link)
            # A script of the theme answers these.
            if url.fragment and target in pages:
                assert unquote(url.fragment) in pages[target].anchors, (page, link)


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Read]):
    for page, read in pages.items():
        assert [name for name in read.loaded if urlsplit(name).netloc] == [], page


def test_the_front_page_leads_to_the_first(site: Path):
    assert "url=README.html" in (site / "index.html").read_text()
