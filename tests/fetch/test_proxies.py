"""Downloads through a proxy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from storage.datasets.catalog import Dataset
from storage.errors import SourceUnavailable
from storage.store import Store
from tests.fetch.helpers import BODY, PATH, QUICK, SECRET, SHA256, get, outside
from tests.support.faultserver import FaultServer, good, redirect


def test_a_proxy_is_used_named_and_its_password_kept(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with FaultServer({PATH: good(BODY), "/in": redirect("http://10.0.0.1/latest")}) as proxy:
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
            policy = replace(QUICK, reach_of=outside(server))
            assert get(store, dataset, server.url(PATH), policy=policy).record.sha256 == SHA256
        assert proxy.request_count(PATH) == 1


def test_proxies_that_cannot_be_used_are_a_sentence(store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", f"gopher://user:{SECRET}@127.0.0.1")
    with pytest.raises(SourceUnavailable, match="ALL_PROXY") as raised:
        get(store, dataset, "http://127.0.0.1:9/a")
    assert SECRET not in str(raised.value)


def test_a_proxy_that_makes_no_tunnel_is_named(store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    with FaultServer({}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url(user=f"user:{SECRET}@"))
        with pytest.raises(SourceUnavailable, match=f"no connection.* through the proxy {proxy.url()}") as raised:
            get(store, dataset, f"https://archive.invalid{PATH}")
        assert [request.path for request in proxy.requests] == ["archive.invalid:443"]
    assert SECRET not in str(raised.value)


def test_a_host_that_needs_no_proxy_is_asked_itself(store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    with FaultServer({}) as proxy, FaultServer({PATH: good(BODY)}) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url())
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert get(store, dataset, server.url(PATH)).record.sha256 == SHA256
        assert proxy.openings == []
