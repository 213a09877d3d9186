"""Killed anywhere, a run is gone on with by the same command, and ends as if nothing had been.

`IDXFLOW_KILLS=500` asks for more random kills than the tests need; `kills` is what a soak calls.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.registry import Registry
from storage.retention import collect
from storage.store import Store
from storage.verify import verify
from tests.conftest import write_tiny
from tests.support import forked_run
from tests.support.commands import Command, idxflow
from tests.support.crashes import in_memory

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("IDXFLOW_KILLS", "6"))
KILLS_FOR_EACH_STORE = 6
WAIT_SECONDS = 200


@dataclass(frozen=True)
class End:
    """What an unbroken run ends with, and how long it took."""

    weights_digest: str
    turns: list[tuple[str, int | None]]
    names: int
    """Files and folders it left."""
    seconds: float


def begun(manifest: Path, store: Store) -> Command:
    """Start a run without Prefect, from a process that has imported everything (`tests.support.forked_run`)."""
    return Command(str(manifest), str(store.root), env=os.environ, program="run without Prefect")


def names(store: Store) -> int:
    """Return how many files and folders there are, whatever comes and goes meanwhile."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(store.root))


def unbroken(manifest: Path, store: Store) -> End:
    with begun(manifest, store) as run:
        started = time.monotonic()
        assert run.wait() == 0, run.errors
        return end(store, time.monotonic() - started)


def end(store: Store, seconds: float = 0.0) -> End:
    registry = Registry(store, "tiny")
    champion = registry.champion()
    assert champion
    turns = [(turn.outcome, turn.version) for turn in registry.history() if turn.changed]
    return End(champion.weights_digest, turns, names(store), seconds)


def check(store: Store) -> None:
    assert verify(store).damage == ()
    champion = Registry(store, "tiny").champion() if store.root.exists() else None
    assert champion is None or champion.number == 1


def kills(folder: Path, manifest: Path, whole: End, count: int, seed: int = 0) -> Counter[str]:
    """Kill `count` runs at random; return how many were killed after which step had ended.

    Half of them at a random time, half as soon as the store has a random number of files and folders, more than half of
    all: that meets the moments between two writes and, on a machine however busy, later steps than the first. Every
    store is killed several times, unless the run ends first, then a run completes it.
    """
    chance = random.Random(seed)
    met: Counter[str] = Counter()
    while met.total() < count:
        store = Store(folder / "store")
        for _ in range(min(KILLS_FOR_EACH_STORE, count - met.total())):
            moment = _moment(chance, store, whole, by_time=chance.random() < 0.5)
            with begun(manifest, store) as run:
                killed = _killed(run, moment)
                check(store)
                if not killed:
                    break
                met[_last_step(run.errors)] += 1
        ending = unbroken(manifest, store)
        assert (ending.weights_digest, ending.turns) == (whole.weights_digest, whole.turns)
        assert verify(store).damage == ()
        assert collect(store, "tiny").busy is False
        assert verify(store).findings == ()
        shutil.rmtree(store.root)
    return met


def _moment(chance: random.Random, store: Store, whole: End, by_time: bool) -> Callable[[], bool]:
    count = names(store)
    # What is there is only looked through, which takes about a third of the time.
    progress = min(1, count / whole.names)
    until = time.monotonic() + chance.uniform(0, whole.seconds * (1 - progress * 2 / 3))
    target = chance.randint(max(count, whole.names // 2), max(count, whole.names))
    return lambda: time.monotonic() >= until if by_time else names(store) >= target


def _killed(run: Command, moment: Callable[[], bool]) -> bool:
    """Kill a run at its moment; return whether it had not ended before."""
    while not moment() and run.poll() is None:
        time.sleep(0.001)
    run.kill()
    code = run.wait()
    assert code in (0, -signal.SIGKILL), run.errors
    return code != 0


def _last_step(output: str) -> str:
    """Return the last step that the run said was done."""
    lines = [line.split(" - ", 1)[1] for line in output.splitlines() if " | tasks." in line]
    steps = [line.split(":", 1)[0].split()[0] for line in lines if line.rstrip().endswith(")")]
    return steps[-1] if steps else "nothing"


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as path:
        yield path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("kills")).manifest


@pytest.fixture(scope="module")
def whole(manifest: Path) -> Iterator[End]:
    with in_memory() as path:
        yield unbroken(manifest, Store(path / "whole"))


@pytest.mark.timeout(500 + 40 * KILLS)
def test_killed_at_random_and_resumed_it_ends_the_same(folder: Path, manifest: Path, whole: End):
    met = kills(folder, manifest, whole, KILLS)
    sys.stdout.write(f"{KILLS} kills, by the last step that was done: {dict(met)}\n")
    assert sum(met.values()) == KILLS
    assert len(met) > 1


SETTINGS = [f"{name}={json.dumps(value)}" for name, value in forked_run.TRAINING.items()]

BOUNDARIES = {
    "after an archive": ("said:fetch", signal.SIGKILL),
    "after a split": ("said:decode", signal.SIGTERM),
    "after the validation": ("said:validate", signal.SIGKILL),
    "after the statistics": ("said:normalize", signal.SIGTERM),
    "in the training": ("5-models/.*.partial/history.jsonl", signal.SIGKILL),
    "after the training": ("said:train", signal.SIGTERM),
    "after the evaluation": ("said:evaluate", signal.SIGKILL),
    "after the confirmation": ("said:confirm", signal.SIGTERM),
    "after the decision": ("registry/champion.json", signal.SIGKILL),
}


@pytest.mark.flow
def test_the_command_ended_at_each_step_is_resumed(server: dict[str, str], folder: Path, manifest: Path, whole: End):
    """The real command, ended at one step after the other: each time it is gone on with from there."""
    store = Store(folder / "store")
    command = ["run", "--dataset-file", str(manifest), "--store", str(store.root)]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    for name, (moment, number) in BOUNDARIES.items():
        code, output = ended_at(moment, number, command, server, store)
        if number == signal.SIGTERM:
            assert code == 143, (name, output)
            assert output.endswith(ENDED)
            assert "Traceback" not in output
        else:
            assert code == -number, name
        check(store)
    last = idxflow(*command, "--json", env=server)
    assert last.returncode == 0, last.stderr
    assert json.loads(last.stdout)["champion"] == 1
    assert end(store).weights_digest == whole.weights_digest
    assert verify(store).damage == ()


ENDED = "idxflow: terminated; run the same command again to resume\n"


def ended_at(
    moment: str, number: int, command: list[str], environment: dict[str, str], store: Store
) -> tuple[int, str]:
    """Run a command and send it a signal at a moment; return its exit code and what it said of the end."""
    with Command(*command, env=environment) as process:
        wait_for(lambda: reached(moment, process.output, store) or process.poll() is not None)
        process.send_signal(number)
        return process.wait(WAIT_SECONDS), process.errors


def reached(moment: str, output: str, store: Store) -> bool:
    if moment.startswith("said:"):
        return f"\n{moment.removeprefix('said:')}" in output
    return any(store.dataset("tiny").glob(moment))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
