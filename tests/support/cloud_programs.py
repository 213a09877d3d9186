"""Programs that use one store in object storage: `python -m tests.support.cloud_programs COMMAND ADDRESS FOLDER …`.

Each is a machine of its own: FOLDER is its cache. They import only storage, and say on standard output what they do, a
line at a time.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

from storage.cloud_store import CloudStore
from storage.errors import IdxflowError
from storage.objects.leases import Leases
from storage.objects.opening import opened
from storage.objects.protocol import always
from storage.retention import collect
from storage.store import ENTRY, Plan, Store
from tests.support.stores import DATASET, Thing, add, retrain

LIFE = 3.0
"""Seconds that a lease lives; ages have a resolution of one."""
NUMBERS = range(8)
"""Of the results that programs make and read, and that no version is made from."""


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def machine(address: str, folder: Path) -> CloudStore:
    objects = opened(address)
    return CloudStore(objects, Leases(objects, LIFE), folder)


def work(address: str, folder: str, stop: str) -> None:
    """Make results and read results of others, a few under each lease, until the file `stop` is there."""
    done: Counter[str] = Counter()
    for number in count():
        # What an earlier round has fetched must not hide what is gone now.
        store = machine(address, Path(folder) / str(number))
        try:
            with store.in_use(DATASET):
                if number == 0:
                    say("holding")
                done["read"] += sum(is_whole(store, one) for one in random.sample(NUMBERS, 3))
        except IdxflowError as error:
            # Where the machine has so much to do that a lease ends, nothing is lost either.
            done["late"] += 1
            if "expected to renew" not in str(error):
                say("lost", error)
        if Path(stop).exists():
            break
        time.sleep(random.uniform(0, 0.4))
    say("done", done["read"], done["late"])


def is_whole(store: Store, number: int) -> bool:
    plan = Plan(DATASET, "decode", "train", parameters={"number": number})
    add(store, "decode", number, "train")
    entry = store.get(DATASET, "decode", plan.key, Thing).entry
    return entry.path("data.bin").read_bytes() == f"decode {number}".encode() * 100


def gather(address: str, folder: str, stop: str, enough: str) -> None:
    """Run gc again and again until it has removed `enough` entries and no run was in its way; then make `stop`."""
    store, removed, busy = machine(address, Path(folder)), 0, 0
    while removed < int(enough):
        collected = collect(store, DATASET, keep_last=1)
        removed += len(collected.entries)
        busy += collected.busy
    Path(stop).touch()
    say("removed", removed, busy)


def use(address: str, folder: str) -> None:
    """Hold the data set, and go on with a run when a line comes."""
    store = machine(address, Path(folder))
    with store.in_use(DATASET):
        say("holding")
        sys.stdin.readline()
        for work in (lambda: add(store, "train", 50), lambda: retrain(store, 1)):
            refused(work)


def halt(address: str, folder: str) -> None:
    """Run gc, and go on when a line comes after the descriptions were removed."""
    store = machine(address, Path(folder))
    delete = store.objects.delete

    def halting(keys: Iterable[str], check: Callable[[], None] = always) -> None:
        removed = [*keys]
        delete(removed, check)
        if removed and removed[0].endswith(ENTRY):
            say("halfway")
            sys.stdin.readline()

    store.objects.delete = halting  # type: ignore[method-assign]
    refused(lambda: collect(store, DATASET, keep_last=1))


def refused(work: Callable[[], object]) -> None:
    try:
        work()
    except IdxflowError as error:
        say("refused", error)
    else:
        say("done")


if __name__ == "__main__":
    {"work": work, "gather": gather, "use": use, "halt": halt}[sys.argv[1]](*sys.argv[2:])
