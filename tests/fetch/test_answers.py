"""Whatever a server answers: the store gets the published bytes, or nothing and one sentence."""

from __future__ import annotations

import gzip
import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from storage.datasets import catalog
from storage.datasets.catalog import ArchiveSpec, Dataset
from storage.errors import DigestMismatch, FormatError, IdxflowError, SourceUnavailable
from storage.store import Store
from tests.fetch.helpers import (
    BODY,
    FILE,
    IMPATIENT,
    OTHER,
    PAGE,
    PATH,
    PAYLOAD_TOO,
    QUICK,
    SHA256,
    STRICT,
    WRONG,
    get,
    leftovers,
)
from tests.support.faultserver import (
    Answer,
    FaultServer,
    chunked,
    cut,
    endless,
    good,
    headed,
    in_turn,
    raw,
    redirect,
    reset,
    silent,
    status,
    trickle,
)

TRICKLE = trickle(BODY)
POLICIES = {silent: IMPATIENT, TRICKLE: STRICT}
"""Whose fault is that they take their time."""


@pytest.mark.parametrize(
    ("answer", "error", "words", "requests"),
    [
        pytest.param(status(404), SourceUnavailable, "404 Not Found", 1, id="404"),
        pytest.param(status(410), SourceUnavailable, "410 Gone", 1, id="410"),
        pytest.param(status(401), SourceUnavailable, "401 Unauthorized", 1, id="401"),
        pytest.param(status(403), SourceUnavailable, "403 Forbidden", 1, id="403"),
        pytest.param(status(500), SourceUnavailable, "500 Internal Server Error", 3, id="500 for ever"),
        pytest.param(status(429, Retry_After=86400), SourceUnavailable, "asks to wait 86,400 s", 1, id="429 for a day"),
        pytest.param(status(204), SourceUnavailable, "204 No Content", 1, id="nothing"),
        pytest.param(status(206, BODY), SourceUnavailable, "206 Partial Content", 1, id="a part nobody asked for"),
        pytest.param(silent, SourceUnavailable, "nothing came for 0.15 s", 3, id="silent"),
        pytest.param(raw(b"SSH-2.0-OpenSSH_9\r\n\r\n"), SourceUnavailable, "valid HTTP", 3, id="not HTTP"),
        pytest.param(raw(b"HTTP/1.1 abc OK\r\n\r\n"), SourceUnavailable, "valid HTTP", 3, id="status of letters"),
        pytest.param(raw(b"HTTP/1.1 20000 OK\r\n\r\n"), SourceUnavailable, "valid HTTP", 3, id="status too long"),
        pytest.param(headed(b"X: " + b"x" * 200_000), SourceUnavailable, "valid HTTP", 3, id="header of 200 KB"),
        pytest.param(headed(*[b"X: " + b"x" * 400] * 500), SourceUnavailable, "valid HTTP", 3, id="headers of 200 KB"),
        pytest.param(headed(b"X: a\0b"), SourceUnavailable, "valid HTTP", 3, id="NUL in a header"),
        pytest.param(headed(b"X y: z"), SourceUnavailable, "valid HTTP", 3, id="blank in a header's name"),
        pytest.param(headed(b"Content-Length: -5"), SourceUnavailable, "valid HTTP", 3, id="negative length"),
        pytest.param(headed(b"Content-Length: " + b"9" * 5000), SourceUnavailable, "valid HTTP", 3, id="huge length"),
        pytest.param(
            headed(b"Content-Length: 5", b"Content-Length: 6"), SourceUnavailable, "valid HTTP", 3, id="two lengths"
        ),
        pytest.param(
            headed(b"Transfer-Encoding: chunked", body=b"zz\r\n"), SourceUnavailable, "valid HTTP", 3, id="bad chunk"
        ),
        pytest.param(raw(b""), SourceUnavailable, "broke off", 3, id="closed at once"),
        pytest.param(cut(BODY, 9000), SourceUnavailable, "broke off after 9,000 bytes", 3, id="cut"),
        pytest.param(reset(BODY, 9000), SourceUnavailable, "broke off", 3, id="reset"),
        pytest.param(chunked(BODY, ends=False), SourceUnavailable, "broke off", 3, id="unfinished chunks"),
        pytest.param(good(BODY[:9000], Content_Length=None), DigestMismatch, "cut short?", 3, id="cut, length unsaid"),
        pytest.param(good(BODY[:9000]), DigestMismatch, "9,000 bytes (is it cut short?)", 1, id="cut at the server"),
        pytest.param(good(PAGE), DigestMismatch, "a web page", 1, id="web page"),
        pytest.param(
            good(WRONG), DigestMismatch, "found " + hashlib.sha256(WRONG).hexdigest()[:12], 1, id="other bytes"
        ),
        pytest.param(
            good(OTHER), DigestMismatch, f"expected SHA-256 {SHA256[:12]}", 1, id="compressed again, unpinned"
        ),
        pytest.param(
            good(gzip.compress(BODY), Content_Encoding="gzip"), FormatError, "at most", 1, id="encoded, larger"
        ),
        pytest.param(
            good(gzip.compress(PAGE), Content_Encoding="gzip"), DigestMismatch, "Content-Encoding gzip", 1, id="encoded"
        ),
        pytest.param(good(BODY, Content_Length=10**13), FormatError, "10,000,000,000,000 bytes", 1, id="10 TB"),
        pytest.param(endless(), FormatError, f"more bytes where at most {len(BODY):,}", 1, id="endless"),
        pytest.param(TRICKLE, SourceUnavailable, "fewer than 1,000 bytes per second", 1, id="trickle"),
    ],
)
def test_a_source_that_fails_for_good_publishes_nothing(
    store: Store, dataset: Dataset, answer: Answer, error: type[IdxflowError], words: str, requests: int
):
    with FaultServer({PATH: answer}) as server:
        with pytest.raises(error) as raised:
            get(store, dataset, server.url(PATH), policy=POLICIES.get(answer, QUICK))
        assert server.request_count(PATH) == requests
        sentence = str(raised.value)
        assert words in sentence
        assert sentence.startswith(f"tiny: {FILE}: expected ")
        assert server.url(PATH) in sentence
        assert "--source FOLDER or URL, or IDXFLOW_SOURCE" in sentence
        assert "\n" not in sentence
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("answer", "requests"),
    [
        pytest.param(good(BODY), 1, id="good"),
        pytest.param(good(BODY, Content_Length=None), 1, id="length unsaid"),
        pytest.param(chunked(BODY), 1, id="chunked"),
        pytest.param(good(BODY, Content_Encoding="gzip"), 1, id="encoding named, bytes as published"),
        pytest.param(good(BODY, Content_Type="text/html"), 1, id="called a web page"),
        pytest.param(headed(*[b"X: y"] * 500, body=BODY), 1, id="500 short headers"),
        pytest.param(raw(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + BODY), 1, id="interim response"),
        pytest.param(in_turn(status(500), good(BODY)), 2, id="500 once"),
        pytest.param(in_turn(status(503), status(502), good(BODY)), 3, id="503, 502"),
        pytest.param(in_turn(status(429, Retry_After=1), good(BODY)), 2, id="429 once"),
        pytest.param(in_turn(status(429, Retry_After="junk"), good(BODY)), 2, id="429 once, for junk"),
        pytest.param(in_turn(raw(b""), good(BODY)), 2, id="closed once"),
        pytest.param(in_turn(cut(BODY, 9000), good(BODY)), 2, id="cut once"),
        pytest.param(in_turn(reset(BODY, 9000), good(BODY)), 2, id="reset once"),
        pytest.param(in_turn(good(BODY[:9000], Content_Length=None), good(BODY)), 2, id="cut once, length unsaid"),
        pytest.param(in_turn(redirect(PATH, 301), redirect(PATH, 307), good(BODY)), 3, id="redirects"),
    ],
)
def test_what_can_heal_is_tried_again(store: Store, dataset: Dataset, answer: Answer, requests: int):
    with FaultServer({PATH: answer}) as server:
        archive = get(store, dataset, server.url(PATH)).record
        assert server.request_count(PATH) == requests
        assert server.requests[0].headers["accept-encoding"] == "identity"
        assert archive.source == server.url(PATH)
    assert archive.file.read_bytes() == BODY
    assert (archive.file_name, archive.size_bytes, archive.sha256) == (FILE, len(BODY), SHA256)
    assert leftovers(store) == ["entry.json", FILE]


