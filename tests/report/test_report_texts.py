"""Texts of a report: hostile ones stay texts, private ones stay private, numbers are shown for people."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from storage.datasets.catalog import Dataset
from storage.records import Archive, Failure, FolderEntry
from storage.registry import Registry
from storage.store import Store
from tasks.publish import compose, publish
from tasks.report import phrases, rendering
from tests.support.pages import Page, both, check_markdown
from tests.support.reports import HOSTILE, a_dataset, a_run, cut_at, hostile_run


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return a_dataset(tmp_path)


def structure(page: Page) -> list[str]:
    """Return the elements that do not depend on texts: a home page may be a link, a long name is a `span`
    with a title, and a hostile setting is one row more."""
    return [
        tag
        for tag, a in page.elements
        if tag not in ("a", "td", "tr", "th", "b") and not (tag == "span" and "title" in a)
    ]


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    """The report of the run that `hostile_run` is made from."""
    store = Store(tmp_path_factory.mktemp("harmless"))
    dataset = a_dataset(store.root)
    return both(store, dataset, a_run(store, dataset, epochs=1, failing=True))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_stay_texts(store: Store, harmless: tuple[Page, str], text: str) -> None:
    dataset, run = hostile_run(store, text)
    page, markdown_text = both(store, dataset, run)
    assert structure(page) == structure(harmless[0])
    assert len(check_markdown(markdown_text)) == len(check_markdown(harmless[1], "https://example.org/bars?a=1&b=2"))
    values = compose(Registry(store, dataset.name), dataset, run).values
    json.dumps(values, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_errors_stay_texts(store: Store, text: str) -> None:
    dataset, run = hostile_run(store, text)
    page, _ = both(store, dataset, cut_at(run, "validate", Failure(text, text, 3)))
    assert page.headings[0] == (1, "An unexpected error")


def test_lone_surrogates_and_control_characters_are_replaced(store: Store, dataset: Dataset) -> None:
    run = cut_at(a_run(store, dataset), "fetch", Failure("FormatError", "file \udcff\x00\x07 is bad", 3))
    result = publish.fn(Registry(store, dataset.name), dataset, run)
    for path in (result.record.html, result.record.json):
        text = path.read_text("utf-8")
        assert "file \ufffd\ufffd\ufffd is bad" in text
        assert "\x00" not in text


@pytest.mark.parametrize(
    ("address", "linked"),
    [
        ("https://example.org/a?b=1&c=2", True),
        ("http://example.org", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("//example.org", False),
        ("https://", False),
        ("ftp://example.org", False),
        ("https://example.org/ onclick=x", False),
        ('https://example.org/"><script>', False),
        ("", False),
        ("https://[::1", False),
        ("file:///etc/passwd", False),
    ],
)
def test_only_web_addresses_become_links(store: Store, tmp_path: Path, address: str, linked: bool) -> None:
    dataset = a_dataset(tmp_path, homepage=address)
    page, _ = both(store, dataset, cut_at(a_run(store, dataset), "decode", None))
    assert [a["href"] for tag, a in page.elements if tag == "a" and a["href"].startswith("http")] == [address] * linked


def test_report_names_no_folder_of_the_machine(store: Store, dataset: Dataset, tmp_path: Path) -> None:
    home = Path.home()
    sentence = f"cannot read {home}/secret/x.gz, {store.root}/tiny/2-splits/k/train.parquet and /srv/private/deep/y.gz"
    archive = Archive(FolderEntry(tmp_path), "train-images", "x.gz", 1, "ab" * 32, f"{home}/data of mine/x.gz")
    run = dataclasses.replace(
        cut_at(a_run(store, dataset), "fetch", Failure("StoreError", sentence, 1)), archives=(archive,)
    )
    document = compose(Registry(store, dataset.name), dataset, run)
    for text in (document.html(), document.markdown(), document.json()):
        for private in (str(home), str(tmp_path), "secret", "private", "/srv"):
            assert private not in text
    assert "store/tiny/2-splits/k/train.parquet" in document.values["verdict"]["sentence"]
    assert "…/x.gz" in document.values["verdict"]["sentence"]


def test_too_many_pictures_are_left_out_with_a_warning(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    document = compose(Registry(store, dataset.name), dataset, a_run(store, dataset))
    monkeypatch.setattr(rendering, "MAX_MARKDOWN_BYTES", 10_000)
    assert "base64" not in check_and_return(document.markdown(), dataset)
    assert "left out the pictures" in caplog.text


def test_a_page_that_is_too_large_without_pictures_tells_the_result_alone(
    store: Store, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    config = {f"{number} {'n' * 900}": "v" * 900 for number in range(600)}
    run = a_run(store, dataset)
    large = dataclasses.replace(run, config={**run.config, **config})
    result = publish.fn(Registry(store, dataset.name), dataset, large)
    page = result.record.html.read_text(encoding="utf-8")
    assert len(page.encode()) < rendering.MAX_HTML_BYTES
    words = Page(page).words()
    assert "Version 2 is the new champion" in words
    assert "report.json has it" in words
    assert "base64" not in page
    assert "report.html: expected less than 1,000,000 bytes; found 2," in caplog.text
    content = json.loads(result.record.json.read_text(encoding="utf-8"))
    assert len(content["training"]["configuration"]) >= 600
    assert content["test"]


def check_and_return(text: str, dataset: Dataset) -> str:
    check_markdown(text, dataset.homepage)
    return text


def test_metrics_without_a_test_are_empty(store: Store, dataset: Dataset) -> None:
    run = cut_at(a_run(store, dataset), "decode", None)
    assert compose(Registry(store, dataset.name), dataset, run).metrics() == []


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain, text: 1.5 %", "plain, text: 1.5 %"),
        ("a_b*c", "a\\_b\\*c"),
        ("- item", "\\- item"),
        ("1. item", "1\\. item"),
        ("1.5", "1.5"),
        ("# h", "\\# h"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("a|b\nc", "a\\|b c"),
        ("www.x.y", "www\\.x.y"),
        ("https://x", "https\\://x"),
        ("[x](y)", "\\[x\\]\\(y\\)"),
        ("\\", "\\\\"),
        ("me@x.y", "me\\@x.y"),
    ],
)
def test_markdown_is_escaped(text: str, escaped: str) -> None:
    assert rendering.escaped_markdown(text) == escaped


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e-7, "1e−7"),
        (0.001, "0.001"),
        (0.30000000000000004, "0.3"),
        (True, "yes"),
        (None, "none"),
        ((50, 50), "50, 50"),
        ([], "none"),
        (60000, "60,000"),
        (50, "50"),
        ("tanh", "tanh"),
        (123456.789, "1.235e5"),
    ],
)
def test_settings_are_shown_for_people(value: Any, shown: str) -> None:
    assert rendering.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "under 0.01 s"),
        (0.128, "0.13 s"),
        (59.994, "59.99 s"),
        (75.4, "1 min 15 s"),
        (3599.9, "1 h 0 min"),
        (7265, "2 h 1 min"),
        (None, "–"),
    ],
)
def test_durations_are_shown_for_people(seconds: float | None, shown: str) -> None:
    assert phrases.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(999, "999 bytes"), (28881, "28.2 KiB"), (9912422, "9.5 MiB"), (5 * 2**30, "5.0 GiB"), (None, "–")],
)
def test_sizes_are_shown_for_people(count: int | None, shown: str) -> None:
    assert rendering.size(count) == shown
