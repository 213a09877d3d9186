"""Fetch: from whatever source, the store gets the published bytes, or nothing and one sentence."""

from __future__ import annotations

import base64
import datetime
import gzip
import hashlib
import ipaddress
import logging
import os
import resource
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import catalog, idx
from storage.catalog import ArchiveSpec, Dataset
from storage.errors import ConfigError, DigestMismatch, FormatError, IdxflowError, SourceUnavailable, StoreError
from storage.files import sha256_of
from storage.records import Archive, Done
from storage.store import Store
from tasks import embedded
from tasks.download import Policy, is_public, redacted
from tasks.fetch import fetch, find_or_fetch
from tasks.origins import DEFAULT_LIMIT, network_limit, payload_sha256
from tasks.progress import Progress, listening
from tests.conftest import TinyFactory
from tests.faultserver import (
    Answer,
    FaultServer,
    chunked,
    cut,
    endless,
    good,
    in_turn,
    ranged,
    raw,
    redirect,
    reset,
    silent,
    slow_head,
    stall,
    status,
    trickle,
)

FILE = "t10k-images-idx3-ubyte.gz"
PATH = f"/{FILE}"
PAYLOAD = idx.encode(np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8))
BODY = gzip.compress(PAYLOAD, mtime=0)
OTHER = gzip.compress(PAYLOAD, 1, mtime=7)
SHA256, PAYLOAD_SHA256 = hashlib.sha256(BODY).hexdigest(), hashlib.sha256(PAYLOAD).hexdigest()
WRONG = bytes(reversed(BODY))
PAGE = b"<!doctype html><title>Log in</title>"
SPEC = ArchiveSpec("test-images", FILE, len(BODY), SHA256)
PAYLOAD_TOO = replace(SPEC, payload_bytes=len(PAYLOAD), payload_sha256=PAYLOAD_SHA256)
UNPINNED = ArchiveSpec("test-images", FILE)
QUICK = Policy(
    connect_seconds=1,
    read_seconds=2,
    deadline_seconds=10,
    min_bytes_per_second=1000,
    rate_window_seconds=0.2,
    tries=3,
    sleep=lambda seconds: None,
)
IMPATIENT = replace(QUICK, read_seconds=0.15)
SECRET = "c4n4ry"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def dataset(tiny: TinyFactory) -> Dataset:
    """A data set whose manifest names no source."""
    return replace(tiny(), source=None)


def get(
    store: Store,
    dataset: Dataset,
    *urls: str,
    spec: ArchiveSpec = SPEC,
    source: str | None = None,
    policy: Policy = QUICK,
) -> Done[Archive]:
    return find_or_fetch(store, dataset, replace(spec, mirrors=urls), source, policy=policy)


def folder(tmp_path: Path, data: bytes = BODY, name: str = FILE) -> Path:
    place = tmp_path / "place"
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(data)
    return place


def leftovers(store: Store) -> list[str]:
    """Every file of the store but its locks."""
    return sorted(p.name for p in store.root.rglob("*") if p.is_file() and p.parent.name != "locks")


def first_is_public() -> Callable[[str], bool]:
    """A judge that takes the first address it is asked about for one of the internet, and no other."""
    addresses: list[str] = []

    def judge(address: str) -> bool:
        ipaddress.ip_address(address)
        addresses.append(address)
        return len(addresses) == 1

    return judge


# --- the network


