"""Where a redirect may lead, and who gets the password."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from storage.datasets.catalog import Dataset
from storage.errors import SourceUnavailable
from storage.store import Store
from tasks.sources.reach import Reach, reach_of
from tests.fetch.helpers import BODY, PATH, QUICK, SHA256, get, leftovers, outside
from tests.support.faultserver import FaultServer, good, redirect


def test_a_password_is_not_sent_to_another_host(store: Store, dataset: Dataset):
    with FaultServer({PATH: good(BODY)}) as other, FaultServer({PATH: redirect(other.url(PATH))}) as server:
        get(store, dataset, server.url(PATH, user="user:pw@"))
        assert "authorization" in server.requests[0].headers
        assert "authorization" not in other.requests[0].headers


@pytest.mark.parametrize(
    ("target", "words", "requests"),
    [
        pytest.param("", "redirects more than 5 times", 6, id="loop"),
        pytest.param("file:///etc/passwd", "other than HTTP", 1, id="file"),
        pytest.param("ftp://127.0.0.1/a", "other than HTTP", 1, id="FTP"),
        pytest.param("gopher://127.0.0.1/a", "other than HTTP", 1, id="gopher"),
        pytest.param("javascript:alert(1)", "is not valid", 1, id="script"),
        pytest.param("data:text/plain,x", "is not valid", 1, id="data"),
        pytest.param("http://[::1", "valid HTTP", 3, id="nonsense"),
    ],
)
def test_a_redirect_to_where_nothing_is_fetched_from_ends_there(
    store: Store, dataset: Dataset, target: str, words: str, requests: int
):
    with FaultServer({PATH: redirect(target or PATH)}) as server:
        with pytest.raises(SourceUnavailable, match=words) as raised:
            get(store, dataset, server.url(PATH))
        assert server.request_count(PATH) == requests
    assert "root:" not in str(raised.value)
    assert leftovers(store) == []


def test_five_redirects_are_followed_and_six_are_not(store: Store, dataset: Dataset):
    answers = {f"/{n}": redirect(f"/{n + 1}") for n in range(6)} | {"/6": good(BODY)}
    with FaultServer(answers) as server:
        with pytest.raises(SourceUnavailable, match="redirects more than 5 times"):
            get(store, dataset, server.url("/0"))
        assert server.request_count("/6") == 0
        assert get(store, dataset, server.url("/1")).record.sha256 == SHA256


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Names that lead to addresses, as if by DNS."""
    known = socket.getaddrinfo
    names: dict[str, str] = {}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: known(names.get(host, host), *rest, **more))
    return names


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "localhost",
        "LOCALHOST.",
        "2130706433",
        "0x7f000001",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "10.0.0.1",
        "192.168.1.1",
        "files.example",
    ],
)
def test_the_internet_cannot_redirect_into_this_network(
    store: Store, dataset: Dataset, host: str, names: dict[str, str]
):
    names["files.example"] = "127.0.0.1"
    with FaultServer({PATH: good(BODY)}) as inner:
        inside = inner.url(PATH).replace("127.0.0.1", host)
        with FaultServer({PATH: redirect(inside)}) as server:
            policy = replace(QUICK, reach_of=outside(server))
            with pytest.raises(SourceUnavailable, match="own network"):
                get(store, dataset, server.url(PATH), policy=policy)
        assert inner.requests == []


FORBIDDEN = [
    "169.254.169.254",
    "169.254.169.254.",
    "169.254.43518",
    "2852039166",
    "0xa9fea9fe",
    "[fe80::1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[::169.254.169.254]",
    "[2002:a9fe:a9fe::1]",
    "[64:ff9b:1::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "100.100.100.200",
    "168.63.129.16",
    "METADATA.google.internal.",
]


@pytest.mark.parametrize("host", FORBIDDEN)
def test_a_forbidden_address_is_never_asked_by_whomever_it_is_given(store: Store, dataset: Dataset, host: str):
    for source, mirrors in ((f"http://{host}/", ()), (None, (f"http://{host}/a",))):
        with pytest.raises(SourceUnavailable, match="metadata service"):
            get(store, dataset, *mirrors, source=source)
    with (
        FaultServer({PATH: redirect(f"http://{host}/latest/meta-data")}) as server,
        pytest.raises(SourceUnavailable, match="metadata service"),
    ):
        get(store, dataset, server.url(PATH))


def test_a_name_that_leads_to_a_forbidden_address_is_sent_no_request(
    store: Store, dataset: Dataset, names: dict[str, str]
):
    """This machine's address counts as that of a metadata service here."""
    names["files.example"] = "127.0.0.1"

    def reach(address: str) -> Reach:
        return "forbidden" if address == "127.0.0.1" else reach_of(address)

    policy = replace(QUICK, reach_of=reach)
    with FaultServer({PATH: good(BODY)}) as server:
        with pytest.raises(SourceUnavailable, match="metadata service"):
            get(store, dataset, server.url(PATH).replace("127.0.0.1", "files.example"), policy=policy)
        assert len(server.openings) <= 1
        assert server.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "localhost", "2130706433", "0x7f000001", "files.example"])
def test_a_server_of_this_machine_is_a_source_where_it_is_named_as_such(
    store: Store, dataset: Dataset, host: str, names: dict[str, str]
):
    names["files.example"] = "127.0.0.1"
    with FaultServer({PATH: good(BODY)}) as server:
        assert get(store, dataset, source=server.url().replace("127.0.0.1", host)).record.sha256 == SHA256