def test_silence_is_broken_off_and_tried_again(store: Store, dataset: Dataset):
    with FaultServer({PATH: in_turn(silent, good(BODY))}) as server:
        # A busy machine takes longer to answer, too, but not each time.
        policy = replace(IMPATIENT, tries=1000)
        assert get(store, dataset, server.url(PATH), policy=policy).record.sha256 == SHA256
        assert server.request_count(PATH) >= 2


def test_the_next_mirror_helps_and_the_log_names_the_one_that_failed(
    store: Store, dataset: Dataset, caplog: pytest.LogCaptureFixture
):
    with FaultServer({"/1": status(404), "/2": good(WRONG), "/3": good(BODY)}) as server:
        fetched = get(store, dataset, *(server.url(f"/{n}") for n in (1, 2, 3)))
        assert fetched.record.source == server.url("/3")
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 2
        assert f"{server.url('/1')}: 404 Not Found; trying {server.url('/2')}" in warnings[0]
        assert f"{server.url('/2')}: found" in warnings[1]


def test_wrong_bytes_anywhere_are_refused_data_even_if_the_last_source_was_only_away(store: Store, dataset: Dataset):
    with (
        FaultServer({"/1": good(WRONG), "/2": status(404)}) as server,
        pytest.raises(DigestMismatch, match="404 Not Found") as raised,
    ):
        get(store, dataset, server.url("/1"), server.url("/2"))
    assert raised.value.exit_code == 3


