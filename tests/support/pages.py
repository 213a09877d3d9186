"""What holds for every report: it reads strictly, loads nothing, runs nothing, and is accessible."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from html.parser import HTMLParser

from markdown_it import MarkdownIt

from storage.datasets.catalog import Dataset
from storage.records import RunRecord
from storage.registry import Registry
from storage.store import Store
from tasks.publish import compose
from tasks.report import rendering

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "rect", "use", "image"}
CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
CHARTS = ("loss", "accuracy", "gradients", "rate", "seconds", "calibration", "trend", "duration")


class Page(HTMLParser):
    """Reads a page strictly: every element that is opened is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"attribute twice in {tag}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)
        if any(re.fullmatch("h[1-6]", tag) for tag in self._open):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def check_page(text: str, homepage: str = "") -> Page:
    """Read a page and check all that holds for every page."""
    page = Page(text)
    check_harmless(page, text, homepage)
    check_accessible(page)
    assert len(text.encode()) < rendering.MAX_HTML_BYTES
    for raw in ("None", "nan", "Undefined", "dataclass", "PosixPath", "object at 0x", "np.float"):
        assert raw not in page.words(), f"raw {raw} on the page"
    assert not re.search(r"\d\.\d{7,}", page.words()), "a number that is not rounded"
    return page


def check_harmless(page: Page, text: str, homepage: str) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "img", "foreignobject", "animate", "b2"}
    policies = [a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv")]
    assert policies == [CSP]
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{name} on {tag}"
            assert not re.match(r"\s*(javascript|vbscript):", value, re.IGNORECASE)
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                check_address(tag, attributes, value, homepage)
    assert set(re.findall(r"url\((.{0,5})", text)) <= {"data:", *(f"#{name}"[:5] for name in CHARTS)}
    assert "@import" not in text


def check_address(tag: str, attributes: Mapping[str, str], value: str, homepage: str) -> None:
    if value.startswith("http"):
        assert tag == "a"
        assert value == homepage
        assert attributes["rel"] == "noopener noreferrer"
    else:
        assert value.startswith(("#", "data:"))


def check_accessible(page: Page) -> None:
    identities = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identities) == len(set(identities)), "an identifier twice"
    levels = [level for level, _ in page.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    assert all(title.strip() for _, title in page.headings)
    for tag, a in page.elements:
        assert tag != "th" or a.get("scope") in ("col", "row")
        assert a.get("role") not in ("img", "region") or a.get("aria-label") or a.get("aria-labelledby")
        assert "aria-labelledby" not in a or a["aria-labelledby"] in identities
        if tag == "a" and a["href"].startswith("#"):
            assert a["href"][1:] in identities
    assert next(a for tag, a in page.elements if tag == "html")["lang"] == "en"


def check_markdown(text: str, homepage: str = "") -> list[str]:
    """Read Markdown with a reader that lets every link through; return its headings."""
    assert len(text.encode()) < rendering.MAX_MARKDOWN_BYTES
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    reader.validateLink = lambda url: True  # type: ignore[method-assign]
    tokens = reader.parse(text)
    inline = [child for token in tokens for child in token.children or []]
    assert not {"html_block", "html_inline"} & {token.type for token in (*tokens, *inline)}
    assert {str(t.attrGet("href")) for t in inline if t.type == "link_open"} <= {homepage}
    assert all(str(t.attrGet("src")).startswith("data:image/svg+xml;base64,") for t in inline if t.type == "image")
    # GitHub's flavour makes links of bare addresses.
    bare = re.sub(r"\]\(<[^>]*>\)|^```$.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\):(?=//)|www(?<!\\)\.", bare)
    return [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]


def both(store: Store, dataset: Dataset, run: RunRecord) -> tuple[Page, str]:
    """Return the page and the Markdown of a run, after the checks that hold for all of them."""
    document = compose(Registry(store, dataset.name), dataset, run)
    text = document.markdown("tiny/7-reports/x/report.html")
    data = document.values["data"]
    homepage = rendering.link(data["homepage"]) if data else ""
    check_markdown(text, homepage)
    return check_page(document.html(), homepage), text


def pictured(page: Page) -> list[str]:
    """Return what each small picture of a page is said to show."""
    return [a["aria-label"] for _, a in page.elements if a.get("class") == "sprite"]
