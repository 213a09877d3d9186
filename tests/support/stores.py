"""Stores for tests, filled through the store's own interfaces in milliseconds: no training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.files import put_json_if_absent, write_json
from storage.ledger import KINDS, Ledger, place
from storage.records import Entry, FolderEntry
from storage.registry import Overtaken, Registry, Version
from storage.store import Plan, Store

DATASET = "tiny"


@dataclass(frozen=True)
class Thing:
    """What the entries hold; enough of a model for the registry."""

    entry: Entry
    weights_digest: str


def add(store: Store, step: str, number: int, subject: str = "", name: str = "") -> tuple[str, Path]:
    """Make one entry of two files, or find it again; return its key and its folder."""

    def make(folder: Path) -> Thing:
        (folder / "data.bin").write_bytes(f"{step} {number}".encode() * 100)
        (folder / "more.bin").write_bytes(b"more" * 50)
        return Thing(FolderEntry(folder), f"weights {number}")

    plan = Plan(DATASET, step, subject, parameters={"number": number}, name=name)
    result = store.get_or_make(plan, Thing, make, lambda thing: thing.weights_digest)
    return result.step.key, result.record.entry.folder


def retrain(store: Store, number: int, promoted: bool = True) -> Version:
    """Do what a run does to the store: a split, a model, a version, a decision, a report, a record."""
    registry, ledger, run = Registry(store, DATASET), Ledger(store, DATASET), f"run-{number}"
    steps = {
        "decode": add(store, "decode", number, "train")[0],
        "train": add(store, "train", number)[0],
        "evaluate": add(store, "evaluate", number)[0],
        "publish": add(store, "publish", number, name=run)[0],
    }
    version = registry.register(
        model=steps["train"],
        evaluation=steps["evaluate"],
        weights_digest=f"weights {number}",
        test_digest="rows",
        test_accuracy=0.9,
        train_accuracy=0.9,
        classes=("a", "b"),
        image_shape=(2, 2),
        run=run,
    )
    outcome = "promoted" if promoted else "kept"
    while True:
        with registry.deciding():
            standing = registry.standing()
            after = version.number if promoted else standing.champion
            decision = {
                "outcome": outcome,
                "version": version.number,
                "previous": standing.champion,
                "champion": after,
            }
            with suppress(Overtaken):
                registry.carry_out(decision, run, standing.number)
                break
    record = {
        "state": outcome,
        "sentence": f"{outcome} v{version.number}",
        "seconds": 1.5,
        "steps": [{"step": name, "key": key} for name, key in steps.items()],
        "report": f"{DATASET}/7-reports/{run}",
    }
    ledger.append("runs", run, record)
    return version


def decide(registry: Registry, outcome: str, champion: int | None, run: str = "run", **more: object) -> None:
    """Record a decision after which a version is the champion, and which is about it unless `more` says otherwise."""
    standing = registry.standing()
    decision = {"outcome": outcome, "version": champion, "champion": champion, "previous": standing.champion}
    registry.carry_out(decision | more, run, standing.number)


def promote(registry: Registry, number: int, run: str = "run") -> None:
    decide(registry, "promoted", number, run)


def decided_in_format_3(store: Store, dataset: str, run: str, decision: Mapping[str, object]) -> Path:
    """Record a decision as format 3 did, with the next number of all records, without moving the pointer."""
    ledger = Ledger(store, dataset)
    names = [name for kind in KINDS for name in ledger.names(kind)]
    number = max((place(name)[1] for name in names), default=0) + 1
    path = store.dataset(dataset) / "ledger" / "decisions" / f"{number:08d}-{run}.json"
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    assert put_json_if_absent(path, {"time": time, **decision, "format": 3, "run": run})
    return path


def pointed_in_format_3(store: Store, dataset: str, number: int | None, run: str = "run") -> None:
    """Make a version the champion as format 3 did, after its decision was recorded."""
    write_json(store.dataset(dataset) / "registry" / "champion.json", {"version": number, "run": run, "time": ""})


def fingerprint(store: Store) -> dict[str, bytes]:
    """Return all files of a store but its locks, by path."""
    files = (path for path in store.root.rglob("*") if path.is_file() and path.parent.name != "locks")
    return {str(path.relative_to(store.root)): path.read_bytes() for path in sorted(files)}
