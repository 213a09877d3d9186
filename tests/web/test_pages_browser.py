"""The pages in a real browser: light, dark, on a phone, with mouse, file and keyboard, and nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from flows.web.served import Site
from storage.store import Store
from tests.support.blobs import blobs_dataset
from tests.support.browser_pages import CONTRAST, OVERFLOWING
from tests.support.runs import carried_out
from tests.support.sites import served

pytestmark = pytest.mark.browser

LONG = "a-name-that-goes-on-" + "without-any-space" * 6
WINDOWS = [(1280, "light"), (768, "dark"), (360, "light"), (360, "dark")]
PAGES = ("/", "/tiny/", "/tiny/try", "/nothing/")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose data set has bright bars in row 4, 5 or 6 of 10, one class with a long name, and two runs."""
    folder = tmp_path_factory.mktemp("site")
    manifest = blobs_dataset(folder).manifest
    manifest.write_text(manifest.read_text().replace('"bar 2"', f'"{LONG}"'))
    store = Store(folder / "store")
    store.prepare()
    carried_out(store, manifest, epochs=12)
    carried_out(store, manifest, epochs=2)
    return store


@pytest.fixture(scope="module")
def url(store: Store) -> Iterator[str]:
    with served(Site(store)) as client:
        yield str(client.base_url).rstrip("/")


@dataclasses.dataclass
class Watched:
    """A page of a browser, and what went wrong in it."""

    page: Any
    problems: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def watched(browser: Any) -> Iterator[Watched]:
    context = browser.new_context(has_touch=True)
    found = Watched(context.new_page(), [], [])
    found.page.on("console", lambda message: found.problems.append(message.text))
    found.page.on("pageerror", lambda error: found.problems.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    yield found
    context.close()


@pytest.fixture
def page(watched: Watched, url: str) -> Iterator[Any]:
    """The page; after the test, nothing has gone wrong, and nothing was asked of any other server."""
    watched.problems.clear()
    watched.requests.clear()
    yield watched.page
    # A browser reports the status of what was refused.
    refusals = [text for text in watched.problems if "the server responded with a status of 4" in text]
    assert watched.problems == refusals
    assert {urlsplit(asked).netloc for asked in watched.requests if not asked.startswith("data:")} <= {
        urlsplit(url).netloc
    }


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_every_page_fits_and_can_be_read(page: Any, url: str, width: int, scheme: str):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    for address in PAGES:
        page.goto(url + address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        assert page.evaluate(OVERFLOWING) == [], address
        assert page.evaluate(CONTRAST) == [], address
        assert page.locator("h1").count() == 1


def test_from_the_first_page_to_a_report_and_back(page: Any, url: str):
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(url)
    page.locator("h2 a", has_text="tiny").click()
    page.wait_for_url("**/tiny/")
    assert page.locator("figure svg path").count() > 3
    page.locator("[aria-labelledby=runs] tbody a").last.click()
    page.wait_for_url("**/tiny/runs/*")
    assert "bar 0" in page.locator("main").inner_text()
    # The styles of the report are its own, in spite of its sandbox.
    assert page.evaluate("getComputedStyle(document.querySelector('.badge')).borderRadius") == "99px"
    assert page.evaluate("document.fonts && origin") == "null"
    page.go_back()
    page.wait_for_url("**/tiny/")


def test_by_keyboard_alone(page: Any, url: str):
    page.goto(url + "/tiny/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    seen = list[str]()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert seen[:5] == ["idxflow", "Data sets", "tiny", "Try the champion", "API"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def draw(page: Any, *points: tuple[float, float]) -> None:
    """Draw a stroke through points, as shares of the paper's width and height."""
    box = page.locator("#paper").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def test_a_drawing_is_answered_and_can_be_cleared(page: Any, url: str):
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto(url + "/tiny/try")
    draw(page, (0.15, 0.45), (0.85, 0.45))
    page.locator("#answer h2").wait_for()
    assert page.locator("#status").inner_text().startswith("v1 says: bar")
    assert page.locator("#answer meter").count() == 3
    assert page.locator("#answer ol img").count() == 8
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(CONTRAST) == []
    seen = page.locator("#answer figure img")
    levels = np.asarray(Image.open(io.BytesIO(seen.screenshot())).convert("L"))
    assert levels.max() - levels.min() > 200, "the drawing is not shown"
    page.locator("#clear").click()
    assert page.locator("#answer h2").count() == 0


def a_bar() -> bytes:
    """Return a PNG of a bright bar in row 5, which is the middle class."""
    pixels = np.zeros((10, 8), np.uint8)
    pixels[5, 1:-1] = 250
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_without_javascript_a_picture_is_answered_behind_a_password(browser: Any, store: Store):
    token = "a-token-of-24-characters"
    with served(Site(store, token=token)) as client:
        context = browser.new_context(
            java_script_enabled=False, http_credentials={"username": "anyone", "password": token}
        )
        page = context.new_page()
        page.goto(f"{client.base_url}/tiny/try")
        assert not page.locator("#paper").is_visible()
        page.locator("#fit").uncheck()
        page.locator("#picture").set_input_files({"name": "bar.png", "mimeType": "image/png", "buffer": a_bar()})
        page.locator("button[type=submit]").click()
        page.locator("#answer h2").wait_for()
        assert page.locator("#answer h2").inner_text().startswith("v1 says: bar 1, ")
        context.close()


def test_a_chosen_picture_is_answered_as_it_is_if_asked(page: Any, url: str):
    page.goto(url + "/tiny/try")
    page.locator("#fit").uncheck()
    page.locator("#picture").set_input_files({"name": "bar.png", "mimeType": "image/png", "buffer": a_bar()})
    page.locator("#answer h2").wait_for()
    assert page.locator("#answer h2").inner_text().startswith("v1 says: bar 1, ")
    assert page.locator("#answer ol b").all_inner_texts() == ["bar 1"] * 8
    page.locator("#picture").set_input_files({"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.locator("#answer .remedy").wait_for()
    assert "expected an undamaged PNG or JPEG" in page.locator("#answer").inner_text()


def test_a_picture_that_is_dropped_is_answered(page: Any, url: str):
    page.goto(url + "/tiny/try")
    page.locator("#fit").uncheck()
    dropped = page.evaluate_handle(
        """(bytes) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], "bar.png", { type: "image/png" }));
            return files;
        }""",
        list(a_bar()),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    page.locator("#answer h2").wait_for()
    assert page.locator("#answer h2").inner_text().startswith("v1 says: bar 1, ")
