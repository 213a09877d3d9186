"""Killed or failed at every system call that changes the store: nothing published is harmed, and again is enough."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import pytest

from storage.registry import Registry
from storage.store import Store
from tests.support.crashes import (
    CALLS,
    READING,
    Call,
    Ended,
    Tracer,
    in_memory,
    need_strace,
    problems,
    problems_after_again,
    published,
    state,
)
from tests.support.store_scenarios import DATASET, STORIES, Story

KILL, FULL, BROKEN, DENIED, INTERRUPTED = ("signal=KILL", "error=ENOSPC", "error=EIO", "error=EACCES", "error=EINTR")
ERRORS = {FULL: "No space left on device", BROKEN: "Input/output error", DENIED: "Permission denied"}
RETRIED = ("write", "fsync", "openat")
"""Calls that Python repeats when a signal interrupts them (PEP 475)."""
WORKERS = 2


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as path:
        yield path


@pytest.fixture(scope="module")
def workers() -> Iterator[Executor]:
    """Processes, not threads: a thread that starts a process lends it, for a moment, the locks of the others."""
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        yield pool


@dataclass(frozen=True)
class Bench:
    """One story, told once without harm: what was there before, what is there afterwards, by which calls."""

    folder: Path
    name: str
    before: dict[str, str]
    champions: set[object]
    expected: dict[str, object]
    points: tuple[Call, ...]

    @property
    def story(self) -> Story:
        return STORIES[self.name]

    def copy(self) -> Store:
        """Return a store as it is before the story."""
        name = f"copy-{os.getpid()}"
        return Store(shutil.copytree(self.folder / "before", self.folder / name))


def bench_of(folder: Path, name: str, trace: Sequence[str], relevant: Callable[[Call], bool]) -> Bench:
    before, story = Store(folder / "before"), STORIES[name]
    story.prepare(before)
    champion = Registry(before, DATASET).champion()
    after = Store(shutil.copytree(before.root, folder / "after"))
    with Tracer(folder) as tracer:
        ended = tracer.run(story, after, trace)
    assert ended.code == 0, ended.output
    points = tuple(call for call in ended.log if relevant(call) and call.is_below(after.root))
    expected = state(after)
    champions = {champion and champion.number, expected["champion"]}
    return Bench(folder, name, published(before), champions, expected, points)


@cache
def tracer() -> Tracer:
    """One for each worker, ended with it."""
    return Tracer(Path(tempfile.mkdtemp(prefix="idxflow-trace-")))


def tried(bench: Bench, case: tuple[Call, str]) -> list[str]:
    """Return what goes wrong when a call meets a fault."""
    point, fault = case
    store = bench.copy()
    ended = tracer().run(bench.story, store, (point.name,), f"{point.name}:{fault}:when={point.number}")
    wrong = [] if ended.met else ["the fault was not met"]
    wrong += message_faults(ended, fault)
    if ended.code == 0 and state(store) != bench.expected:
        wrong.append(f"exit code 0, but {state(store)}")
    wrong += harmed(bench, store)
    wrong += problems(store, bench.story, bench.champions)
    wrong += problems_after_again(store, bench.story, bench.expected)
    shutil.rmtree(store.root)
    return [f"{point.name} {point.number} ({point.paths[-1].name}) {fault}: {problem}" for problem in wrong]


def message_faults(ended: Ended, fault: str) -> list[str]:
    code, message = ended.code, ended.output
    if fault == KILL:
        return [] if code == -9 else [f"exit code {code}"]
    if code == 0:
        return []
    one_sentence = message.count("\n") == 0 and message.startswith(("StoreError: ", "DamagedEntry: "))
    names_it = ERRORS.get(fault, "") in message
    if code != 1 or not one_sentence or not names_it or fault == INTERRUPTED:
        return [f"exit code {code}, said {message!r}"]
    return []


def harmed(bench: Bench, store: Store) -> list[str]:
    """Return which files that were published before were changed, or removed by a command that is not to remove any."""
    now = published(store)
    changed = [path for path, digest in bench.before.items() if now.get(path, digest) != digest]
    removed = [path for path in bench.before if path not in now and bench.story.command != "tidy"]
    return [] if bench.story.damaged else [f"{path} was harmed" for path in changed + removed]


def all_of(workers: Executor, bench: Bench, faults: Callable[[Call], Sequence[str]]) -> list[str]:
    """Try every call of a story with each of its faults; return what went wrong."""
    cases = [(point, fault) for point in bench.points for fault in faults(point)]
    sys.stdout.write(f"{bench.name}: {len(bench.points)} system calls, {len(cases)} faults\n")
    return [problem for problems in workers.map(partial(tried, bench), cases) for problem in problems]


def when_writing(points: Sequence[Call]) -> Callable[[Call], Sequence[str]]:
    # Python itself repeats an interrupted call, wherever it is: no code of the store sees that.
    interrupted = [point for point in of_each_kind(points) if point.name in RETRIED]

    def faults(point: Call) -> Sequence[str]:
        # To Python the two errors differ in their number only: every other call of a name meets the one.
        failed = FULL if point.number % 2 else BROKEN
        return (KILL, failed, INTERRUPTED) if point in interrupted else (KILL, failed)

    return faults


def when_reading(point: Call) -> Sequence[str]:
    return (DENIED,) if point.name in ("openat", "newfstatat") else (BROKEN,)


def of_each_kind(points: Sequence[Call]) -> tuple[Call, ...]:
    """Return the first and the last call of each kind: the same call of files whose paths differ in numbers only."""

    def kind(point: Call) -> tuple[str, ...]:
        return (point.name, *(re.sub(r"[0-9a-f]{6,}|[0-9]+", "#", str(path)) for path in point.paths))

    first = {kind(point): point for point in reversed(points)}
    last = {kind(point): point for point in points}
    return tuple(point for point in points if point in (first[kind(point)], last[kind(point)]))


@pytest.mark.parametrize("story", STORIES)
def test_a_fault_at_any_call_that_writes_harms_nothing(workers: Executor, folder: Path, story: str):
    need_strace()
    bench = bench_of(folder, story, CALLS, lambda call: call.changes)
    assert bench.points
    wrong = all_of(workers, bench, when_writing(bench.points))
    assert not wrong, "\n".join(wrong)


READERS = ("an entry is found again", "the champion is replaced", "old versions are removed")


@pytest.mark.parametrize("story", READERS)
def test_what_cannot_be_read_is_reported_and_never_replaced(workers: Executor, folder: Path, story: str):
    """A bad sector under a good file is no reason to write another one, or to forget what the file says."""
    need_strace()
    bench = bench_of(folder, story, READING, lambda call: not call.changes and '""' not in call.arguments)
    assert {call.name for call in bench.points} > {"openat", "read", "getdents64"}
    wrong = all_of(workers, replace(bench, points=of_each_kind(bench.points)), when_reading)
    assert not wrong, "\n".join(wrong)
