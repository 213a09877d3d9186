"""How much longer commands take on a store of many runs than on one of few: `python -m benchmarks.age --runs 5000`.

A few real runs fill a store; what the last of them left there, a model, an evaluation with its confirmation, a
report, a version, a decision and a record, is then written again and again under other keys, with links to the files
of the first, and `idxflow verify` finds nothing wrong with it. `--collected` removes the old results from it first, as
`idxflow gc` does; `--unchanged` adds as many runs that found nothing new. Then each command is run on that store and
on one of few runs, in turn, round by round. Ratios are taken within a round, and of the processor's time as well,
which other work on the machine changes least.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.measure import ROOT, ratio, say, spread
from storage.files import put_json_if_absent, read_json, sealed
from storage.ledger import Ledger
from storage.objects import sealed as sealed_object
from storage.records import to_json
from storage.registry import Registry
from storage.retention import collect
from storage.store import ENTRY, FOLDERS, Plan, Store
from storage.verify import verify

DATASET = "digits"
IDXFLOW = Path(sys.executable).parent / "idxflow"
REAL = 2
"""Runs that the rest is made from; each trains with another seed."""
_OF_EACH = ("train", "evaluate", "confirm", "publish")
"""Steps whose results are new in each run with another seed."""


@dataclass(frozen=True)
class Place:
    """A store, and the rest of a world for commands on it."""

    root: Path

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    def idxflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the installed command to its end."""
        return self._call(str(IDXFLOW), *arguments)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python to its end."""
        return self._call(sys.executable, *arguments)

    def _call(self, *command: str) -> subprocess.CompletedProcess[str]:
        foreign = ("PREFECT_", "IDXFLOW_", "PYTHON")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        own = {"HOME": str(self.root), "IDXFLOW_STORE": str(self.store.root), "NO_COLOR": "1", "DO_NOT_TRACK": "1"}
        own |= {"PREFECT_HOME": str(self.root / "prefect"), "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=kept | own, cwd=self.root, capture_output=True, text=True, check=False)


def main(given: Sequence[str]) -> int:
    """Make both stores, measure, print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.age", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=5000, help="of the large store")
    parser.add_argument("--few", type=int, default=10, help="runs of the other one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--unchanged", type=int, default=0, help="runs without anything new, after the others")
    parser.add_argument("--collected", action="store_true", help="remove old results first, as `idxflow gc` does")
    asked = parser.parse_args(given)
    with tempfile.TemporaryDirectory(prefix="idxflow-age-") as folder:
        few, many = Place(Path(folder, "few")), Place(Path(folder, "many"))
        _real_runs(few)
        shutil.copytree(few.root, many.root)
        for place, runs in ((few, asked.few), (many, asked.runs)):
            grow(place.store, runs, min(asked.unchanged, runs))
            if asked.collected:
                collect(place.store, DATASET)
        # Both were made by the same code.
        if damage := verify(few.store).damage:
            sys.exit(f"expected a store like that of real runs; found {damage[0]}")
        print(_about(few, many, asked))
        print(_table(_measured(few, many, asked.rounds)))
    return 0


def _real_runs(place: Place) -> None:
    place.root.mkdir(parents=True)
    for seed in range(1, REAL + 1):
        _well(place.idxflow("run", DATASET, "--set", f"seed={seed}", "--set", "epochs=5"))
    say(f"{REAL} real runs")


