"""Processes at one store in object storage, on real servers: results are published once, decisions are in line."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from storage.cloud_store import CloudStore
from storage.ledger import Ledger
from storage.objects.address import parse
from storage.objects.cloud import Cloud
from storage.registry import Registry
from storage.store import ENTRY
from storage.verify import verify
from tests.support.fault_proxy import FaultProxy, Faults
from tests.support.object_servers import ObjectServer
from tests.support.stores import DATASET, retrain

FAULTS = Faults(lost=0.05, busy=0.05, conflict=0.05, cut=0.05, late=0.05)


@pytest.fixture
def server(
    request: pytest.FixtureRequest, object_servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch
) -> ObjectServer:
    server = object_servers(request.param).fresh()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


def started(command: str, address: str, folder: Path, name: str, count: int) -> subprocess.Popen[str]:
    """Start a program of `tests.support.racing_programs`, which waits for a line."""
    words = [sys.executable, "-m", "tests.support.racing_programs", command, address]
    return subprocess.Popen(
        [*words, str(folder / name), name, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def raced(command: str, address: str, folder: Path, names: str, count: int) -> list[str]:
    """Run a program of `tests.support.racing_programs` once for each name, all at once; return what they say."""
    programs = [started(command, address, folder, name, count) for name in names]
    for program in programs:
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        program.stdin.write("go\n")
        program.stdin.flush()
    said = [line for program in programs for line in program.communicate()[0].splitlines()]
    assert [program.returncode for program in programs] == [0] * len(names), said
    return said


def assert_published_once(store: CloudStore, said: list[str], names: str, count: int) -> None:
    """Check that all were given the same record, and that nothing of the others' attempts is left."""
    assert len(said) == len(names) * count
    for line in {*said}:
        assert said.count(line) == len(names), "a key has two records"
    keys = {line.split()[0] for line in said}
    assert len(keys) == count
    objects = [*store.objects.walk(f"{DATASET}/2-splits")]
    assert len(objects) == 3 * count
    assert {found.key.split("/")[2] for found in objects if found.name == ENTRY} == keys
    assert verify(store).findings == ()


@pytest.mark.parametrize(("server", "count"), [("ministack", 8), ("ceph", 3)], indirect=["server"])
def test_what_six_processes_make_at_once_is_published_once(server: ObjectServer, tmp_path: Path, count: int):
    said = raced("publish", server.address, tmp_path, "abcdef", count)
    store = CloudStore(Cloud(parse(server.address)), cache=tmp_path / "reader")
    assert_published_once(store, said, "abcdef", count)


@pytest.mark.parametrize("server", ["ministack"], indirect=True)
def test_what_is_made_at_once_is_published_once_although_answers_are_lost(server: ObjectServer, tmp_path: Path):
    address = parse(server.address)
    with FaultProxy(address.endpoint.removeprefix("http://"), FAULTS, seed=11) as proxy:
        said = raced("publish", str(dataclasses.replace(address, endpoint=proxy.url)), tmp_path, "abcdef", 4)
    # Which requests come when is a matter of chance; some of hundreds are struck.
    assert sum(proxy.made[fault] for fault in ("lost", "busy", "conflict", "cut")) > 2
    assert_published_once(CloudStore(Cloud(address), cache=tmp_path / "reader"), said, "abcdef", 4)


@pytest.mark.parametrize("server", ["ministack"], indirect=True)
def test_decisions_of_ten_processes_are_an_unbroken_chain_although_answers_are_lost(
    server: ObjectServer, tmp_path: Path
):
    address = parse(server.address)
    store = CloudStore(Cloud(address), cache=tmp_path / "reader")
    for number in (1, 2):
        retrain(store, number)
    with FaultProxy(address.endpoint.removeprefix("http://"), FAULTS, seed=12) as proxy:
        raced("decisions", str(dataclasses.replace(address, endpoint=proxy.url)), tmp_path, "abcdefghij", 2)
    ledger = Ledger(store, DATASET)
    decisions = ledger.read("decisions")
    assert ledger.names("decisions") == [f"{number:08d}.json" for number in range(1, 23)]
    assert all(after["previous"] == before["champion"] for before, after in pairwise(decisions))
    assert sorted(decision["run"] for decision in decisions[2:]) == [
        f"run-{n}-{i}" for n in "abcdefghij" for i in (0, 1)
    ]
    assert Registry(store, DATASET).champion().number == decisions[-1]["champion"]
    assert verify(store).findings == ()


@pytest.mark.parametrize("server", ["ministack"], indirect=True)
def test_who_is_killed_at_random_has_published_whole_results_or_none(server: ObjectServer, tmp_path: Path):
    chance, names, count = random.Random(13), iter("abcdefghijk"), 12
    said: list[str] = []

    def start() -> subprocess.Popen[str]:
        program = started("publish", server.address, tmp_path, next(names), count)
        assert program.stdout.readline() == "ready\n"
        program.stdin.write("go\n")
        program.stdin.flush()
        return program

    programs = [start() for _ in range(4)]
    for _ in range(7):
        doomed = programs.pop(chance.randrange(len(programs)))
        # Somewhere in the midst of the next one.
        said += [doomed.stdout.readline() for _ in range(chance.randrange(4))]
        doomed.kill()
        said += doomed.communicate()[0].splitlines(keepends=True)
        programs.append(start())
    for program in programs:
        said += program.communicate()[0].splitlines(keepends=True)
        assert program.returncode == 0, said
    # The last line of a killed one may be cut.
    records = {line.strip() for line in said if line.endswith("\n")}
    assert len(records) == len({record.split()[0] for record in records}) == count
    store = CloudStore(Cloud(parse(server.address)), cache=tmp_path / "reader")
    assert len([found for found in store.objects.walk(f"{DATASET}/2-splits") if found.name == ENTRY]) == count
    assert verify(store).damage == ()
