"""What the storage path does, one command at a time, in a process that is quick to start and to be killed.

    python -I -S -B tests/support/store_scenarios.py COMMAND STORE

Standard library and `storage` only; a command goes through the same functions as the tasks do, and ends as `idxflow`
does: with a sentence and an exit code. `tests.support.forkserver` runs this, too, for `tests.support.crashes`: a
request has `command` and `store`, and the process stops before the command, so that a tracer sees the command's system
calls and no others.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from storage.arrivals import Arrivals, copied  # noqa: E402
from storage.errors import IdxflowError  # noqa: E402
from storage.files import sha256_of  # noqa: E402
from storage.ledger import Ledger  # noqa: E402
from storage.records import Evaluation, FolderEntry, TrainedModel  # noqa: E402
from storage.registry import Registry  # noqa: E402
from storage.retention import collect  # noqa: E402
from storage.snapshots import Arrival, ArrivedFile  # noqa: E402
from storage.store import Plan, Store  # noqa: E402

DATASET = "tiny"
FILES = ("architecture.json", "history.jsonl", "weights.npz")
MODELS = (1, 2, 3)
ROLES = ("test-images", "test-labels", "train-images", "train-labels")


def train_plan(model: int) -> Plan:
    return Plan(DATASET, "train", inputs={"train": "a" * 64}, parameters={"seed": model})


def evaluate_plan(model: int) -> Plan:
    return Plan(DATASET, "evaluate", "model", inputs={"weights": digest(model)})


def digest(model: int) -> str:
    return f"{model:064x}"


def make_model(store: Store, model: int = 1) -> None:
    """Three files, each larger than a page, one of them larger than Python's write buffer."""

    def write(folder: Path) -> TrainedModel:
        for path in folder.iterdir():
            path.unlink()
        for size, name in enumerate(FILES, start=1):
            (folder / name).write_bytes(bytes([64 + model]) * 4100 * size)
        return TrainedModel(FolderEntry(folder), digest(model), 10, 90, 10, 3, 3, 0.5, 0.9)

    store.get_or_make(train_plan(model), TrainedModel, write, lambda record: f"{record.epochs_run} epochs")


def make_evaluation(store: Store, model: int = 1) -> None:
    def write(folder: Path) -> Evaluation:
        for path in folder.iterdir():
            path.unlink()
        (folder / "predictions.npz").write_bytes(bytes([96 + model]) * 500)
        return Evaluation(
            FolderEntry(folder), digest(model), "b" * 64, 10, 9, 0.9, 0.6, 1.0, 0.4, (), ((9, 1), (0, 0)), ()
        )

    store.get_or_make(evaluate_plan(model), Evaluation, write, lambda record: f"{record.correct} right")


def register(store: Store, model: int = 1) -> int:
    return (
        Registry(store, DATASET)
        .register(
            model=train_plan(model).key,
            evaluation=evaluate_plan(model).key,
            weights_digest=digest(model),
            test_digest="b" * 64,
            test_accuracy=0.9,
            train_accuracy=0.95,
            classes=("x", "y"),
            image_shape=(2, 2),
            run="run",
        )
        .number
    )


def note_run(store: Store) -> None:
    Ledger(store, DATASET).append("runs", "run", {"state": "kept", "report": None})


def choose(store: Store, model: int = 1, outcome: str = "promoted") -> None:
    """Register, decide and promote, as `tasks.decide` does."""
    registry = Registry(store, DATASET)
    with registry.deciding():
        number = register(store, model)
        standing = registry.standing()
        before, sentence = standing.champion, f"{outcome} v{number}: better"
        decision = {"outcome": outcome, "version": number, "champion": number, "previous": before, "sentence": sentence}
        registry.carry_out(decision, "run", standing.number)


def whole(store: Store, model: int = 1) -> None:
    """Everything a run leaves."""
    make_model(store, model)
    make_evaluation(store, model)
    choose(store, model)
    note_run(store)


def tidy(store: Store) -> None:
    collect(store, DATASET, keep_last=1, dry_run=False)


def take(store: Store, number: int = 1) -> None:
    """Take a set of archives into the store in the order in which `flows.watcher` does, unless it came last."""
    arrivals, source = Arrivals(store, DATASET), "/inbox"
    with arrivals.alone(), arrivals.partial() as place:
        for role in ROLES:
            _copy_in(place / role, bytes([96 + number]) * 5000)
        files = {role: ArrivedFile(role, 5000, sha256_of(place / role)) for role in ROLES}
        arrival = Arrival(f"20260101-000000-{number:08x}", DATASET, None, source, files)
        last = arrivals.last(source)
        if last is None or last.mark != arrival.mark:
            arrivals.add(place, arrival)


def _copy_in(target: Path, data: bytes) -> None:
    original = os.memfd_create("original")
    try:
        os.pwrite(original, data, 0)
        copied(original, target)
    finally:
        os.close(original)


COMMANDS: dict[str, Callable[[Store], object]] = {
    "make": make_model,
    "choose-second": lambda store: choose(store, 2),
    "roll-back": lambda store: choose(store, 1, "rolled back"),
    "whole": whole,
    "whole-second": lambda store: whole(store, 2),
    "tidy": tidy,
    "take-second": lambda store: take(store, 2),
}


def damage_model(store: Store) -> None:
    path = store.entries(DATASET, "train") / train_plan(1).key / FILES[0]
    path.chmod(0o644)
    path.write_bytes(b"not what was published")


def interrupt_model(store: Store) -> None:
    """Leave what a run leaves that was killed just before its entry got its name."""
    make_model(store)
    folder = store.entries(DATASET, "train") / train_plan(1).key
    folder.rename(folder.with_name(f".{folder.name}.partial"))


@dataclass(frozen=True)
class Story:
    """A command, and what is in the store when it starts."""

    command: str
    before: tuple[Callable[[Store], object], ...] = ()
    damaged: bool = False
    """What is there at the start is damaged: until it is mended, `verify` says so."""

    def prepare(self, store: Store) -> None:
        store.prepare()
        for step in self.before:
            step(store)


def _models(store: Store) -> None:
    for model in MODELS:
        make_model(store, model)
        make_evaluation(store, model)


def _three_versions(store: Store) -> None:
    """Two that were never champion, and the champion."""
    _models(store)
    register(store, 1)
    register(store, 2)
    choose(store, 3)


STORIES: dict[str, Story] = {
    "a whole run": Story("whole"),
    "an entry is found again": Story("make", (make_model,)),
    "a damaged entry is replaced": Story("make", (make_model, damage_model), damaged=True),
    "an interrupted entry is made": Story("make", (interrupt_model,)),
    "the champion is replaced": Story("choose-second", (_models, choose)),
    "the champion is rolled back": Story("roll-back", (_models, choose, lambda store: choose(store, 2))),
    "old versions are removed": Story("tidy", (_three_versions,)),
    "a second set arrives": Story("take-second", (take,)),
}


def main(command: str, root: str) -> int:
    store = Store(Path(root))
    # Only the sentence at the end is wanted.
    logging.disable()
    try:
        store.prepare()
        COMMANDS[command](store)
    except IdxflowError as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        return error.exit_code
    return 0


def call(request: dict[str, str]) -> int:
    # Debian and Ubuntu let a process be traced by its parent only, unless it says otherwise (prctl(2)).
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))
    os.kill(os.getpid(), signal.SIGSTOP)
    return main(request["command"], request["store"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
