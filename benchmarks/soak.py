"""Many retrainings in a row, each with a fault: what is promised must hold after every one of them.

python -m benchmarks.soak --runs 200 --seed 1

Each turn retrains `digits` with a new seed against one Prefect server and spoils one thing: the run is killed or
terminated at a random time, may write only small files, finds no source, gets a wrong parameter, or a result of the
run before has a flipped bit or is cut. Then the whole store is checked: only what was spoilt may be damaged. The
same command again, without the fault, must mend it and end well. `idxflow gc` runs every ten turns.

Ends with a table of memory, open files, threads and sizes, and the same as JSON. Exit code 1 if a promise was broken.
Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import IdxflowError
from storage.registry import Registry
from storage.store import Store
from storage.verify import Verdict, verify
from tests.support.servers import BIN, prefect_server

DATASET = "digits"
RUN_SECONDS = 300
"""A run that takes longer hangs."""
GC_EVERY = 10
MENDABLE = ("fetch", "decode", "validate", "normalize", "train", "confirm")
"""Steps whose results the same command makes again; so is `evaluate`, but for that of an earlier champion."""
NOWHERE = """name = "nowhere"
classes = ["a", "b"]
image_shape = [8, 8]
source = "no-such-folder"
"""


@dataclass(frozen=True)
class Run:
    """How one `idxflow` command ended."""

    code: int
    """Exit code; negative: ended by that signal."""
    seconds: float
    peak: int
    """The most memory of it or of a process it started, in bytes."""
    outcome: dict[str, Any]
    said: str


@dataclass(frozen=True)
class Spoilt:
    """What a fault did, and what may be damaged because of it."""

    code: int | None = None
    damaged: frozenset[Path] = frozenset()
    seed: int | None = None
    """Seed of the run that mends it; None: the turn's own."""


