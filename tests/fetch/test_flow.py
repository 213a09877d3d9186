"""The faults of the network through the real flow: what the run says, and that nothing wrong gets into the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

import tasks.fetch
from flows.retrain import to_validation, validate_dataset
from flows.run import RunFailed
from storage.store import Store
from tasks.sources.download import DownloadPolicy
from tests.conftest import TinyFactory
from tests.fetch.helpers import SECRET, Published, publish
from tests.support.certificates import authority
from tests.support.faultserver import (
    Answer,
    FaultServer,
    cut,
    endless,
    good,
    headed,
    in_turn,
    ranged,
    raw,
    redirect,
    reset,
    silent,
    status,
    trickle,
)
from tests.support.runs import message_of, run_without_prefect

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("results")]

HURRIED = DownloadPolicy(
    connect_seconds=60,
    read_seconds=60,
    deadline_seconds=240,
    min_bytes_per_second=1000,
    rate_window_seconds=60,
    tries=2,
    backoff_seconds=0.01,
    max_wait_seconds=1,
)
BROKEN = "/t10k-images-idx3-ubyte.gz"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.fetch, "POLICY", HURRIED)


@pytest.fixture
def published(tiny: TinyFactory) -> Published:
    return publish(tiny())


def run(manifest: Path, store: Store, source: str | None = None) -> tuple[State, dict[str, Any]]:
    state = validate_dataset(dataset_file=str(manifest), store=str(store.root), source=source, return_state=True)
    result = state.result(raise_on_failure=False)
    return state, (result.outcome if isinstance(result, RunFailed) else result).to_json()


Fault = Callable[[bytes], Answer]

FAILS: dict[str, tuple[Fault, int, str]] = {
    "404": (lambda body: status(404), 4, "404 Not Found"),
    "403": (lambda body: status(403), 4, "403 Forbidden"),
    "503 for ever": (lambda body: status(503), 4, "503 Service Unavailable"),
    "429 for a day": (lambda body: status(429, Retry_After=86400), 4, "asks to wait 86,400 s"),
    "silent": (lambda body: silent, 4, "nothing came for 1 s"),
    "trickle": (lambda body: trickle(body), 4, "fewer than 1,000 bytes per second"),
    "reset": (lambda body: reset(body, 500), 4, "broke off"),
    "cut": (lambda body: cut(body, 500), 4, "broke off after 500 bytes"),
    "cut, length unsaid": (lambda body: good(body[:500], Content_Length=None), 3, "is it cut short?"),
    "endless": (lambda body: endless(), 3, "more bytes"),
    "10 TB": (lambda body: good(body, Content_Length=10**13), 3, "10,000,000,000,000 bytes"),
    "web page": (lambda body: good(b"<html>" + b"x" * 99), 3, "a web page"),
    "other bytes": (lambda body: good(body[::-1]), 3, "expected SHA-256"),
    "redirect loop": (lambda body: redirect(BROKEN), 4, "redirects more than 5 times"),
    "redirect to a file": (lambda body: redirect("file:///etc/passwd"), 4, "other than HTTP"),
    "redirect to link-local": (lambda body: redirect("http://169.254.169.254/latest"), 4, "link-local"),
    "bad status line": (lambda body: raw(b"HTTP/1.1 abc\r\n\r\n"), 4, "valid HTTP"),
    "NUL in a header": (lambda body: headed(b"X: \0", body=body), 4, "valid HTTP"),
    "header of 200 KB": (lambda body: headed(b"X: " + b"x" * 200_000, body=body), 4, "valid HTTP"),
}


IMPATIENT = {"silent": {"read_seconds": 1.0, "tries": 5}, "trickle": {"rate_window_seconds": 3.0}}
"""Also with the archives in which nothing is wrong, which a busy machine does not send at once."""


@pytest.mark.parametrize("name", FAILS)
def test_a_fault_for_good_fails_the_run_with_its_sentence(
    published: Published, store: Store, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tasks.fetch, "POLICY", replace(HURRIED, **IMPATIENT.get(name, {})))
    fault, code, words = FAILS[name]
    answers = {path: good(body) for path, body in published.bodies.items()} | {BROKEN: fault(published.bodies[BROKEN])}
    with FaultServer(answers) as server:
        outcome = run_without_prefect(
            store, dataset_file=str(published.manifest), source=server.url(), to=to_validation
        )
    assert outcome["error"]["exit_code"] == code, outcome["sentence"]
    assert words in outcome["sentence"]
    assert not list(store.root.rglob("*.parquet"))
    assert sorted(path.name for path in store.root.rglob("*-ubyte.gz")) == [
        path[1:] for path in sorted(published.bodies) if path != BROKEN
    ]


@pytest.mark.parametrize("name", ["404", "web page"])
def test_to_prefect_it_is_a_failed_run_with_the_same_sentence(published: Published, store: Store, name: str):
    fault, code, words = FAILS[name]
    answers = {path: good(body) for path, body in published.bodies.items()} | {BROKEN: fault(published.bodies[BROKEN])}
    with FaultServer(answers) as server:
        state, outcome = run(published.manifest, store, server.url())
    assert state.type.value == "FAILED"
    assert state.message == message_of(outcome)
    assert outcome["error"]["exit_code"] == code, outcome["sentence"]
    assert words in outcome["sentence"]


# The archives of labels are of a few dozen bytes.
HEALS: dict[str, Fault] = {
    "503 once": lambda body: in_turn(status(503), good(body)),
    "429 for a second": lambda body: in_turn(status(429, Retry_After=1), good(body)),
    "cut once": lambda body: in_turn(cut(body, 20), good(body)),
    "reset once, resumed": lambda body: in_turn(reset(body, 20, ETag='"a"'), ranged(body, '"a"')),
    "resumed by a liar": lambda body: in_turn(
        cut(body, 20, ETag='"a"'), ranged(body, '"a"', sends=body[::-1]), good(body)
    ),
    "changed meanwhile": lambda body: in_turn(cut(body[::-1], 20, ETag='"a"'), ranged(body, '"b"')),
    "encoding named": lambda body: good(body, Content_Encoding="gzip"),
    "redirected": lambda body: in_turn(redirect("?once", 301), redirect("?twice", 307), good(body)),
}


@pytest.mark.parametrize("four", [list(HEALS)[:4], list(HEALS)[4:]], ids=", ".join)
def test_four_faults_that_heal_at_once_leave_a_valid_data_set(published: Published, store: Store, four: list[str]):
    """One for each archive; then once more with the server gone."""
    pairs = zip(published.bodies.items(), four, strict=True)
    with FaultServer({path: HEALS[name](body) for (path, body), name in pairs}) as server:
        state, _ = run(published.manifest, store, server.url())
    assert state.type.value == "COMPLETED", state.message
    assert {path.name: path.read_bytes() for path in store.root.rglob("*-ubyte.gz")} == {
        path[1:]: body for path, body in published.bodies.items()
    }
    state, again = run(published.manifest, store, server.url())
    assert state.type.value == "COMPLETED", state.message
    assert all(step["reused"] for step in again["steps"].values())


def test_the_second_mirror_helps_and_the_log_names_the_first(
    tiny: TinyFactory, store: Store, caplog: pytest.LogCaptureFixture
):
    dataset = tiny()
    bodies = publish(dataset).bodies
    first = {path: good(body) for path, body in bodies.items()} | {BROKEN: good(bodies[BROKEN][::-1])}
    with FaultServer(first) as bad, FaultServer({path: good(body) for path, body in bodies.items()}) as fine:
        dataset = tiny()
        state, _ = run(publish(dataset, [bad.url(), fine.url()]).manifest, store)
        assert state.type.value == "COMPLETED", state.message
        warnings = [r.getMessage() for r in caplog.records if r.name == "tasks.fetch" and r.levelname == "WARNING"]
        assert len(warnings) == 1
        assert f"{bad.url(BROKEN)}: found " in warnings[0]
        assert warnings[0].endswith(f"trying {fine.url(BROKEN)}")
        assert len(fine.requests) == 1


def test_no_server_at_all_and_a_proxy_that_is_down(published: Published, store: Store, monkeypatch: pytest.MonkeyPatch):
    with FaultServer({}) as server:
        address = server.url()
    state, outcome = run(published.manifest, store, address)
    assert (state.type.value, outcome["error"]["exit_code"]) == ("FAILED", 4)
    assert "no connection (Connection refused)" in outcome["sentence"]
    monkeypatch.setenv("HTTPS_PROXY", address.replace("//", f"//user:{SECRET}@"))
    _, outcome = run(published.manifest, store, "https://archive.invalid")
    assert f"through the proxy {address}" in outcome["sentence"]
    assert SECRET not in outcome["sentence"]


def test_tls_that_is_not_trusted(published: Published, store: Store, tmp_path: Path):
    with FaultServer({}, tls=authority(tmp_path / "other").server()) as server:
        _, outcome = run(published.manifest, store, server.url())
        assert outcome["error"]["exit_code"] == 4
        assert "certificate is not trusted" in outcome["sentence"]
        assert set(server.openings) == {b"\x16"}


def test_nothing_is_fetched_without_a_digest(tiny: TinyFactory, store: Store):
    with FaultServer({}) as server:
        state, outcome = run(tiny().manifest, store, server.url())
        assert (state.type.value, outcome["error"]["exit_code"]) == ("FAILED", 2)
        assert ".sha256 because" in outcome["sentence"]
        assert server.openings == []


@pytest.mark.parametrize(
    "source", ["ftp://host/", "javascript:alert(1)", f"https://u:{SECRET}@host/", f"https://host/?{SECRET}"]
)
def test_a_source_that_cannot_be_one_fails_the_run_at_once(published: Published, store: Store, source: str):
    state, outcome = run(published.manifest, store, source)
    assert (state.type.value, outcome["error"]["exit_code"], outcome["steps"]) == ("FAILED", 2, {})
    assert SECRET not in outcome["sentence"]