@pytest.mark.parametrize(
    ("answer", "error", "words", "asked"),
    [
        pytest.param(status(404), SourceUnavailable, "404 Not Found", 1, id="404"),
        pytest.param(status(403), SourceUnavailable, "403 Forbidden", 1, id="403"),
        pytest.param(status(500), SourceUnavailable, "500 Internal Server Error", 3, id="500 for ever"),
        pytest.param(status(429, Retry_After=86400), SourceUnavailable, "asks to wait 86,400 s", 1, id="429 for a day"),
        pytest.param(status(204), SourceUnavailable, "204 No Content", 1, id="nothing"),
        pytest.param(status(206, BODY), SourceUnavailable, "206 Partial Content", 1, id="a part nobody asked for"),
        pytest.param(silent, SourceUnavailable, "nothing came for 0.15 s", 3, id="silent"),
        pytest.param(raw(b"SSH-2.0-OpenSSH_9\r\n\r\n"), SourceUnavailable, "valid HTTP", 3, id="not HTTP"),
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
        pytest.param(trickle(BODY), SourceUnavailable, "fewer than 1,000 bytes per second", 1, id="trickle"),
        pytest.param(redirect(PATH), SourceUnavailable, "redirects more than 5 times", 6, id="redirect loop"),
        pytest.param(redirect("file:///etc/passwd"), SourceUnavailable, "other than HTTP", 1, id="redirect to a file"),
        pytest.param(redirect("ftp://127.0.0.1/a"), SourceUnavailable, "other than HTTP", 1, id="redirect to FTP"),
        pytest.param(redirect("http://[::1"), SourceUnavailable, "valid HTTP", 3, id="redirect to nonsense"),
    ],
)
def test_a_source_that_fails_for_good_publishes_nothing(
    store: Store, dataset: Dataset, answer: Answer, error: type[IdxflowError], words: str, asked: int
):
    with FaultServer({PATH: answer}) as server:
        with pytest.raises(error) as raised:
            get(store, dataset, server.url(PATH), policy=IMPATIENT if answer is silent else QUICK)
        assert server.asked(PATH) == asked
        sentence = str(raised.value)
        assert words in sentence
        assert sentence.startswith(f"tiny: {FILE}: expected ")
        assert server.url(PATH) in sentence
        assert "--source FOLDER or URL, or IDXFLOW_SOURCE" in sentence
        assert "\n" not in sentence
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        pytest.param(good(BODY), 1, id="good"),
        pytest.param(good(BODY, Content_Length=None), 1, id="length unsaid"),
        pytest.param(chunked(BODY), 1, id="chunked"),
        pytest.param(good(BODY, Content_Encoding="gzip"), 1, id="encoding named, bytes as published"),
        pytest.param(good(BODY, Content_Type="text/html"), 1, id="called a web page"),
        pytest.param(in_turn(status(500), good(BODY)), 2, id="500 once"),
        pytest.param(in_turn(status(503), status(502), good(BODY)), 3, id="503, 502"),
        pytest.param(in_turn(status(429, Retry_After=1), good(BODY)), 2, id="429 once"),
        pytest.param(in_turn(raw(b""), good(BODY)), 2, id="closed once"),
        pytest.param(in_turn(cut(BODY, 9000), good(BODY)), 2, id="cut once"),
        pytest.param(in_turn(reset(BODY, 9000), good(BODY)), 2, id="reset once"),
        pytest.param(in_turn(good(BODY[:9000], Content_Length=None), good(BODY)), 2, id="cut once, length unsaid"),
        pytest.param(in_turn(redirect(PATH, 301), redirect(PATH, 307), good(BODY)), 3, id="redirects"),
    ],
)
def test_what_can_heal_is_tried_again(store: Store, dataset: Dataset, answer: Answer, asked: int):
    with FaultServer({PATH: answer}) as server:
        archive = get(store, dataset, server.url(PATH)).record
        assert server.asked(PATH) == asked
        assert server.requests[0].headers["accept-encoding"] == "identity"
        assert archive.source == server.url(PATH)
    assert archive.file.read_bytes() == BODY
    assert (archive.file_name, archive.size_bytes, archive.sha256) == (FILE, len(BODY), SHA256)
    assert leftovers(store) == ["entry.json", FILE]


def test_silence_is_broken_off_and_tried_again(store: Store, dataset: Dataset):
    with FaultServer({PATH: in_turn(silent, good(BODY))}) as server:
        assert get(store, dataset, server.url(PATH), policy=IMPATIENT).record.sha256 == SHA256
        assert server.asked(PATH) >= 2


def test_the_next_mirror_helps_and_the_log_names_the_one_that_failed(
    store: Store, dataset: Dataset, caplog: pytest.LogCaptureFixture
):
    with FaultServer({"/1": status(404), "/2": good(WRONG), "/3": good(BODY)}) as server:
        done = get(store, dataset, *(server.url(f"/{n}") for n in (1, 2, 3)))
        assert done.record.source == server.url("/3")
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


def test_waits_grow_at_random_and_a_server_may_ask_for_longer(store: Store, dataset: Dataset):
    slept: list[float] = []
    policy = replace(QUICK, tries=5, backoff_seconds=2, deadline_seconds=1e6, max_wait_seconds=60, sleep=slept.append)
    answer = in_turn(status(500), status(500, Retry_After="soon"), status(503, Retry_After=17), status(500), good(BODY))
    with FaultServer({PATH: answer}) as server:
        get(store, dataset, server.url(PATH), policy=policy)
    assert 0 <= slept[0] <= 2
    assert 0 <= slept[1] <= 4
    assert slept[2] == 17
    assert 0 <= slept[3] <= 16
    assert slept[0] != slept[1]


