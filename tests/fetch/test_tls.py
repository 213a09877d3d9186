"""Whatever is wrong with TLS ends the download; nothing is ever asked for in clear instead."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from storage.datasets.catalog import Dataset
from storage.errors import SourceUnavailable
from storage.store import Store
from tasks.sources.download import DownloadPolicy
from tests.fetch.helpers import BODY, PATH, QUICK, SHA256, get, leftovers
from tests.support.certificates import DAY, Authority, authority, oldest_allowed
from tests.support.faultserver import FaultServer, cut, good, in_turn, redirect

TLS_RECORD = b"\x16"
HALF_A_HANDSHAKE = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03"
TWICE = replace(QUICK, tries=2)


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that this process trusts."""
    ca = authority(tmp_path / "trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.file))
    return ca


def refused(store: Store, dataset: Dataset, server: FaultServer, policy: DownloadPolicy = TWICE) -> str:
    """Fail to fetch over https; return the sentence. The server and a plain one see no request at all."""
    with FaultServer({PATH: good(BODY)}) as plain:
        with pytest.raises(SourceUnavailable) as raised:
            get(store, dataset, server.url(PATH).replace("http:", "https:"), policy=policy)
        assert plain.openings == []
    assert server.openings
    assert set(server.openings) == {TLS_RECORD}
    assert server.requests == []
    assert leftovers(store) == []
    return str(raised.value)


def test_a_good_certificate_is_accepted(store: Store, dataset: Dataset, trusted: Authority):
    """So that what the other tests see refused is refused for their reason."""
    with FaultServer({PATH: good(BODY)}, tls=trusted.server()) as server:
        assert get(store, dataset, server.url(PATH)).record.sha256 == SHA256


def test_an_unknown_authority(store: Store, dataset: Dataset, trusted: Authority, tmp_path: Path):
    with FaultServer({PATH: good(BODY)}, tls=authority(tmp_path / "other").server()) as server:
        assert "certificate is not trusted (unable to get local issuer" in refused(store, dataset, server)
        # It does not heal.
        assert len(server.openings) == 1


def test_an_expired_certificate(store: Store, dataset: Dataset, trusted: Authority):
    with FaultServer({PATH: good(BODY)}, tls=trusted.server(ends=-DAY)) as server:
        assert "certificate is not trusted (certificate has expired)" in refused(store, dataset, server)


@pytest.mark.parametrize("host", ["127.0.0.2", "files.example"])
def test_a_certificate_for_another_name(store: Store, dataset: Dataset, trusted: Authority, host: str):
    with FaultServer({PATH: good(BODY)}, tls=trusted.server(host)) as server:
        assert "certificate is not trusted (IP address mismatch" in refused(store, dataset, server)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_a_server_that_speaks_only_old_tls(store: Store, dataset: Dataset, trusted: Authority, newest: ssl.TLSVersion):
    with FaultServer({PATH: good(BODY)}, tls=trusted.server(newest=newest)) as server:
        assert "no connection" in refused(store, dataset, server)
        # A client that allows it can talk to this server.
        lax = ssl.create_default_context(cafile=str(trusted.file))
        oldest_allowed(lax, newest)
        address = ("127.0.0.1", int(server.host.partition(":")[2]))
        with (
            socket.create_connection(address) as connection,
            lax.wrap_socket(connection, server_hostname="127.0.0.1") as secure,
        ):
            assert secure.version() == {ssl.TLSVersion.TLSv1: "TLSv1"}.get(newest, "TLSv1.1")


@pytest.mark.parametrize("sends", [b"", HALF_A_HANDSHAKE, b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_handshake_that_breaks_off(store: Store, dataset: Dataset, sends: bytes):
    def opening(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(sends)

    with FaultServer({}, opening=opening) as server:
        assert "no connection" in refused(store, dataset, server)
        assert len(server.openings) == TWICE.tries


def test_a_handshake_that_is_never_answered(store: Store, dataset: Dataset):
    stop = threading.Event()
    with FaultServer({}, opening=lambda _: stop.wait(240)) as server:
        try:
            message = refused(store, dataset, server, replace(TWICE, connect_seconds=0.3))
        finally:
            # Else a failure would wait for the server.
            stop.set()
        assert "no connection (no answer in time)" in message


@pytest.mark.parametrize("code", [301, 302, 307])
def test_a_redirect_from_https_to_http_is_not_followed(store: Store, dataset: Dataset, trusted: Authority, code: int):
    with FaultServer({PATH: good(BODY)}) as plain:
        answers = {PATH: redirect(plain.url(PATH), code)}
        with (
            FaultServer(answers, tls=trusted.server()) as server,
            pytest.raises(SourceUnavailable, match="redirects from https to http"),
        ):
            get(store, dataset, server.url(PATH, user="user:pw@"))
        assert plain.openings == []


def test_a_connection_that_ends_without_a_goodbye_in_the_middle_is_a_cut_archive(
    store: Store, dataset: Dataset, trusted: Authority
):
    with FaultServer({PATH: in_turn(cut(BODY, 9000), good(BODY))}, tls=trusted.server()) as server:
        assert get(store, dataset, server.url(PATH)).record.sha256 == SHA256
        assert server.request_count(PATH) == 2
