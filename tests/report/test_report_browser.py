"""The report in a real browser, offline: nothing missing, nothing wider than the window, light and dark."""

from __future__ import annotations

import dataclasses
import io
import itertools
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import obstore.store
import pytest
from PIL import Image

from flows.commands.report import _page
from flows.dataset_in_store import DatasetInStore
from flows.reports import RunReport
from storage import copying
from storage.cloud_store import CloudStore
from storage.datasets import catalog
from storage.opening import open_store
from storage.records import HTML, Failure, Report, RunRecord
from storage.registry import Registry
from storage.store import Store
from tasks.publish import publish
from tests.support.browser_pages import CONTRAST, DEAD_LINKS, OVERFLOWING
from tests.support.browser_reports import real_digits, refused, synthetic, with_a_past
from tests.support.object_servers import ObjectServer

pytestmark = pytest.mark.browser

LONG = "a name that goes on and on-" + "without-any-space" * 12


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports of several kinds of run, by name."""
    store = Store(tmp_path_factory.mktemp("reports"))
    dataset = catalog.find("digits")
    complete = real_digits(store, dataset)
    names = tuple(f"{n} {LONG}" for n in range(10))
    long_names = dataclasses.replace(
        dataset, title=LONG, classes=names, citation=LONG, homepage=f"https://x.org/{LONG}"
    )
    many = synthetic(store, classes=62, shape=(64, 64))
    two = synthetic(store, classes=2, shape=(8, 8))
    with_a_past(store, dataset, complete)
    reports = {
        "complete": (dataset, complete),
        "refused": (dataset, refused(complete)),
        "long-names": (long_names, dataclasses.replace(complete, failure=Failure(LONG, LONG, 1), asked_by=LONG)),
        "many-classes": many,
        "nothing": (dataset, RunRecord("x", "digits", "", "command line", "default", {})),
        "two-classes": two,
    }
    return {
        name: publish.fn(Registry(store, dataset.name), dataset, dataclasses.replace(run, id=name)).record.html
        for name, (dataset, run) in reports.items()
    }


WINDOWS = [
    *itertools.product(["complete", "refused"], [375, 768, 1280], ["light", "dark"]),
    *itertools.product(["long-names", "many-classes", "two-classes", "nothing"], [375], ["light"]),
    *itertools.product(["long-names", "many-classes", "two-classes", "nothing"], [1280], ["dark"]),
]


Offline = tuple[Any, list[str], list[str]]


@pytest.fixture(scope="module")
def offline(browser: Any) -> Iterator[Offline]:
    """A page without a network, what its console and its errors said, and the addresses that it asked for."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    yield page, problems, requests
    context.close()


