"""How long a download waits, how often it tries, how much it takes."""

from __future__ import annotations

import datetime
import time
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from storage.datasets.catalog import ArchiveSpec, Dataset
from storage.errors import IdxflowError, SourceUnavailable
from storage.store import Store
from tasks.sources.download import download
from tasks.sources.origins import DEFAULT_LIMIT, network_limit
from tasks.sources.partial_file import PartialFile, Received, SourceFailed
from tasks.ui.progress import Progress, listening
from tests.fetch.helpers import BODY, FILE, PATH, PAYLOAD, PAYLOAD_TOO, QUICK, SPEC, get
from tests.support.faultserver import (
    Answer,
    FaultServer,
    early_hints,
    endless,
    good,
    in_turn,
    silent,
    slow_head,
    stall,
    status,
    trickle,
)


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
        pytest.param(early_hints, id="interim responses without end"),
        pytest.param(silent, id="silent"),
        pytest.param(stall(BODY, 9000), id="stall"),
        pytest.param(stall(BODY, 9000, Content_Length=None), id="stall, length unsaid"),
    ],
)
def test_the_deadline_ends_whatever_goes_on(store: Store, dataset: Dataset, answer: Answer):
    policy = replace(QUICK, deadline_seconds=0.2, min_bytes_per_second=0)
    with FaultServer({PATH: answer}) as server, pytest.raises(SourceUnavailable, match=r"not finished within 0\.2 s"):
        get(store, dataset, server.url(PATH), policy=policy, spec=replace(SPEC, bytes=10**9))


@pytest.mark.parametrize(
    ("delay", "least", "most"), [("0", 0, 0), ("1", 1, 1), ("junk", 0, 0.5), ("-1", 0, 0.5), ("\u00b2", 0, 0.5)]
)
def test_a_wait_that_a_server_asks_for_is_kept_and_junk_is_not(
    store: Store, dataset: Dataset, delay: str, least: float, most: float
):
    slept: list[float] = []
    policy = replace(QUICK, backoff_seconds=0.5, sleep=slept.append)
    with FaultServer({PATH: in_turn(status(429, Retry_After=delay), good(BODY))}) as server:
        get(store, dataset, server.url(PATH), policy=policy)
    assert len(slept) == 1
    assert least <= slept[0] <= most


def test_all_tries_at_all_sources_together_end_in_time(store: Store, dataset: Dataset):
    """With real waits."""
    policy = replace(QUICK, tries=100, backoff_seconds=0.02, deadline_seconds=0.5, sleep=time.sleep)
    # It is over before a wait, or within a request.
    ended = r"no time is left to retry|not finished within 0\.5 s"
    with FaultServer({PATH: status(503)}) as server, pytest.raises(SourceUnavailable, match=ended):
        get(store, dataset, *[server.url(PATH)] * 3, policy=policy)
    assert len(server.requests) < 100


def test_a_wait_beyond_the_deadline_is_not_begun(store: Store, dataset: Dataset):
    policy = replace(QUICK, deadline_seconds=10)
    with FaultServer({PATH: status(503, Retry_After=30)}) as server:
        with pytest.raises(SourceUnavailable, match="503 Service Unavailable, and no time is left to retry"):
            get(store, dataset, server.url(PATH), policy=policy)
        assert server.request_count(PATH) == 1


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


def test_progress_is_told_from_the_first_byte_to_the_last(store: Store, dataset: Dataset):
    progress: list[Progress] = []
    with FaultServer({PATH: good(BODY)}) as server, listening(progress.append):
        get(store, dataset, server.url(PATH))
    assert progress[-1] == Progress(FILE, len(BODY), len(BODY), "bytes")
    assert [p.done for p in progress] == sorted(p.done for p in progress)
    assert {p.total for p in progress} == {len(BODY)}
    assert len(progress) < 10


class CountingPart(PartialFile):
    """A part that counts what is taken from the network for it, and refuses gigabytes if nothing else does."""

    counted, most = 0, 2_000_000

    def fill(self, blocks: Iterable[bytes], limit: int, total: int | None, resume: bool = False) -> Received:
        return super().fill(map(self._count, blocks), limit, total, resume)

    def _count(self, block: bytes) -> bytes:
        self.counted += len(block)
        assert self.counted < self.most
        return block


@pytest.mark.parametrize("limit", [0, 1, 65536, 1_000_000])
def test_a_body_without_end_is_left_at_most_64_kib_after_its_limit(tmp_path: Path, limit: int):
    part = CountingPart(tmp_path, FILE)
    with FaultServer({PATH: endless()}) as server, pytest.raises(SourceFailed, match="more bytes"):
        download(server.url(PATH), part, limit, lambda _: None, QUICK, time.monotonic() + 240)
    assert limit < part.counted <= limit + 65536
    assert part.size <= limit


@pytest.mark.parametrize(("size", "announced"), [(None, 10**13), (10**9, 10**9)])
def test_an_announced_size_takes_no_memory(store: Store, dataset: Dataset, size: int | None, announced: int):
    """Refused from the header where the manifest says how much is right, else where the deadline falls."""
    policy = replace(QUICK, deadline_seconds=0.3)
    tracemalloc.start()
    try:
        with FaultServer({PATH: stall(BODY, 9000, Content_Length=announced)}) as server, pytest.raises(IdxflowError):
            get(store, dataset, server.url(PATH), spec=replace(SPEC, bytes=size), policy=policy)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