def test_a_date_in_retry_after_is_understood(store: Store, dataset: Dataset):
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)
    answer = status(503, Retry_After=later.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    with FaultServer({PATH: answer}) as server, pytest.raises(SourceUnavailable, match=r"asks to wait 7,[12]\d\d s"):
        get(store, dataset, server.url(PATH))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(slow_head(), id="header without end"),
        pytest.param(trickle(BODY), id="trickle"),
        pytest.param(endless(), id="endless"),
        pytest.param(endless(Content_Length=10**9), id="1 GB"),
        pytest.param(silent, id="silent"),
        pytest.param(stall(BODY, 9000), id="stall"),
        pytest.param(stall(BODY, 9000, Content_Length=None), id="stall, length unsaid"),
    ],
)
def test_the_deadline_ends_whatever_goes_on(store: Store, dataset: Dataset, answer: Answer):
    policy = replace(QUICK, deadline_seconds=0.2, read_seconds=5, min_bytes_per_second=0)
    started = time.monotonic()
    with FaultServer({PATH: answer}) as server, pytest.raises(SourceUnavailable, match=r"not finished within 0\.2 s"):
        get(store, dataset, server.url(PATH), policy=policy, spec=replace(SPEC, bytes=10**12))
    assert time.monotonic() - started < 2


def test_a_wait_beyond_the_deadline_is_not_begun(store: Store, dataset: Dataset):
    with FaultServer({PATH: status(503, Retry_After=30)}) as server:
        with pytest.raises(SourceUnavailable, match="503 Service Unavailable, and no time was left"):
            get(store, dataset, server.url(PATH))
        assert server.asked(PATH) == 1


# --- resuming