@dataclass
class Soak:
    """One store and one server through many turns."""

    folder: Path
    environment: dict[str, str]
    server: int
    """Process id."""
    epochs: int
    keep_last: int
    chance: random.Random
    broken: list[str] = field(default_factory=list)
    measures: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[int, str] = field(default_factory=dict)
    """Model of each version seen so far."""
    usual_seconds: float = 10
    last: tuple[int, dict[str, Any]] | None = None
    """Seed and outcome of the last run that ended well."""
    turn: str = ""

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def take_turn(self, number: int, fault: str) -> str:
        """Spoil, check, mend, check; return one line about it."""
        self.turn = f"turn {number} ({fault})"
        spoilt = FAULTS[fault](self, number)
        self.check("after the fault", spoilt.damaged)
        seed = spoilt.seed or number
        mended = self.run(seed)
        self.expect(mended.code == 0, f"running again ends with {mended.code}: {mended.said}")
        self.check("after running again")
        if mended.code == 0:
            self.last, self.usual_seconds = (seed, mended.outcome), mended.seconds
        if number % GC_EVERY == 0:
            self.collect()
        self.measure(mended)
        code = "" if spoilt.code is None else str(spoilt.code)
        state = f"{mended.outcome.get('state')} v{mended.outcome.get('version')}"
        return f"{fault:10} {code:>4}  {mended.seconds:5.1f} s  {state:16} {self.now('server memory') / 1e6:6.0f} MB"

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note a broken promise."""
        if not holds:
            self.broken.append(f"{self.turn}: {otherwise}")
            sys.stderr.write(f"BROKEN {self.broken[-1]}\n")

    def check(self, when: str, damaged: frozenset[Path] = frozenset(), leftovers: bool = True) -> None:
        """Check the whole store: damage only where a fault made it, versions as they were, a champion if ever one."""
        verdict: Verdict = verify(self.store)
        found = {Path(finding.where): finding.problem for finding in verdict.damage}
        self.expect(found.keys() == damaged, f"{when}: expected damage at {set(damaged)}; found {found}")
        self.expect(leftovers or not verdict.leftovers, f"{when}: left over: {[f.where for f in verdict.leftovers]}")
        registry = Registry(self.store, DATASET)
        try:
            now = {version.number: version.model for version in registry.versions()}
            champion = registry.champion()
        except IdxflowError as error:
            self.expect(False, f"{when}: {error}")
            return
        self.expect(list(now) == list(range(1, len(now) + 1)), f"{when}: versions {list(now)}")
        self.expect(now.items() >= self.versions.items(), f"{when}: a version is another one now")
        self.expect(bool(champion) or not now, f"{when}: no champion")
        self.versions = now

    def collect(self) -> None:
        """Remove what is old, by the real command; nothing of it may be missed."""
        done = self.idxflow("gc", "--keep-last", str(self.keep_last), "--json")
        said = done.outcome.get("datasets", [])
        self.expect(done.code == 0 and not any(d["busy"] for d in said), f"gc ends with {done.code}: {done.said}")
        self.check("after gc", leftovers=False)

    def run(self, seed: int, *more: str, limit: int = 0, end: tuple[int, float] | None = None) -> Run:
        """Retrain with one seed."""
        given = ["run", DATASET, "--json", "--set", f"epochs={self.epochs}", "--set", f"seed={seed}", *more]
        return self.idxflow(*given, limit=limit, end=end)

    def idxflow(self, *arguments: str, limit: int = 0, end: tuple[int, float] | None = None) -> Run:
        """Run a command to its end.

        Args:
            arguments: those of the command, without the store.
            limit: size in bytes that no file may exceed, as on a disk that fills up; 0 for none.
            end: signal to send, and after how many seconds.
        """
        output, errors = self.folder / "output", self.folder / "errors"
        command = [str(BIN / "idxflow"), *arguments, "--store", str(self.store.root)]
        started = time.monotonic()
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=out, stderr=err,
                preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None,
            )  # fmt: skip
        number, seconds = end or (signal.SIGKILL, RUN_SECONDS)
        timer = threading.Timer(seconds, process.send_signal, [number])
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        took = time.monotonic() - started
        said = errors.read_text(errors="replace").strip()
        self.expect(took < RUN_SECONDS, f"{arguments[0]} takes longer than {RUN_SECONDS} s")
        self.expect("Traceback" not in said, f"{arguments[0]} ends with a trace: {said[-2000:]}")
        return Run(process.returncode, took, usage.ru_maxrss * 1024, _json(output), said[-500:])

    def measure(self, run: Run) -> None:
        """Note what the server, the run and the store use now."""
        family = _family(self.server)
        files = [path.lstat() for path in self.store.root.rglob("*")]
        database = Path(self.environment["PREFECT_HOME"]).glob("prefect.db*")
        for name, value in {
            "server memory": sum(_memory(pid) for pid in family),
            "server open files": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in family),
            "server threads": sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in family),
            "run memory": run.peak,
            "run seconds": run.seconds,
            "store size": sum(file.st_size for file in files),
            "store files": len(files),
            "Prefect database": sum(path.stat().st_size for path in database),
        }.items():
            self.measures.setdefault(name, []).append(value)

    def now(self, measure: str) -> float:
        """Return the newest value of a measure."""
        return self.measures[measure][-1]


def nothing(soak: Soak, number: int) -> Spoilt:
    """Spoil nothing: the control."""
    return Spoilt()


def kill(soak: Soak, number: int) -> Spoilt:
    """End a run at a random time; nothing in it can notice."""
    return Spoilt(soak.run(number, end=(signal.SIGKILL, soak.chance.uniform(0, soak.usual_seconds))).code)


def terminate(soak: Soak, number: int) -> Spoilt:
    """Ask a run to end at a random time, as a service manager does."""
    return Spoilt(soak.run(number, end=(signal.SIGTERM, soak.chance.uniform(0, soak.usual_seconds))).code)


def full(soak: Soak, number: int) -> Spoilt:
    """Let no file grow beyond some size; the sentence must say so."""
    # From the smallest size that the command's own output fits in to more than any result has.
    run = soak.run(number, limit=int(2 ** soak.chance.uniform(13, 18)))
    soak.expect(run.code in (0, 1), f"exit code {run.code}: {run.said}")
    soak.expect(run.code == 0 or bool(run.said), "it fails without a word")
    return Spoilt(run.code)


def no_source(soak: Soak, number: int) -> Spoilt:
    """Run another data set, whose archives are nowhere."""
    manifest = soak.folder / "nowhere.toml"
    manifest.write_text(NOWHERE)
    run = soak.idxflow("run", "--dataset-file", str(manifest), "--json")
    soak.expect(run.code == 4, f"exit code {run.code}, expected 4: {run.said}")
    return Spoilt(run.code)


def wrong(soak: Soak, number: int) -> Spoilt:
    """Ask for what is not allowed: nothing is started."""
    parameter = soak.chance.choice(("epochs=0", "learning_rate=NaN", "epoch=3", "hidden=[0]"))
    run = soak.run(number, "--set", parameter)
    soak.expect(run.code == 2, f"exit code {run.code} for {parameter}, expected 2: {run.said}")
    return Spoilt(run.code)


def flip(soak: Soak, number: int) -> Spoilt:
    """Flip one bit of a result of the last run."""

    def spoil(data: bytearray) -> bytes:
        data[soak.chance.randrange(len(data))] ^= 1 << soak.chance.randrange(8)
        return bytes(data)

    return _rewrite(soak, spoil)


def cut(soak: Soak, number: int) -> Spoilt:
    """Cut a file of a result of the last run."""
    return _rewrite(soak, lambda data: bytes(data[: soak.chance.randrange(len(data))]))


def _rewrite(soak: Soak, spoil: Callable[[bytearray], bytes]) -> Spoilt:
    if soak.last is None:
        return Spoilt()
    seed, outcome = soak.last
    keys = [s["key"] for name, s in outcome["steps"].items() if name.split()[0] in MENDABLE or name == "evaluate"]
    folder = next(soak.store.dataset(DATASET).glob(f"[1-6]-*/{soak.chance.choice(keys)}"))
    path = soak.chance.choice(sorted(folder.iterdir()))
    path.chmod(0o644)
    path.write_bytes(spoil(bytearray(path.read_bytes())))
    return Spoilt(damaged=frozenset({folder}), seed=seed)


FAULTS: dict[str, Callable[[Soak, int], Spoilt]] = {
    "kill": kill,
    "flip": flip,
    "terminate": terminate,
    "full": full,
    "cut": cut,
    "no source": no_source,
    "wrong": wrong,
    "nothing": nothing,
}


def _family(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task").glob("*/children")
    found = [int(pid) for path in children for pid in path.read_text().split()]
    return [process, *(pid for child in found for pid in _family(child))]


def _memory(process: int) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return found


def _show(soak: Soak, faults: Counter[str]) -> None:
    print(f"\n{'':20}{'first':>14}{'last':>14}{'most':>14}")
    summary = {name: {"first": v[0], "last": v[-1], "most": max(v)} for name, v in soak.measures.items()}
    for name, values in summary.items():
        print(f"{name:20}" + "".join(f"{_readable(name, value):>14}" for value in values.values()))
    print(f"\n{len(soak.broken)} promises broken" + "".join(f"\n  {line}" for line in soak.broken))
    print(json.dumps({"faults": faults, "broken": soak.broken, "measures": summary}))


def _readable(measure: str, value: float) -> str:
    if measure == "run seconds":
        return f"{value:.1f}"
    return f"{value / 1e6:,.1f} MB" if value >= 100_000 else f"{value:,.0f}"


def main() -> int:
    """Take all turns, print a line for each and the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="turns; default 200")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and their places")
    parser.add_argument("--epochs", type=int, default=20, help="of each training")
    parser.add_argument("--keep-last", type=int, default=5, help="versions and runs that gc keeps")
    asked = parser.parse_args()
    chance, faults = random.Random(asked.seed), Counter[str]()
    with (
        tempfile.TemporaryDirectory(prefix="idxflow-soak-") as name,
        prefect_server(Path(name)) as (server, environment),
    ):
        soak = Soak(Path(name), environment, server.pid, asked.epochs, asked.keep_last, chance)
        first = soak.run(1)
        soak.expect(first.code == 0, f"the first run ends with {first.code}: {first.said}")
        soak.last, soak.usual_seconds = (1, first.outcome), first.seconds
        left: list[str] = []
        for number in range(2, asked.runs + 2):
            # Each fault as often as any other, in any order.
            left = left or chance.sample(list(FAULTS), len(FAULTS))
            fault = left.pop()
            faults[fault] += 1
            print(f"{number - 1:4}/{asked.runs}  {soak.take_turn(number, fault)}", flush=True)
        _show(soak, faults)
    return 1 if soak.broken else 0


if __name__ == "__main__":
    sys.exit(main())
