"""How `make docs` turns the Markdown of this repository into pages. Each warning fails the build, broken links first.

The source folder is the repository: pages link to each other, and to files of the code, as they do where the
repository is read. A link to a file that is no page becomes a copy of the file to download.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

project = "idxflow"
with (ROOT / "pyproject.toml").open("rb") as stream:
    release = version = tomllib.load(stream)["project"]["version"]

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/*.md"]
# Folders without pages: the first two can hold many thousands of files.
exclude_patterns = [".venv*", "store", "tests", "site"]
# Two hyphens before an option are two hyphens.
smartquotes = False
# Headings become anchors under the names that code hosts give them.
myst_heading_anchors = 4

html_theme = "furo"
html_title = "idxflow"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

# What a page loads by itself, unlike a link that a reader follows.
_LOADED = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//|<link\b[^>]*\bhref="(?:https?:)?//')


def _finish(app: Any, error: Exception | None) -> None:
    """Put the way in at the top of the site, and fail the build if a page loads anything from another host."""
    if error:
        return
    way_in = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
    (Path(app.outdir) / "index.html").write_text(way_in, encoding="utf-8")
    for page in Path(app.outdir).rglob("*.html"):
        if found := _LOADED.search(page.read_text(encoding="utf-8")):
            raise ValueError(f"expected {page} to load nothing from other hosts; found {found[0]}; keep a copy here")
    for sheet in Path(app.outdir).rglob("*.css"):
        if re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")):
            raise ValueError(f"expected {sheet} to load nothing from other hosts; keep a copy of what it names here")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("build-finished", _finish)
