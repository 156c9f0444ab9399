"""How Sphinx builds the site: `make docs`.

The source folder is the repository's, so that a link from a page to a file means the same here and
where the repository is read. Pages are those of `include_patterns`; a link to any other file leads
to a copy of it, and one to a file or a heading that is not there is a warning.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import safe_ray

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "deploy", "pipelines", "safe_ray")

project = "safe_ray"
author = "the authors of safe_ray"
release = version = safe_ray.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
root_doc = "README"
include_patterns = ["README.md", "docs/**", "**/README.md", "safe_ray/embedded/*.md"]
# Nothing else is looked through: environments and results may lie beside them.
exclude_patterns = [
    *(found.name for found in ROOT.iterdir() if found.is_dir() and found.name not in FOLDERS),
    "docs/site",
    "**/__pycache__",
]

myst_heading_anchors = 3
# A block without a language is what a shell is given, or prints.
highlight_language = "none"
# The notebook is committed as it was run, and a test runs it.
nb_execution_mode = "off"
nb_merge_streams = True

# Docstrings put code in single quotes, as Markdown does.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {"members": True}
# The tables of contents of the API are written by hand: nothing is generated into the sources.
autosummary_generate = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"safe_ray {release}"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_additional_pages = {"index": "redirect.html"}
templates_path = ["site/templates"]

CONTENTS = {
    "Use": [
        "python",
        "notebooks/few_shot",
        "data",
        "backbones",
        "predict",
        "export",
        "serve",
        "report",
    ],
    "Search": ["methods", "selection", "tracking", "cluster", "autoscaling"],
    "Measured": ["results", "benchmark", "performance", "reliability"],
    "Inside": ["architecture"],
    "API": [f"api/{name}" for name in ("classifier", "prediction", "data", "backbones")]
    + [f"api/{name}" for name in ("poolings", "heads", "methods", "errors")],
}
"""The pages of `docs` in the order of the site, below what they are about."""
OTHERS = [
    "safe_ray/embedded/MODEL_CARD",
    "safe_ray/embedded/ATTRIBUTION",
    "pipelines/pretrain/README",
    "deploy/helm/safe-ray/README",
]


def contents() -> str:
    """Return the table of contents as MyST has it."""
    trees = {about: [f"docs/{page}" for page in pages] for about, pages in CONTENTS.items()}
    trees["Inside"] += OTHERS
    lines = []
    for about, pages in trees.items():
        lines += ["", "```{toctree}", ":hidden:", f":caption: {about}", "", *pages, "```"]
    return "\n".join(lines) + "\n"


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the table of contents at the end of the README, where only the site has it."""
    if page == root_doc:
        source[0] += contents()


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
