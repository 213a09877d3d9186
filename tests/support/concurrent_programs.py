"""Programs that use one store at the same time, for `tests/faults/test_concurrency.py`.

`tests.support.forkserver` runs this. A request has the `arguments`: command, store and what that command needs. The
programs import only storage. Each says on standard output what it does, a line at a time, and logs what the store says
to standard error.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from storage.errors import IdxflowError
from storage.files import locked
from storage.records import FolderEntry
from storage.registry import Registry
from storage.retention import collect
from storage.store import IN_USE, LOCKS, Plan, Store
from storage.verify import verify
from tests.support.stores import DATASET, Thing, retrain

SHARED = Plan(DATASET, "decode", "shared")
"""An entry that no version is made from, so that `collect` removes it whenever it can."""


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def publish(store: Store, *numbers: str) -> None:
    """Retrain by each number, as a run does: holding the data set all the time."""
    for number in map(int, numbers):
        with store.in_use(DATASET):
            version = retrain(store, number)
        say("version", number, version.number)


def read(store: Store, stop: str, pause: str = "0") -> None:
    """Check the whole store and load the champion again and again until the file `stop` is there."""
    registry, rounds = Registry(store, DATASET), 0
    while not Path(stop).exists():
        for finding in verify(store, DATASET).findings:
            say("bad", finding)
        _load_champion(store, registry)
        if [turn for turn in registry.history() if not turn.took_effect]:
            say("bad", "a decision that was carried out is said not to be")
        rounds += 1
        if rounds == 1:
            say("reading")
        time.sleep(float(pause))
    say("rounds", rounds)


def _load_champion(store: Store, registry: Registry) -> None:
    with store.in_use(DATASET):
        champion = registry.champion()
        if champion is None:
            say("bad", "no champion")
            return
        store.get(DATASET, "evaluate", champion.evaluation, Thing)
        if store.get(DATASET, "train", champion.model, Thing).weights_digest != champion.weights_digest:
            say("bad", f"the champion v{champion.number} has other weights")


def write(store: Store, stop: str, number: str) -> None:
    """Retrain with ever new numbers until the file `stop` is there; what one uses must stay while one does."""
    one_at_a_time, rounds, pause = Path(stop).with_suffix(".making"), 0, random.Random(int(number))

    def make(folder: Path) -> Thing:
        with one_at_a_time.open("x"):
            (folder / "data.bin").write_bytes(b"shared")
        one_at_a_time.unlink()
        say("made")
        return Thing(FolderEntry(folder), "shared")

    while not Path(stop).exists():
        with store.in_use(DATASET):
            shared = store.get_or_make(SHARED, Thing, make, str).step.key
            version = retrain(store, int(number) + rounds, promoted=rounds % 3 == 0)
            store.get(DATASET, "decode", shared, Thing)
            store.get(DATASET, "train", version.model, Thing)
        rounds += 1
        time.sleep(pause.uniform(0, 0.2))
    say("rounds", rounds)


def gc(store: Store, stop: str, times: str) -> None:
    """Collect until it has removed something so many times, then create the file `stop`."""
    seen: Counter[str] = Counter()
    while seen["removed"] < int(times):
        collected = collect(store, DATASET, keep_last=1)
        seen["busy" if collected.busy else "removed" if collected.entries else "nothing"] += 1
    Path(stop).touch()
    say("collected", seen["removed"], seen["busy"])


def hold(store: Store, what: str) -> None:
    """Stop oneself (SIGSTOP) before or while making an entry, deciding or collecting; then go on to the end."""
    slowly = {"beginning": _begin_slowly, "making": _make_slowly, "deciding": _decide_slowly}
    slowly.get(what, _collect_slowly)(store)
    say("done")


def _make_slowly(store: Store) -> None:
    def make(folder: Path) -> Thing:
        say("making")
        with (folder / "data.bin").open("wb", buffering=0) as stream:
            stream.write(b"first half, ")
            os.kill(os.getpid(), signal.SIGSTOP)
            stream.write(b"second half")
        (folder / "more.bin").write_bytes(b"more")
        return Thing(FolderEntry(folder), "slow")

    store.get_or_make(SHARED, Thing, make, str)


def _begin_slowly(store: Store) -> None:
    """Stop after it was found that there is no entry yet, before anything is written."""

    def stop(event: str, arguments: tuple) -> None:
        if event == "os.mkdir" and str(arguments[0]).endswith(".partial"):
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(stop)
    follow(store, "making")


def _decide_slowly(store: Store) -> None:
    registry = Registry(store, DATASET)
    version = retrain(store, 100, promoted=False)
    with registry.deciding():
        standing = registry.standing()
        decision = {"outcome": "promoted", "version": version.number, "champion": version.number}
        os.kill(os.getpid(), signal.SIGSTOP)
        registry.carry_out(decision | {"previous": standing.champion}, "slow", standing.number)


def _collect_slowly(store: Store) -> None:
    with locked(store.part(DATASET, LOCKS) / IN_USE):
        os.kill(os.getpid(), signal.SIGSTOP)


def follow(store: Store, what: str) -> None:
    """Want what a holder holds; say when it is there."""
    if what == "making":

        def make(folder: Path) -> Thing:
            say("got")
            (folder / "data.bin").write_bytes(b"first half, second half")
            (folder / "more.bin").write_bytes(b"more")
            return Thing(FolderEntry(folder), "slow")

        say("reused" if store.get_or_make(SHARED, Thing, make, str).step.reused else "made")
    elif what == "deciding":
        registry = Registry(store, DATASET)
        with registry.deciding(lambda: logging.info("waiting for the other decision")):
            say("got")
        retrain(store, 200)
    else:
        with store.in_use(DATASET):
            say("got")


def threads(store: Store) -> None:
    """Retrain in ten threads; say what they did to the state that a process has only one of."""
    temporary: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if event in ("os.chdir", "os.fchdir", "os.putenv", "os.unsetenv"):
            say("bad", event, arguments)
        if event == "open" and str(arguments[0]).endswith(".tmp"):
            temporary.append(str(arguments[0]))

    sys.addaudithook(watch)
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda number: retrain(store, number // 2), range(10)))
    say("temporary", len(temporary), len(set(temporary)))


COMMANDS: dict[str, Callable[..., None]] = {f.__name__: f for f in (publish, read, write, gc, hold, follow, threads)}


def call(request: dict[str, list[str]]) -> int:
    command, root, *rest = request["arguments"]
    # Nobody reads what those say that go on and on.
    logging.basicConfig(level=logging.DEBUG if command == "publish" else logging.INFO, format="%(message)s")
    try:
        COMMANDS[command](Store(Path(root)), *rest)
    except IdxflowError as error:
        say("failed", type(error).__name__, error)
        return error.exit_code
    return 0