def _well(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    if done.returncode:
        sys.exit(f"{' '.join(map(str, done.args))} ended with {done.returncode}: {done.stderr}")
    return done


def grow(store: Store, runs: int, unchanged: int = 0) -> None:
    """Bring a store with real runs to as many as `runs`, and then so many `unchanged` ones."""
    ledger = Ledger(store, DATASET)
    told = ledger.read("runs")
    pattern = told[-1]
    registry = Registry(store, DATASET)
    decision = registry.decision_of(pattern["run"])
    if decision is None:
        sys.exit(f"expected run {pattern['run']} to have decided something")
    before = datetime.now(UTC) - timedelta(minutes=runs + unchanged)
    writer = _Writer(store, pattern, decision, before, len(told) + 1, registry.standing().number + 1)
    fsync, os.fsync = os.fsync, lambda _: None
    try:
        for number in range(len(told) + 1, runs + 1):
            writer.decided(number)
        for number in range(unchanged):
            writer.unchanged(number)
    finally:
        os.fsync = fsync
    hint = {"decision": writer.next_decision - 1, "version": decision["champion"]}
    sealed_object.write(store.objects, registry.pointer, hint)
    with registry.deciding():
        # As each run does that decides.
        registry.decisions()
        registry.made_of(set())
        registry.keep_index()
    say(f"{len(ledger.names('runs')):,} runs at {store.root}")


@dataclass
class _Writer:
    """Writes what runs leave, in the form of a real run; in bulk, so without listing what is there each time."""

    store: Store
    pattern: Mapping[str, Any]
    """A real run in the ledger, which kept the champion."""
    decision: Mapping[str, Any]
    """Its decision."""
    began: datetime
    next_run: int
    """The next number of the ledger's runs."""
    next_decision: int
    like: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """The description of the pattern's entry of each step."""

    def decided(self, number: int) -> None:
        """Write all that a run leaves which trains another model and keeps the champion."""
        run, weights = f"20250101-000000-{number:06}", f"{number:064x}"
        keys = {step: self._entry(step, number, run, weights) for step in _OF_EACH}
        registry = Registry(self.store, DATASET)
        like = registry.version(self.pattern["version"])
        made = {"number": number, "model": keys["train"], "evaluation": keys["evaluate"], "weights_digest": weights}
        version = dataclasses.replace(like, run=run, **made)
        put_json_if_absent(self.store.part(DATASET, "registry") / "versions" / f"{number:08d}.json", to_json(version))
        changed = {"version": number, "looks": number, "weights_digest": weights}
        own = {"run": run, "time": self._time, "after": self.next_run - 1}
        key = registry.ledger.decision_key(self.next_decision)
        sealed_object.create(self.store.objects, key, {**self.decision, **changed, **own})
        self.next_decision += 1
        steps = [
            {**step, "key": step["key"] if step["of"] else keys.get(step["step"], step["key"])} for step in self._steps
        ]
        of_run = {"steps": steps, "version": number, "report": f"{DATASET}/{FOLDERS['publish']}/{run}"}
        self._append(run, {**self.pattern, **of_run, "decision": {**self.pattern["decision"], **changed}})

    def unchanged(self, number: int) -> None:
        """Write what a run leaves that found nothing new."""
        run = f"20250101-000000-u{number:06}"
        self._append(run, {**self.pattern, "state": "unchanged", "sentence": "unchanged"})

    @property
    def _steps(self) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = self.pattern["steps"]
        return steps

    @property
    def _time(self) -> str:
        return (self.began + timedelta(minutes=self.next_run)).isoformat(timespec="milliseconds")

    def _append(self, run: str, values: Mapping[str, Any]) -> None:
        path = self.store.part(DATASET, "ledger") / "runs" / f"{self.next_run:08d}-{run}.json"
        put_json_if_absent(path, {**values, "run": run, "time": self._time})
        self.next_run += 1

    def _entry(self, step: str, number: int, run: str, weights: str) -> str:
        """Write the entry of a step under another key, with links to its files; return the key."""
        folder = self.store.entries(DATASET, step)
        name = (
            self.pattern["run"]
            if step == "publish"
            else next(of["key"] for of in self._steps if of["step"] == step and not of["of"])
        )
        if step not in self.like:
            self.like[step] = read_json(folder / name / ENTRY)
        entry = self.like[step]
        made = entry["made_from"]
        if step in ("train", "publish"):
            made["parameters"] |= {"seed": number} if step == "train" else {"run": run}
        else:
            made["inputs"]["weights"] = weights
        if "weights_digest" in entry["record"]:
            entry["record"]["weights_digest"] = weights
        plan = Plan(DATASET, step, entry["subject"], name=run if step == "publish" else "", **made)
        target = folder / plan.folder
        target.mkdir()
        for file in entry["files"]:
            os.link(folder / name / file, target / file)
        (target / ENTRY).write_bytes(sealed({**entry, "name": plan.name}))
        return plan.key


COMMANDS: Mapping[str, Callable[[int], list[str]]] = {
    "run, nothing new": lambda _: ["run", DATASET, "--set", f"seed={REAL}", "--set", "epochs=5"],
    "run, another seed": lambda turn: ["run", DATASET, "--set", f"seed={1_000_000 + turn}", "--set", "epochs=5"],
    "status": lambda _: ["status"],
    "runs list": lambda _: ["runs", "list", DATASET],
    "registry history": lambda _: ["registry", "history", DATASET],
    "registry show": lambda _: ["registry", "show", DATASET],
    "report": lambda _: ["report", DATASET],
    "gc --dry-run": lambda _: ["gc", "--dry-run"],
}

# The command in a process that counts the files of the store which it opens to read.
_COUNTED = """
import sys
from pathlib import Path
root, opened = sys.argv[1], set()
sys.addaudithook(lambda event, values: opened.add(str(values[0])) if event == "open" else None)
from flows.commands.cli import main
sys.argv = ["idxflow", *sys.argv[2:]]
try:
    main()
except SystemExit as end:
    if end.code:
        raise
print(sum(path.startswith(root) and not path.endswith((".tmp", ".lock")) for path in opened), file=sys.stderr)
"""


Figures = tuple[float, float, int]
"""Seconds by the clock; of the processor, of the process and of all that it started and waited for; files opened."""


@dataclass(frozen=True)
class _Row:
    """One command on both stores."""

    name: str
    few: tuple[Figures, ...]
    """Of each round."""
    many: tuple[Figures, ...]


def _measured(few: Place, many: Place, rounds: int) -> list[_Row]:
    turns, rows = count(), []
    for name, command in COMMANDS.items():
        figures: tuple[list[Figures], list[Figures]] = ([], [])
        for _ in range(rounds):
            turn = next(turns)
            for place, found in zip((few, many), figures, strict=True):
                found.append(_one(place, command(turn)))
        rows.append(_Row(name, tuple(figures[0]), tuple(figures[1])))
        say(f"  {name}: {figures[0][-1][0]:.2f} s and {figures[1][-1][0]:.2f} s")
    return rows


def _one(place: Place, arguments: Sequence[str]) -> Figures:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = _well(place.python("-c", _COUNTED, str(place.store.root), *arguments))
    passed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return passed, worked, int(done.stderr.split()[-1])


def _about(few: Place, many: Place, asked: argparse.Namespace) -> str:
    machine = describe()
    sizes = [
        f"{len(Ledger(place.store, DATASET).names('runs')):,} runs: {inodes:,} files and folders, {size / 1e6:,.1f} MB"
        for place in (few, many)
        for inodes, size in [_taken(place.store)]
    ]
    state = "old results removed" if asked.collected else "nothing removed"
    return (
        f"{machine.processor}, {machine.cores} processors, load {machine.load:.1f}, {machine.date}; "
        f"{asked.rounds} rounds; {state}\n" + "\n".join(sizes) + "\n"
    )


def _taken(store: Store) -> tuple[int, int]:
    there = [path.lstat() for path in store.root.rglob("*")]
    return len(there), sum(state.st_blocks * 512 for state in there)


def _table(rows: Sequence[_Row]) -> str:
    lines = [
        "| | few | many | many ÷ few | processor: few | many | many ÷ few | files opened |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = [
            figure
            for kind in (0, 1)
            for figure in _compared([one[kind] for one in row.few], [one[kind] for one in row.many])
        ]
        opened = f"{row.few[-1][2]:,} and {row.many[-1][2]:,}"
        lines.append(f"| {' | '.join([row.name, *figures, opened])} |")
    return "\n".join(lines)


def _compared(few: Sequence[float], many: Sequence[float]) -> list[str]:
    medians, times = [spread(few), spread(many)], ratio(many, few)
    shown = [f"{found.median:.2f} s" for found in medians if found]
    return [*shown, f"{times.median:.2f} ({times.low:.2f}–{times.high:.2f})" if times else "–"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
