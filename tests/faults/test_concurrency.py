"""Many processes at one store: each sees a whole store, none undoes what another did, none waits for a dead one."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from storage.files import locked
from storage.ledger import Ledger
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tests.support import concurrent_programs
from tests.support.commands import Command, idxflow
from tests.support.concurrent_programs import SHARED
from tests.support.forkserver import Forked, ForkServer
from tests.support.stores import DATASET, Thing, fingerprint, retrain

Start = Callable[..., Forked]
SECONDS = 240
"""Only what hangs takes so long."""


@pytest.fixture(scope="module")
def programs() -> Iterator[ForkServer]:
    """What the programs are forked from: seventy of them would each take an eighth of a second to start."""
    with ForkServer(concurrent_programs.__file__) as server:
        yield server


@pytest.fixture
def start(store: Store, programs: ForkServer) -> Iterator[Start]:
    """Start a program of `tests.support.concurrent_programs` at the store; all end with the test."""
    with ExitStack() as started:

        def program(command: str, *arguments: object) -> Forked:
            request = {"arguments": [command, str(store.root), *map(str, arguments)]}
            return started.enter_context(Forked(programs.address, request))

        yield program


def output_of(process: Forked) -> tuple[str, str]:
    """Wait for the end of a program that must succeed; return its standard output and its log."""
    output, log = process.communicate(SECONDS)
    assert process.wait() == 0, output + log
    return output, log


def await_words(process: Forked, words: str) -> None:
    """Wait until a program has said or logged `words`."""
    while words not in process.output + process.errors:
        # What it has said before its end counts.
        assert process.poll() is None or words in process.output + process.errors, process.errors
        time.sleep(0.01)


def await_stopped(process: Forked) -> None:
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert process.poll() is None, process.errors
        time.sleep(0.01)


def versions(store: Store) -> list[int]:
    return [version.number for version in Registry(store, DATASET).versions()]


def test_ten_at_once_with_the_same_inputs_do_each_step_once(store: Store, start: Start):
    logs = [output_of(process)[1] for process in [start("publish", 7) for _ in range(10)]]
    reasons = Counter(re.findall(r"^(\w+).* [0-9a-f]{32}: (.*)$", "\n".join(logs), re.MULTILINE))
    first = {step: count for (step, reason), count in reasons.items() if reason in ("first run", "new for each run")}
    assert first == {"decode": 1, "train": 1, "evaluate": 1, "publish": 1}
    assert sum(reasons.values()) == 4 * 10
    assert versions(store) == [1]
    assert len(Ledger(store, DATASET).read("runs")) == 10
    assert verify(store).findings == ()


def test_versions_are_numbered_without_gap_and_twenty_readers_see_no_half_of_it(
    store: Store, start: Start, tmp_path: Path
):
    retrain(store, 0)
    stop = tmp_path / "stop"
    readers = [start("read", stop, 0.1) for _ in range(20)]
    for reader in readers:
        await_words(reader, "reading\n")
    writers = [start("publish", number) for number in range(1, 11)]
    rows = [line.split() for writer in writers for line in output_of(writer)[0].splitlines()]
    stop.touch()
    outputs = [output_of(reader)[0] for reader in readers]
    assert [line for output in outputs for line in output.splitlines() if line.startswith("bad")] == []
    rounds = [int(output.rsplit("rounds", 1)[1]) for output in outputs]
    assert min(rounds) > 1
    assert sorted(int(version) for _, _, version in rows) == list(range(2, 12))
    assert versions(store) == list(range(1, 12))
    history = Registry(store, DATASET).history()
    assert [turn.before for turn in history[1:]] == [turn.after for turn in history[:-1]]
    assert all(turn.took_effect for turn in history)
    assert verify(store).findings == ()


def test_retention_removes_neither_the_champion_nor_what_a_run_uses(store: Store, start: Start, tmp_path: Path):
    retrain(store, 0)
    stop = tmp_path / "stop"
    readers = [start("read", stop, 0.2)]
    writers = [start("write", stop, 1000 * n) for n in range(1, 3)]
    collected = output_of(start("gc", stop, 3))[0].split()
    outputs = [output_of(process)[0] for process in (*readers, *writers)]
    assert [line for output in outputs for line in output.splitlines() if line.startswith("bad")] == []
    assert int(collected[1]) == 3
    count = sum(output.count("made\n") for output in outputs)
    assert count > 1, "what was collected is made again, by one at a time"
    assert versions(store) == list(range(1, len(versions(store)) + 1))
    assert verify(store).damage == ()


WAITING = {
    "making": "decode shared: waiting for another run that is making it",
    "deciding": "waiting for the other decision",
    "collecting": "waiting for `gc` to finish",
}


@pytest.mark.parametrize("what", WAITING)
def test_the_lock_of_a_killed_process_is_free_at_once(store: Store, start: Start, what: str):
    retrain(store, 1)
    holder = start("hold", what)
    await_stopped(holder)
    follower = start("follow", what)
    await_words(follower, WAITING[what])
    # Stopped between two of its tries, so that it is not the one that finds the lock free.
    follower.send_signal(signal.SIGSTOP)
    await_stopped(follower)
    holder.kill()
    holder.wait()
    for path in store.dataset(DATASET).rglob("*.lock"):
        with locked(path, partial(pytest.fail, f"{path} is still locked"), shared=True):
            pass
    follower.send_signal(signal.SIGCONT)
    await_words(follower, "got\n")
    output_of(follower)
    assert verify(store).findings == ()


def test_a_stopped_process_that_makes_an_entry_is_waited_for_and_makes_it_once(store: Store, start: Start):
    holder = start("hold", "making")
    await_stopped(holder)
    follower = start("follow", "making")
    await_words(follower, WAITING["making"])
    assert verify(store).findings == (), "work in progress is neither damage nor left over"
    holder.send_signal(signal.SIGCONT)
    assert "done" in output_of(holder)[0]
    assert output_of(follower)[0] == "reused\n"
    assert store.get(DATASET, "decode", SHARED.key, Thing).entry.path("data.bin").read_bytes().endswith(b"second half")


def test_a_stopped_process_that_decides_is_waited_for_and_overwrites_nothing(store: Store, start: Start):
    retrain(store, 1)
    holder = start("hold", "deciding")
    await_stopped(holder)
    follower = start("follow", "deciding")
    await_words(follower, WAITING["deciding"])
    assert Registry(store, DATASET).champion().number == 1, "it is not moved before its decision is complete"
    holder.send_signal(signal.SIGCONT)
    output_of(holder)
    output_of(follower)
    assert [(turn.before, turn.after) for turn in Registry(store, DATASET).history()[1:]] == [(1, 1), (1, 2), (2, 3)]
    assert versions(store) == [1, 2, 3]
    assert verify(store).findings == ()


def remove_locks(store: Store) -> None:
    shutil.rmtree(store.dataset(DATASET) / "locks")


def remove_partial(store: Store) -> None:
    shutil.rmtree(store.entries(DATASET, "decode") / f".{SHARED.key}.partial")


def remove_both(store: Store) -> None:
    remove_locks(store)
    remove_partial(store)


def test_a_process_stopped_before_it_began_replaces_nothing_if_its_lock_was_removed(store: Store, start: Start):
    holder = start("hold", "beginning")
    await_stopped(holder)
    remove_locks(store)
    assert "made" in output_of(start("follow", "making"))[0]
    folder = store.entries(DATASET, "decode") / SHARED.key
    published = folder.stat().st_ino
    holder.send_signal(signal.SIGCONT)
    assert "done" in output_of(holder)[0]
    assert folder.stat().st_ino == published
    assert verify(store).damage == ()


@pytest.mark.parametrize("remove", [remove_locks, remove_partial, remove_both])
def test_a_stopped_process_whose_lock_or_work_was_removed_replaces_nothing(
    store: Store, start: Start, remove: Callable[[Store], None]
):
    """Nothing of idxflow removes these while they are used: a person did."""
    holder = start("hold", "making")
    await_stopped(holder)
    remove(store)
    follower = start("follow", "making")
    if remove is remove_partial:
        await_words(follower, WAITING["making"])
        published = {}
    else:
        assert "made" in output_of(follower)[0]
        published = fingerprint(store)
    holder.send_signal(signal.SIGCONT)
    output, log = holder.communicate(SECONDS)
    assert "Traceback" not in log
    assert holder.wait() == 0 or "failed StoreError" in output
    if follower.poll() is None:
        output_of(follower)
    assert {path: data for path, data in fingerprint(store).items() if path in published} == published
    assert verify(store).damage == ()
    assert output_of(start("follow", "making"))[0] == "reused\n"


def test_a_lock_file_removed_between_opening_and_locking_is_not_taken_for_the_lock(tmp_path: Path):
    path = tmp_path / "a.lock"
    waits, entered, finished = threading.Semaphore(0), threading.Event(), threading.Event()

    def second() -> None:
        with locked(path, waits.release):
            entered.set()
        finished.set()

    thread = threading.Thread(target=second)
    with locked(path):
        thread.start()
        assert waits.acquire(timeout=SECONDS)
        path.unlink()
        third = locked(path)
        third.__enter__()
    # The second has the file that the first held, which no one else can open any more.
    assert waits.acquire(timeout=SECONDS) or entered.is_set()
    both = entered.is_set()
    third.__exit__(None, None, None)
    assert finished.wait(SECONDS)
    thread.join()
    assert not both


def test_threads_share_no_temporary_name_and_change_nothing_of_their_process(store: Store, start: Start):
    output, _ = output_of(start("threads"))
    assert "bad" not in output
    written, names = map(int, output.split()[-2:])
    assert written == names > 0
    assert versions(store) == [1, 2, 3, 4, 5]
    assert verify(store).findings == ()


@pytest.mark.flow
def test_three_real_runs_at_once_two_of_them_the_same_and_a_reader_of_the_history(server: dict[str, str], store: Store):
    environment = {**server, "IDXFLOW_STORE": str(store.root)}
    command = ("run", "digits", "--json", "--set", "epochs=5", "--set")
    with ExitStack() as stack:
        started = [stack.enter_context(Command(*command, f"seed={seed}", env=environment)) for seed in (1, 1, 2)]
        histories = []
        while any(process.poll() is None for process in started):
            time.sleep(0.5)
            if (store.dataset("digits") / "registry").is_dir():
                histories.append(idxflow("registry", "history", "digits", "--json", env=environment))
        outcomes = [json.loads(process.communicate()[0]) for process in started]
        checked = idxflow("verify", "--json", env=environment)
    assert [outcome["error"] for outcome in outcomes] == [None] * 3
    assert [read.stderr for read in histories if read.returncode] == []
    turns = [json.loads(read.stdout) for read in histories]
    assert turns
    assert all(turn["took_effect"] for read in turns for turn in read[:-1])
    registered = [version.number for version in Registry(store, "digits").versions()]
    assert registered == [1, 2]
    assert outcomes[0]["version"] == outcomes[1]["version"] != outcomes[2]["version"]
    decided, repeated = sorted((outcome["state"] for outcome in outcomes[:2]), key=lambda state: state == "unchanged")
    assert (decided in ("promoted", "kept"), repeated) == (True, "unchanged")
    times_made = Counter(
        (name, s["key"]) for o in outcomes for name, s in o["steps"].items() if s["key"] and not s["reused"]
    )
    assert {name: count for name, count in times_made.items() if count > 1} == {}
    assert (checked.returncode, json.loads(checked.stdout)["leftovers"]) == (0, [])