@pytest.mark.parametrize(("name", "width", "scheme"), WINDOWS)
def test_report_in_a_browser(offline: Offline, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    page, problems, requests = offline
    problems.clear()
    requests.clear()
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(pages[name].as_uri())
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [pages[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(DEAD_LINKS) == []
    assert page.locator("h1").count() == 1
    assert page.locator("h2").count() >= (1 if name == "nothing" else 4)


def test_pictures_are_drawn(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["complete"].as_uri())
    sprite = page.locator(".s-examples .sprite").first
    assert sprite.bounding_box()["width"] == 64
    levels = np.asarray(Image.open(io.BytesIO(sprite.screenshot())).convert("L"))
    assert levels.max() - levels.min() > 200, "the sheet of examples is not shown"
    assert page.locator("figure svg").count() == 8
    page.close()


def rows(page: Any, heading: str) -> list[list[str]]:
    """Return the texts of the table that a heading names."""
    table_rows = page.locator(f"[role=region][aria-labelledby={heading}] tbody tr")
    return [[cell.strip() for cell in row.locator("th, td").all_inner_texts()] for row in table_rows.all()]


def test_a_person_finds_what_each_section_is_for(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["complete"].as_uri())
    assert page.locator("main > section").evaluate_all("sections => sections.map(s => s.id)") == [
        *("verdict", "changes", "data", "checks", "training", "test", "mistakes", "decision", "trend", "timing"),
        "lineage",
    ]
    assert all(p.count(".") >= 1 and p for p in page.locator(".meaning").all_inner_texts())
    assert page.locator("h1").inner_text() == "The champion stays version 3"
    assert ["Parameters", "learning_rate", "0.02", "0.01"] in rows(page, "changes-title")
    assert ["Parameters", "hidden", "100, 50", "50, 50"] in rows(page, "changes-title")
    assert page.locator("#data .tiles li").count() == 10
    assert page.locator("#data .sprite").count() == 20
    tops = page.locator("#data .tiles li").evaluate_all("all => all.map(e => e.getBoundingClientRect().top)")
    assert [tops.count(top) for top in sorted(set(tops))] == [5, 5], "not two rows of five"
    assert page.locator("#checks .sprite").count() == 15
    assert page.locator("#training figure svg").count() == 5
    recalls = [float(row[2].rstrip("%")) for row in rows(page, "per-class")]
    assert recalls == sorted(recalls)
    assert page.locator("#test .matrix td").count() == 100
    assert page.locator("#test .matrix small").count() > 5
    assert page.locator("#test figure svg").count() == 1
    assert [row[0].split(":")[0] for row in rows(page, "slices")] == ["Ink"] * 4 + ["Slant"] * 4
    assert page.locator("#mistakes .s-mistakes li").count() == 25
    assert page.locator("#mistakes .s-lost li").count() == 8
    assert page.locator("#mistakes .s-gained li").count() == 6
    assert [row[0] for row in rows(page, "paired")] == ["This model right", "This model wrong"]
    assert page.locator("#trend figure svg").count() == 2
    assert len(rows(page, "timing-title")) == 2
    assert page.locator("#lineage pre").inner_text().startswith("idxflow run digits --profile default")
    page.close()


def test_on_a_phone_verdicts_are_in_sight_and_what_holds_is_folded(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages["complete"].as_uri())
    badges = page.locator("table.checks:visible .badge, table.rules:visible .badge").all()
    assert len(badges) >= 2
    for badge in badges:
        box = badge.bounding_box()
        assert box["x"] + box["width"] <= 390 - 16, badge.evaluate("e => e.closest('tr').innerText")
    assert page.locator("#checks .badge.good:visible").count() == 0
    page.locator("#checks summary").click()
    assert page.locator("#checks .badge.good:visible").count() == 1
    page.close()


def test_details_open_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["complete"].as_uri())
    page.locator("#trend summary").focus()
    page.keyboard.press("Enter")
    page.locator("#trend details table").wait_for(state="visible")
    assert len(rows(page, "trend-title")) == 30
    page.close()


def test_keyboard_reaches_the_result_first(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["complete"].as_uri())
    page.keyboard.press("Tab")
    focused = page.evaluate("[document.activeElement.textContent, document.activeElement.getBoundingClientRect().left]")
    assert focused[0] == "Skip to the result"
    assert focused[1] >= 0
    page.close()


def test_print_shows_everything_on_white(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(pages["complete"].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.locator("#checks details table").bounding_box()["height"] > 20
    assert page.evaluate(CONTRAST) == []
    page.close()


@pytest.fixture
def remote(
    pages: dict[str, Path], object_storage: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> CloudStore:
    """The store of the reports, copied to object storage."""
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IDXFLOW_CACHE", str(tmp_path / "cache"))
    remote = open_store(object_storage.address)
    assert isinstance(remote, CloudStore)
    copying.copy(Store(pages["complete"].parents[3]), remote, "digits")
    return remote


def test_a_page_in_object_storage_is_a_page_for_the_browser(
    browser: Any,
    pages: dict[str, Path],
    remote: CloudStore,
    object_storage: ObjectServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = remote.get("digits", "publish", "complete", Report)
    key = report.entry.where(HTML).removeprefix(remote.objects.where("") + "/")
    client = obstore.store.from_url(object_storage.address.partition("?")[0], config=object_storage.config)
    page = browser.new_page()
    answer = page.goto(obstore.sign(client, "GET", key, timedelta(minutes=5)))
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    headings = page.locator("h2").all_inner_texts()
    # `idxflow report --open` has the browser show a file, which shows the same.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shown = _page(DatasetInStore(remote, "digits"), RunReport("complete", report, None), None, open_=True)
    assert shown.where == report.entry.where(HTML)
    assert shown.file
    assert shown.file.is_relative_to(tmp_path)
    assert shown.file.read_bytes() == pages["complete"].read_bytes()
    page.goto(shown.file.as_uri())
    assert page.locator("h2").all_inner_texts() == headings != []
    page.close()