@pytest.mark.parametrize(
    ("second", "ranges"),
    [
        pytest.param(ranged(BODY, '"a"'), [9000], id="same file"),
        pytest.param(ranged(BODY, '"b"'), [9000], id="changed: the server sends all"),
        pytest.param(good(BODY), [9000], id="no ranges"),
        pytest.param(ranged(BODY, '"a"', first=8999), [9000, None], id="another range than asked"),
        pytest.param(in_turn(status(416), good(BODY)), [9000, None], id="416"),
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
        asked = [request.headers.get("range") for request in server.requests[1:]]
    assert archive.file.read_bytes() == BODY
    assert asked == [n and f"bytes={n}-" for n in ranges]
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
        assert server.asked(PATH) == 3
    assert leftovers(store) == []


def test_a_damaged_note_and_foreign_files_are_cleared_away(store: Store, dataset: Dataset):
    with FaultServer({PATH: in_turn(cut(BODY, 9000, ETag='"a"'), good(BODY))}) as server:
        with pytest.raises(SourceUnavailable):
            get(store, dataset, server.url(PATH), policy=replace(QUICK, tries=1))
        (note,) = store.root.rglob("*.part.json")
        note.write_text("{")
        (note.parent / "stray").write_text("x")
        (note.parent / "folder").mkdir()
        assert sorted(p.name for p in get(store, dataset, server.url(PATH)).record.folder.iterdir()) == [
            "entry.json",
            FILE,
        ]


# --- who is talked to, and what is said


def test_a_secret_in_an_address_is_sent_to_its_server_and_said_nowhere(
    store: Store, dataset: Dataset, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    answers = {PATH: in_turn(cut(BODY, 9000, ETag='"a"'), status(500), good(BODY)), "/bad": status(403)}
    with FaultServer(answers) as server:
        answers["/away"] = redirect(f"{server.url('/bad')}?signature={SECRET}")
        urls = [server.url(f"{path}?signature={SECRET}", user=f"{SECRET}:{SECRET}@") for path in ("/away", PATH)]
        done = get(store, dataset, *urls)
        # httpx quotes what it cannot read.
        answers["/nonsense"] = redirect(f"http://127.0.0.1:{SECRET}/")
        with pytest.raises(SourceUnavailable) as raised:
            get(store, dataset, urls[0], server.url("/nonsense"), spec=replace(SPEC, sha256="0" * 64))
        assert SECRET in server.requests[0].path
        assert server.requests[0].headers["authorization"].startswith("Basic ")
    said = "".join(traceback.format_exception(raised.value)) + caplog.text + repr(done)
    said += "".join(str(p) + p.read_text(errors="replace") for p in store.root.rglob("*") if p.is_file())
    assert SECRET not in said
    assert base64.b64encode(f"{SECRET}:{SECRET}".encode()).decode() not in said
    assert "HTTP Request" not in said
    assert done.record.source == server.url(PATH)


def test_a_base_address_keeps_its_query_and_gets_the_file_name(store: Store, dataset: Dataset):
    with FaultServer({f"/mnist{PATH}": good(BODY)}) as server:
        get(store, dataset, source=server.url("/mnist/?signature=x"))
        assert server.requests[0].path == f"/mnist{PATH}?signature=x"


def test_a_password_is_not_sent_to_another_host(store: Store, dataset: Dataset):
    with FaultServer({PATH: good(BODY)}) as other, FaultServer({PATH: redirect(other.url(PATH))}) as server:
        get(store, dataset, server.url(PATH, user="user:pw@"))
        assert "authorization" in server.requests[0].headers
        assert "authorization" not in other.requests[0].headers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "files.example"])
def test_the_internet_cannot_redirect_into_this_network(
    store: Store, dataset: Dataset, host: str, monkeypatch: pytest.MonkeyPatch
):
    """The first address counts as public here. The last name leads to 127.0.0.1 by its DNS entry."""
    known = socket.getaddrinfo
    names = {"files.example": "127.0.0.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: known(names.get(host, host), *rest, **more))
    with FaultServer({PATH: good(BODY)}) as inner:
        inside = inner.url(PATH).replace("127.0.0.1", host)
        with FaultServer({PATH: redirect(inside)}) as server, pytest.raises(SourceUnavailable, match="own network"):
            get(store, dataset, server.url(PATH), policy=replace(QUICK, is_public=first_is_public()))
        assert inner.requests == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("192.168.1.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("0.0.0.0", False),
        ("fd00::1", False),
    ],
)
def test_addresses_of_this_network_are_known(address: str, public: bool):
    assert is_public(address) is public


def test_a_proxy_is_used_named_and_its_password_kept(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with FaultServer({PATH: good(BODY), "/in": redirect("http://169.254.169.254/latest")}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url(user=f"user:{SECRET}@"))
        with pytest.raises(SourceUnavailable, match="own network"):
            get(store, dataset, "http://archive.invalid/in")
        assert get(store, dataset, f"http://archive.invalid{PATH}").record.sha256 == SHA256
        address = proxy.url()
    with pytest.raises(SourceUnavailable, match=f"through the proxy {address}") as raised:
        get(Store(tmp_path / "other"), dataset, f"http://archive.invalid{PATH}")
    assert SECRET not in str(raised.value)


def test_a_proxy_in_this_network_is_not_what_a_redirect_leads_to(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    with FaultServer({PATH: good(BODY)}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url())
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with FaultServer({PATH: redirect(f"http://archive.invalid{PATH}")}) as server:
            policy = replace(QUICK, is_public=first_is_public())
            assert get(store, dataset, server.url(PATH), policy=policy).record.sha256 == SHA256
        assert proxy.asked(PATH) == 1


def test_proxies_that_cannot_be_used_are_a_sentence(store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", f"gopher://user:{SECRET}@127.0.0.1")
    with pytest.raises(SourceUnavailable, match="ALL_PROXY") as raised:
        get(store, dataset, "http://127.0.0.1:9/a")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pw@host:8443/a/b.gz?sig=1#x", "https://host:8443/a/b.gz"),
        ("https://u@se@host/a", "https://host/a"),
        ("http://host/a", "http://host/a"),
        ("http://[::1/pw", "an address that cannot be read"),
    ],
)
def test_redacted(url: str, shown: str):
    assert redacted(url) == shown


# --- TLS


@contextmanager
def authority(tmp_path: Path) -> Iterator[tuple[Path, ssl.SSLContext]]:
    """A certificate for 127.0.0.1 that signs itself, and a server's context with it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = tmp_path / "key.pem"
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, secret)
    yield path, context


def test_tls_is_checked_and_never_given_up(
    store: Store, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with (
        authority(tmp_path) as (certificate, context),
        FaultServer({PATH: good(BODY)}) as plain,
        FaultServer({"/plain": redirect(plain.url(PATH)), PATH: good(BODY)}, tls=context) as server,
    ):
        with pytest.raises(SourceUnavailable, match="certificate is not trusted"):
            get(store, dataset, server.url(PATH))
        assert server.connections == 1
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(SourceUnavailable, match="redirects from https to http"):
            get(store, dataset, server.url("/plain"))
        impatient = replace(QUICK, connect_seconds=0.1, tries=1)
        with pytest.raises(SourceUnavailable, match="no connection"):
            get(store, dataset, plain.url(PATH).replace("http", "https"), policy=impatient)
        assert plain.requests == []
        assert get(store, dataset, server.url(PATH)).record.sha256 == SHA256


# --- folders


@pytest.mark.parametrize(
    ("name", "data", "stored"),
    [
        (FILE, BODY, FILE),
        (FILE, OTHER, FILE),
        ("t10k-images-idx3-ubyte", PAYLOAD, "t10k-images-idx3-ubyte"),
        ("t10k-images.idx3-ubyte", PAYLOAD, "t10k-images-idx3-ubyte"),
        ("t10k-images.idx3-ubyte.gz", BODY, FILE),
    ],
)
def test_a_folder_may_have_the_archive_or_its_payload(
    store: Store, dataset: Dataset, tmp_path: Path, name: str, data: bytes, stored: str
):
    place = folder(tmp_path, data, name)
    archive = get(store, dataset, spec=PAYLOAD_TOO, source=str(place)).record
    assert archive.file.read_bytes() == data
    assert (archive.file_name, archive.source) == (stored, str(place / name))
    assert payload_sha256(archive.file, len(PAYLOAD)) == PAYLOAD_SHA256


@pytest.mark.parametrize("form", ["file://{}", "file:{}", "file://localhost{}", "{}"])
def test_a_folder_may_be_given_as_url(store: Store, dataset: Dataset, tmp_path: Path, form: str):
    (tmp_path / "with space").mkdir()
    place = folder(tmp_path / "with space")
    name = str(place).replace(" ", "%20") if "file" in form else str(place)
    assert get(store, dataset, source=form.format(name)).record.sha256 == SHA256


@pytest.mark.parametrize(
    ("data", "spec", "error", "words"),
    [
        pytest.param(WRONG, PAYLOAD_TOO, DigestMismatch, f"or payload SHA-256 {PAYLOAD_SHA256[:12]}", id="other bytes"),
        pytest.param(
            OTHER, SPEC, DigestMismatch, f"found {hashlib.sha256(OTHER).hexdigest()[:12]}", id="compressed again"
        ),
        pytest.param(BODY[:-9], PAYLOAD_TOO, DigestMismatch, "gzip stream is cut short", id="cut"),
        pytest.param(
            BODY[:-4], PAYLOAD_TOO, DigestMismatch, "gzip stream is cut short", id="cut in its last four bytes"
        ),
        pytest.param(OTHER[:99] + b"\0" + OTHER[100:], PAYLOAD_TOO, DigestMismatch, "damaged", id="damaged"),
        pytest.param(OTHER + b"\0", PAYLOAD_TOO, DigestMismatch, "more after", id="trailing byte"),
        pytest.param(OTHER + OTHER, PAYLOAD_TOO, DigestMismatch, "more after", id="twice"),
        pytest.param(
            gzip.compress(bytes(10**7)), PAYLOAD_TOO, DigestMismatch, f"holds more than {len(PAYLOAD):,}", id="bomb"
        ),
        pytest.param(b"", PAYLOAD_TOO, DigestMismatch, "0 bytes", id="empty"),
        pytest.param(bytes(10**7), PAYLOAD_TOO, FormatError, "10,000,000 bytes where at most", id="too large"),
        pytest.param(BODY, replace(UNPINNED, bytes=7), FormatError, "where 7 are declared", id="unpinned, other size"),
    ],
)
def test_a_folder_with_another_file_is_refused(
    store: Store,
    dataset: Dataset,
    tmp_path: Path,
    data: bytes,
    spec: ArchiveSpec,
    error: type[IdxflowError],
    words: str,
):
    place = folder(tmp_path, data)
    with pytest.raises(error) as raised:
        get(store, dataset, spec=spec, source=str(place))
    assert words in str(raised.value)
    assert f"{FILE}: expected " in str(raised.value)
    assert str(place) in str(raised.value)
    assert "`idxflow manifest FOLDER`" in str(raised.value)
    assert leftovers(store) == []


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: (p.mkdir(), (p / FILE).mkdir())])
def test_a_missing_file_is_a_warning_where_the_next_source_has_it(
    store: Store, dataset: Dataset, tmp_path: Path, make, caplog: pytest.LogCaptureFixture
):
    place = tmp_path / "nothing"
    make(place)
    with pytest.raises(SourceUnavailable, match=r"nothing: there is no (such folder|t10k-images-idx3-ubyte\.gz)"):
        get(store, dataset, source=str(place))
    assert not caplog.records
    dataset = replace(dataset, source=folder(tmp_path))
    assert get(store, dataset, source=str(place)).record.sha256 == SHA256
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert str(place) in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that fails when read: /proc/self/mem")
def test_a_file_that_cannot_be_read_is_the_sources_fault_not_the_stores(store: Store, dataset: Dataset, tmp_path: Path):
    place = folder(tmp_path)
    (place / FILE).unlink()
    (place / FILE).symlink_to("/proc/self/mem")
    for spec in (SPEC, UNPINNED):
        with pytest.raises(SourceUnavailable, match=f"{FILE} cannot be read"):
            get(store, dataset, spec=spec, source=str(place))


def test_a_disk_that_takes_no_more_is_the_stores_fault(store: Store, dataset: Dataset, tmp_path: Path):
    place = folder(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(StoreError, match="File too large"):
            get(store, dataset, source=str(place))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert get(store, dataset, source=str(place)).record.sha256 == SHA256


def test_no_source_at_all(store: Store, dataset: Dataset):
    for spec in (SPEC, UNPINNED):
        with pytest.raises(SourceUnavailable, match="expected a source in the manifest; found none"):
            get(store, dataset, spec=spec)


@pytest.mark.parametrize(
    ("source", "spec", "words"),
    [
        ("s3://bucket/mnist", SPEC, "found 's3://bucket/mnist'"),
        (f"ftp://u:{SECRET}@host/", SPEC, "found 'ftp://host/'"),
        (f"http://u:{SECRET}@[::1/", SPEC, "cannot be read"),
        (f"https://u:{SECRET}@host:99999/", SPEC, "http"),
        (f"https:///{FILE}", SPEC, "http"),
        ("file://server/share", SPEC, "found 'file://server/share'"),
        (f"https://u:{SECRET}@host/mnist?{SECRET}", UNPINNED, "expected archives.test-images.sha256"),
        ("https://host/mnist", UNPINNED, "or give a folder as --source"),
    ],
)
def test_a_source_that_cannot_be_one_is_wrong_usage(
    store: Store, dataset: Dataset, source: str, spec: ArchiveSpec, words: str
):
    with pytest.raises(ConfigError) as raised:
        get(store, dataset, spec=spec, source=source)
    assert words in str(raised.value)
    assert SECRET not in str(raised.value)


# --- finding again


def test_what_is_there_is_reused_without_any_source(store: Store, dataset: Dataset, tmp_path: Path):
    place = folder(tmp_path)
    first = fetch.fn(store, dataset, SPEC, str(place))
    (place / FILE).unlink()
    again = fetch.fn(store, dataset, SPEC, "https://192.0.2.1/nowhere")
    assert (first.step.reused, again.step.reused) == (False, True)
    assert again.record == first.record
    assert again.step.summary == f"{len(BODY):,} bytes from {place}, sha256 {SHA256[:12]}"
    with pytest.raises(SourceUnavailable):
        fetch.fn(Store(tmp_path / "other"), dataset, SPEC, str(place))
    assert fetch.fn(store, dataset, SPEC).step.reused


def test_a_damaged_archive_in_the_store_is_noticed_and_fetched_again(store: Store, dataset: Dataset):
    with FaultServer({PATH: good(BODY)}) as server:
        file = get(store, dataset, server.url(PATH)).record.file
        file.chmod(0o644)
        file.write_bytes(WRONG)
        done = get(store, dataset, server.url(PATH))
        assert done.step.reason.startswith("damaged")
        assert done.record.file.read_bytes() == BODY
        assert server.asked(PATH) == 2


def test_an_archive_without_digest_is_known_by_its_content(store: Store, tiny: TinyFactory):
    dataset = tiny()
    spec = dataset.archive("train-labels")
    file = dataset.source / spec.file
    before = file.read_bytes()
    first = fetch.fn(store, dataset, spec)
    assert fetch.fn(store, dataset, spec).step.reused
    file.write_bytes(before + b"more")
    changed = fetch.fn(store, dataset, spec)
    assert changed.record.file.read_bytes() == before + b"more"
    assert changed.record.folder != first.record.folder
    assert changed.step.reason == "archive changed"
    assert first.record.file.read_bytes() == before
    file.write_bytes(before)
    assert fetch.fn(store, dataset, spec).record.folder == first.record.folder


def test_the_embedded_data_come_by_the_same_way_four_at_once(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    dataset = catalog.find("digits")
    read: list[int] = []
    digits = embedded.digits
    monkeypatch.setattr(embedded, "digits", lambda: (read.append(1), digits())[1])
    start = threading.Barrier(4)

    def run(spec: ArchiveSpec) -> Done[Archive]:
        start.wait()
        return fetch.fn(store, dataset, spec)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(run, dataset.archives))
    for spec, result in zip(dataset.archives, done, strict=True):
        assert result.record.role == spec.role
        assert payload_sha256(result.record.file, 10**6) == spec.payload_sha256
        assert "bytes from scikit-learn (embedded), sha256 " in result.step.summary
    assert len(read) == 1
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_damaged_inbox_is_written_again(store: Store):
    dataset = catalog.find("digits")
    spec = dataset.archive("test-labels")
    inbox = store.inbox("digits")
    inbox.mkdir(parents=True)
    (inbox / spec.file).write_bytes(b"half a fi")
    assert payload_sha256(fetch.fn(store, dataset, spec).record.file, 10**6) == spec.payload_sha256


def test_four_archives_from_the_network_at_once(store: Store, dataset: Dataset):
    bodies = {role: gzip.compress(role.encode() * 5000, mtime=0) for role in catalog.ROLES}
    specs = [
        ArchiveSpec(role, catalog.DEFAULT_FILES[role], len(body), hashlib.sha256(body).hexdigest())
        for role, body in bodies.items()
    ]
    answers = {f"/{spec.file}": in_turn(status(500), good(bodies[spec.role])) for spec in specs}
    with FaultServer(answers) as server, ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda spec: get(store, dataset, spec=spec, source=server.url()), specs))
    assert [d.record.file.read_bytes() for d in done] == list(bodies.values())


def test_real_mnist_is_accepted_by_digest_or_payload(store: Store, mnist_dir: Path):
    dataset = catalog.find("mnist")
    for spec in dataset.archives:
        done = fetch.fn(store, dataset, spec, str(mnist_dir))
        assert done.record.sha256 == sha256_of(mnist_dir / spec.file)
        again = done.record.sha256 != spec.sha256
        assert done.step.summary.endswith("not the published archive but its payload") is again


# --- bounds and progress


@pytest.mark.parametrize(
    ("spec", "limit"),
    [
        (SPEC, len(BODY)),
        (PAYLOAD_TOO, 2 * len(BODY) + 2**20),
        (replace(PAYLOAD_TOO, bytes=None), len(PAYLOAD) + 2**20),
        (replace(SPEC, bytes=None), DEFAULT_LIMIT),
        (replace(PAYLOAD_TOO, bytes=None, payload_bytes=None), DEFAULT_LIMIT),
    ],
)
def test_what_is_read_is_bounded(spec: ArchiveSpec, limit: int):
    assert network_limit(spec) == limit


def test_a_mirror_that_compressed_the_payload_again_is_accepted_and_said_so(store: Store, dataset: Dataset):
    with FaultServer({PATH: good(OTHER)}) as server:
        done = get(store, dataset, server.url(PATH), spec=PAYLOAD_TOO)
        expected = f"{len(OTHER):,} bytes from {server.host}, sha256 {hashlib.sha256(OTHER).hexdigest()[:12]}"
    assert done.step.summary == f"{expected}, not the published archive but its payload"


def test_progress_is_told_from_the_first_byte_to_the_last(store: Store, dataset: Dataset):
    told: list[Progress] = []
    with FaultServer({PATH: good(BODY)}) as server, listening(told.append):
        get(store, dataset, server.url(PATH))
    assert told[-1] == Progress(FILE, len(BODY), len(BODY), "bytes")
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert {p.total for p in told} == {len(BODY)}
    assert len(told) < 10
