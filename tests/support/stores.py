"""Stores for tests, filled through the store's own interfaces in milliseconds: no training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.ledger import Ledger
from storage.records import Entry, FolderEntry
from storage.registry import Registry, Version
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
    with registry.deciding():
        before = registry.champion()
        after = version.number if promoted else before.number if before else None
        decision = {
            "outcome": "promoted" if promoted else "kept",
            "version": version.number,
            "previous": before.number if before else None,
            "champion": after,
        }
        registry.carry_out(decision, run)
    record = {
        "state": decision["outcome"],
        "sentence": f"{decision['outcome']} v{version.number}",
        "seconds": 1.5,
        "steps": [{"step": name, "key": key} for name, key in steps.items()],
        "report": f"{DATASET}/7-reports/{run}",
    }
    ledger.append("runs", run, record)
    return version


def fingerprint(store: Store) -> dict[str, bytes]:
    """Return all files of a store but its locks, by path."""
    files = (path for path in store.root.rglob("*") if path.is_file() and path.parent.name != "locks")
    return {str(path.relative_to(store.root)): path.read_bytes() for path in sorted(files)}