def test_nothing_reachable_says_what_to_do(store: Store, dataset: Dataset):
    with FaultServer({}) as server:
        url = server.url(PATH)
    with pytest.raises(
        SourceUnavailable, match=r"no connection \(Connection refused\); give another with --source"
    ) as e:
        get(store, dataset, url)
    assert e.value.exit_code == 4


def test_a_name_that_does_not_exist_is_named(store: Store, dataset: Dataset):
    # Top-level names ending so are never given to anyone: RFC 6761.
    with pytest.raises(SourceUnavailable, match="no connection") as e:
        get(store, dataset, f"http://archives.invalid{PATH}")
    assert "archives.invalid" in str(e.value)
    assert e.value.exit_code == 4


def test_four_archives_from_the_network_at_once(store: Store, dataset: Dataset):
    bodies = {role: gzip.compress(role.encode() * 5000, mtime=0) for role in catalog.ROLES}
    specs = [
        ArchiveSpec(role, catalog.DEFAULT_FILES[role], len(body), hashlib.sha256(body).hexdigest())
        for role, body in bodies.items()
    ]
    answers = {f"/{spec.file}": in_turn(status(500), good(bodies[spec.role])) for spec in specs}
    with FaultServer(answers) as server, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda spec: get(store, dataset, spec=spec, source=server.url()), specs))
    assert [result.record.file.read_bytes() for result in results] == list(bodies.values())


def test_a_mirror_that_compressed_the_payload_again_is_accepted_and_named(store: Store, dataset: Dataset):
    with FaultServer({PATH: good(OTHER)}) as server:
        fetched = get(store, dataset, server.url(PATH), spec=PAYLOAD_TOO)
        expected = f"{len(OTHER):,} bytes from {server.host}, sha256 {hashlib.sha256(OTHER).hexdigest()[:12]}"
    assert fetched.step.summary == f"{expected}, compressed again, same content as published"
