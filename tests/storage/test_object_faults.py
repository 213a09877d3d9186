"""Object storage through a proxy that spoils answers: what was done is known, and what was read is whole."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage.errors import StoreError
from storage.objects.address import parse
from storage.objects.cloud import Cloud, Patience
from tests.support.fault_proxy import Answer, FaultProxy, Faults, Request
from tests.support.object_servers import ObjectServer

NONE = Faults()
ALL = Faults(lost=0.1, busy=0.1, conflict=0.1, cut=0.1, late=0.1)
ON_BOTH = pytest.mark.parametrize("reach", ["ministack", "ceph"], indirect=True)
Reach = Callable[..., tuple[Cloud, FaultProxy]]


@pytest.fixture
def reach(
    request: pytest.FixtureRequest,
    object_servers: Callable[[str], ObjectServer],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Reach]:
    """Reach no objects yet through a proxy: `cloud, proxy = reach(Faults(…), seed=1)`."""
    server = object_servers(getattr(request, "param", "ministack")).fresh()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    address = parse(server.address)
    with ExitStack() as stack:

        def made(faults: Faults = NONE, **how: object) -> tuple[Cloud, FaultProxy]:
            upstream = address.endpoint.removeprefix("http://")
            proxy = stack.enter_context(FaultProxy(upstream, faults, **how))
            # More tries than anybody has patience for: by chance, eight in a row fail once in some thousand runs.
            return Cloud(dataclasses.replace(address, endpoint=proxy.url), Patience(tries=30, pause=0.005)), proxy

        yield made


def test_a_creation_on_azure_whose_answer_is_lost_is_known_to_be_the_own_one(
    object_servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = object_servers("azurite").fresh()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    host, _, account = server.environment["AZURE_STORAGE_ENDPOINT"].removeprefix("http://").partition("/")
    with FaultProxy(host, Faults(first_put_lost=True)) as proxy:
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{proxy.url}/{account}")
        cloud = Cloud(parse(server.address), Patience(pause=0.01))
        assert cloud.create("decisions/1.json", b"mine")
        assert not cloud.create("decisions/1.json", b"mine")
    assert proxy.made["lost"] == 1
    assert [request.method for request in proxy.requests] == ["PUT", "PUT", "GET", "PUT", "GET"]


@ON_BOTH
def test_a_creation_whose_answer_is_lost_is_known_to_be_the_own_one(reach: Reach) -> None:
    cloud, proxy = reach(Faults(first_put_lost=True))
    assert cloud.create("decisions/1.json", b"mine")
    assert proxy.made["lost"] == 1
    # Asked for, asked for again, and looked at.
    assert [request.method for request in proxy.requests] == ["PUT", "PUT", "GET"]
    assert cloud.get("decisions/1.json") == b"mine"


def test_a_creation_whose_answer_is_lost_can_still_be_anothers(reach: Reach) -> None:
    other, _ = reach()
    other.create("decisions/1.json", b"the same bytes")
    cloud, proxy = reach(Faults(first_put_lost=True))
    assert not cloud.create("decisions/1.json", b"the same bytes")
    assert proxy.made["lost"] == 1


def test_bytes_decide_where_the_server_keeps_no_metadata(reach: Reach) -> None:
    cloud, proxy = reach(Faults(first_put_lost=True), without="x-amz-meta-idxflownonce")
    assert cloud.create("decisions/1.json", b"mine")
    assert proxy.made["lost"] == 1
    assert not cloud.create("decisions/1.json", b"yours")


def test_a_conflict_in_which_nobody_wins_is_not_a_loss(reach: Reach) -> None:
    """409 says that two collided; the library says of it that the object exists."""
    conflicts = iter([Answer(409, b"<Error><Code>ConditionalRequestConflict</Code></Error>")] * 2)
    cloud, proxy = reach(instead=lambda request: next(conflicts, None) if request.method == "PUT" else None)
    assert cloud.create("decisions/1.json", b"mine")
    assert [request.method for request in proxy.requests] == ["PUT", "GET", "PUT", "GET", "PUT"]


def test_a_conflict_that_never_ends_is_said(reach: Reach) -> None:
    conflict = Answer(409, b"<Error><Code>ConditionalRequestConflict</Code></Error>")
    cloud, _ = reach(instead=lambda request: conflict if request.method == "PUT" else None)
    cloud.patience = Patience(tries=3, pause=0)
    for write in (cloud.create, cloud.put):
        with pytest.raises(StoreError, match=r"another writer at the same object, again and again.*; wait, or let"):
            write("decisions/1.json", b"mine")


@pytest.mark.parametrize("seed", range(3))
def test_what_is_created_under_faults_is_known(reach: Reach, seed: int) -> None:
    cloud, proxy = reach(ALL, seed=seed)
    created = [cloud.create(f"{number:02d}", f"{number} {seed}".encode()) for number in range(30)]
    assert created == [True] * 30
    assert [cloud.create(f"{number:02d}", b"other") for number in range(30)] == [False] * 30
    assert [cloud.get(f"{number:02d}").decode() for number in range(30)] == [f"{number} {seed}" for number in range(30)]
    assert {"lost", "busy", "conflict", "cut", "late"} <= proxy.made.keys()


@pytest.mark.parametrize("seed", range(2))
def test_every_operation_gets_through_faults(reach: Reach, seed: int) -> None:
    cloud, proxy = reach(ALL, seed=seed)
    for number in range(10):
        key = f"m/{number}/x"
        cloud.put(key, b"0123456789")
        assert cloud.range(key, 2, 5) == b"234"
        assert cloud.get(key, 3) == b"012"
        age = cloud.age(key)
        assert age is not None
        assert age >= 0
        assert cloud.list("m").folders == (str(number),)
        cloud.probe()
        cloud.delete([key, "m/no"])
        assert list(cloud.walk("m")) == []
    assert {"lost", "busy", "cut", "late"} <= proxy.made.keys()


@pytest.mark.parametrize("seed", range(3))
def test_files_are_whole_after_faults(reach: Reach, seed: int, tmp_path: Path) -> None:
    cloud, proxy = reach(dataclasses.replace(ALL, cut=0.3), seed=seed)
    before = tmp_path / "before"
    before.write_bytes(os.urandom(20_000_000))
    cloud.upload("train.parquet", before)
    for number in range(5):
        cloud.download("train.parquet", tmp_path / str(number))
        assert (tmp_path / str(number)).read_bytes() == before.read_bytes()
    assert proxy.made["cut"]


@ON_BOTH
def test_a_download_goes_on_where_it_broke_off(reach: Reach, tmp_path: Path) -> None:
    data = os.urandom(8_000_000)
    cloud, _ = reach()
    cloud.put("x", data)
    cut, proxy = reach(Faults(cut=0.5), seed=1)
    cut.download("x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
    assert proxy.made["cut"]
    assert cut.requests["get"] == len(proxy.requests)
    first, *others = (request.headers.get("range", "") for request in proxy.requests)
    assert first == ""
    assert all(other.startswith("bytes=") and other != "bytes=0-" for other in others)


@ON_BOTH
def test_a_download_of_what_is_replaced_meanwhile_is_not_a_mixture(reach: Reach, tmp_path: Path) -> None:
    old, new = b"o" * 8_000_000, b"n" * 8_000_000
    plain, _ = reach()
    plain.put("x", old)

    def replace(request: Request) -> None:
        if len(proxy.requests) == 2:
            plain.put("x", new)

    # Of this seed, the first is cut off.
    cloud, proxy = reach(Faults(cut=0.5), seed=1, instead=replace)
    cloud.download("x", tmp_path / "x")
    ranges = [request.headers.get("range", "") for request in proxy.requests]
    assert ranges[0] == ""
    assert ranges[1] != ""
    assert ranges[2] == ""
    assert (tmp_path / "x").read_bytes() == new


def test_a_download_that_never_ends_leaves_no_file(reach: Reach, tmp_path: Path) -> None:
    plain, _ = reach()
    plain.put("x", b"1")
    cloud, _ = reach(Faults(lost=1))
    cloud.patience = Patience(tries=3, pause=0)
    with pytest.raises(StoreError, match="connection that broke off"):
        cloud.download("x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@ON_BOTH
def test_one_of_many_processes_creates_an_object_under_faults(reach: Reach) -> None:
    cloud, proxy = reach(ALL, seed=7)
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.creating", cloud.address, "20", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abcdef"
    ]
    for program in programs:
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        program.stdin.write("go\n")
        program.stdin.flush()
    won = [line.partition(" ") for program in programs for line in program.communicate()[0].splitlines()]
    assert [program.returncode for program in programs] == [0] * 6
    assert sorted(key for key, _, _ in won) == [f"race/{number:04d}.json" for number in range(20)]
    assert {key: cloud.get(key).decode() for key, _, _ in won} == {key: data for key, _, data in won}
    # Which requests come when is a matter of chance.
    assert sum(proxy.made[fault] for fault in ("lost", "busy", "conflict", "cut")) > 2


def test_faults_are_the_same_for_a_seed(reach: Reach) -> None:
    def made() -> Counter[str]:
        cloud, proxy = reach(ALL, seed=3)
        for number in range(20):
            cloud.put(f"{number}", b"x")
        return proxy.made

    assert made() == made()
