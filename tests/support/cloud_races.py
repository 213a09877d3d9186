"""Programs that use one store in object storage at the same time: `python -m tests.support.cloud_races COMMAND …`.

Each takes the address of the store, its own name, and how often; each has a cache of its own. They begin together,
with a line on standard input, and say what they did on standard output, a line at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from storage.cloud_store import CloudStore
from storage.errors import IdxflowError
from storage.objects.address import parse
from storage.objects.cloud import Cloud, Patience
from storage.records import FolderEntry
from storage.registry import Overtaken, Registry
from storage.store import Plan
from tests.support.stores import DATASET, Thing, decide


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def publish(store: CloudStore, name: str, count: int) -> None:
    """Make the same entries as all others, each with other bytes, without a claim that would have others wait."""

    def make(folder: Path) -> Thing:
        (folder / "data.bin").write_bytes(name.encode() * 10_000)
        (folder / "more.bin").write_bytes(name.encode())
        return Thing(FolderEntry(folder), name)

    for number in range(count):
        plan = Plan(DATASET, "decode", "shared", parameters={"number": number})
        with store.in_use(DATASET):
            record = store._make(plan, make, damaged=False)
            say(plan.key, record.weights_digest, record.entry.path("more.bin").read_text())


def decisions(store: CloudStore, name: str, count: int) -> None:
    """Decide in turn for version 1 and 2."""
    registry = Registry(store, DATASET)
    for number in range(count):
        while True:
            try:
                decide(registry, "forced", 1 + number % 2, f"run-{name}-{number}")
                break
            except Overtaken:
                continue
        say("decided", number)


COMMANDS: dict[str, Callable[[CloudStore, str, int], None]] = {"publish": publish, "decisions": decisions}


def main() -> int:
    command, address, cache, name, count = sys.argv[1:]
    # More patience than anybody has: by chance, eight tries in a row fail once in some thousand runs.
    objects = Cloud(parse(address), Patience(tries=30, pause=0.005))
    store = CloudStore(objects, cache=Path(cache))
    say("ready")
    sys.stdin.readline()
    try:
        COMMANDS[command](store, name, int(count))
    except IdxflowError as error:
        say("failed", type(error).__name__, error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
