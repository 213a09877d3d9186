"""A site as a whole: its health, the token, and requests that pages of other sites send."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from flows.service.guard import Message, Receive, Send
from flows.web.access import Pace
from flows.web.served import Site
from storage.store import Store
from tests.support.sites import served

TOKEN = "a-token-of-24-characters"


@pytest.fixture(scope="module")
def closed(store: Store) -> Iterator[httpx.Client]:
    with served(Site(store, token=TOKEN)) as client:
        yield client


def test_the_health_names_the_champions(client: httpx.Client):
    assert client.get("/healthz").json() == {"status": "ok", "problems": {}, "champions": {"tiny": 1}}


def test_a_page_names_the_data_sets(client: httpx.Client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "tiny" in page.text


def test_an_unknown_address_is_refused_in_a_sentence(client: httpx.Client):
    missing = client.get("/nothing")
    assert (missing.status_code, missing.json()) == (
        404,
        {"error": "expected an address that is served here; found '/nothing'; / has the links"},
    )


@pytest.mark.parametrize(
    ("headers", "status", "sentence"),
    [
        ({"host": "elsewhere.example"}, 421, "add a name with `idxflow serve --allow-host NAME`"),
        ({"origin": "https://elsewhere.example"}, 403, "expected no request from another origin"),
        ({"sec-fetch-site": "cross-site"}, 403, "expected no request from a page of another site"),
    ],
)
def test_other_sites_reach_nothing(client: httpx.Client, headers: dict[str, str], status: int, sentence: str):
    refused = client.get("/healthz", headers=headers)
    assert refused.status_code == status
    assert sentence in refused.json()["error"]


def test_answers_are_isolated_from_other_pages(client: httpx.Client):
    headers = client.get("/").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("given", [None, "Bearer another", "Basic bm9ib2R5Og==", "Basic %", "Basic ä", "Bearer ä"])
def test_without_the_token_there_is_nothing_but_the_status(closed: httpx.Client, given: str | None):
    headers = {"authorization": given.encode() if given else b""}
    refused = closed.get("/", headers=headers)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="idxflow"')
    assert "expected the token of this server" in refused.json()["error"]
    assert closed.get("/healthz", headers=headers).json() == {"status": "ok"}


def test_the_token_opens_as_a_bearer_and_as_a_password(closed: httpx.Client):
    assert closed.get("/healthz").json()["champions"] == {"tiny": 1}
    assert closed.get("/", auth=("anyone", TOKEN)).status_code == 200


def test_the_pace_is_that_of_each_address():
    now, passed = [0.0], list[str]()

    async def inner(scope: Message, receive: Receive, send: Send) -> None:
        passed.append(scope["client"][0])

    async def nothing(*_: Message) -> Message:
        return {}

    # Of more than two addresses, the one that has been quiet for longest is forgotten.
    pace = Pace(inner, 2, lambda: now[0], most=2)

    def ask(*addresses: str) -> list[str]:
        passed.clear()
        for address in addresses:
            asyncio.run(pace({"type": "http", "client": (address, 1)}, nothing, nothing))
        return list(passed)

    assert ask("a", "a", "a", "b") == ["a", "a", "b"]
    now[0] = 0.4
    assert ask("a") == []
    now[0] = 0.6
    assert ask("a", "a") == ["a"]
    assert ask("c", "b", "a", "a") == ["c", "b", "a", "a"]


def test_an_error_of_our_own_is_an_answer_too(store: Store, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with served(Site(store)) as client:
        monkeypatch.setattr("flows.web.api._mean_image", fail)
        failed = client.get("/v1/tiny/mean.png")
        assert (failed.status_code, failed.json()) == (
            500,
            {"error": "expected an answer; found an error of the server (ZeroDivisionError); see its output"},
        )
        assert client.get("/healthz").status_code == 200
