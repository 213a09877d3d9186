"""An interrupted download goes on only where the rest surely belongs to what is there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.datasets.catalog import Dataset
from storage.errors import DigestMismatch, SourceUnavailable
from storage.store import Store
from tests.fetch.helpers import BODY, FILE, PATH, QUICK, SHA256, WRONG, get, leftovers
from tests.support.faultserver import Answer, FaultServer, cut, good, in_turn, ranged, redirect, status


@pytest.mark.parametrize(
    ("second", "ranges"),
    [
        pytest.param(ranged(BODY, '"a"'), [9000], id="same file"),
        pytest.param(ranged(BODY, '"b"'), [9000], id="changed: the server sends all"),
        pytest.param(good(BODY), [9000], id="no ranges"),
        pytest.param(ranged(BODY, '"a"', first=8999), [9000, None], id="another range than asked"),
        pytest.param(in_turn(status(416), good(BODY)), [9000, None], id="416"),
        pytest.param(in_turn(status(206, BODY[9000:], ETag='"a"'), good(BODY)), [9000, None], id="range unsaid"),
        pytest.param(
            in_turn(status(206, BODY[9000:], ETag='"a"', Content_Range="bytes 9000-9999/*"), good(BODY)),
            [9000, None],
            id="length unsaid",
        ),
        pytest.param(
            in_turn(
                status(206, BODY[9000:] + b"more", ETag='"a"', Content_Range=f"bytes 9000-{len(BODY) - 1}/{len(BODY)}"),
                good(BODY),
            ),
            [9000, None],
            id="more than the range",
        ),
        pytest.param(in_turn(redirect(PATH), ranged(BODY, '"a"')), [9000, 9000], id="same file after a redirect"),
        pytest.param(
            in_turn(status(206, BODY[9000:], Content_Range=f"bytes 9000-{len(BODY) - 1}/{len(BODY)}"), good(BODY)),
            [9000, None],
            id="ETag unsaid",
        ),
        pytest.param(in_turn(ranged(BODY, '"a"', sends=WRONG), good(BODY)), [9000, None], id="same ETag, other bytes"),
    ],
)
def test_an_interrupted_download_goes_on_only_where_that_is_safe(
    store: Store, dataset: Dataset, second: Answer, ranges: list[int | None]
):
    """The first run ends with a part in the store, as a killed one would; the second run finds it."""
    with FaultServer({PATH: in_turn(cut(BODY, 9000, ETag='"a"'), second)}) as server:
        with pytest.raises(SourceUnavailable):
            get(store, dataset, server.url(PATH), policy=replace(QUICK, tries=1))
        assert leftovers(store) == [f"{FILE}.part", f"{FILE}.part.json"]
        archive = get(store, dataset, server.url(PATH)).record
        headers = [request.headers.get("range") for request in server.requests[1:]]
    assert archive.file.read_bytes() == BODY
    assert headers == [n and f"bytes={n}-" for n in ranges]
    assert leftovers(store) == ["entry.json", FILE]


@pytest.mark.parametrize(("etag", "path"), [('W/"a"', PATH), ("", PATH), ('"a"', "/elsewhere")])
def test_a_weak_etag_or_another_address_starts_from_zero(store: Store, dataset: Dataset, etag: str, path: str):
    headers = {"ETag": etag} if etag else {}
    with FaultServer({PATH: in_turn(cut(BODY, 9000, **headers), good(BODY)), "/elsewhere": good(BODY)}) as server:
        with pytest.raises(SourceUnavailable):
            get(store, dataset, server.url(PATH), policy=replace(QUICK, tries=1))
        assert get(store, dataset, server.url(path)).record.sha256 == SHA256
        assert "range" not in server.requests[-1].headers


def test_a_server_that_keeps_lying_about_its_file_is_asked_once_more_and_no_more(store: Store, dataset: Dataset):
    answer = in_turn(cut(BODY, 9000, ETag='"a"'), ranged(BODY, '"a"', sends=WRONG), good(WRONG, ETag='"a"'))
    with FaultServer({PATH: answer}) as server:
        with pytest.raises(DigestMismatch):
            get(store, dataset, server.url(PATH))
        assert server.request_count(PATH) == 3
    assert leftovers(store) == []


def test_a_damaged_note_and_foreign_files_are_cleared_away(store: Store, dataset: Dataset):
    with FaultServer({PATH: in_turn(cut(BODY, 9000, ETag='"a"'), good(BODY))}) as server:
        with pytest.raises(SourceUnavailable):
            get(store, dataset, server.url(PATH), policy=replace(QUICK, tries=1))
        (note,) = store.root.rglob("*.part.json")
        note.write_text("{")
        (note.parent / "stray").write_text("x")
        (note.parent / "folder").mkdir()
        assert sorted(p.name for p in get(store, dataset, server.url(PATH)).record.entry.folder.iterdir()) == [
            "entry.json",
            FILE,
        ]
