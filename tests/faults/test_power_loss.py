"""The power fails: what was published is on the disk, and what was not is no harm."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from storage.errors import DamagedEntry
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tests.support import store_scenarios
from tests.support.crashes import (
    CALLS,
    Call,
    Disk,
    Tracer,
    careless,
    in_memory,
    lay_out,
    need_strace,
    problems,
    problems_after_again,
    state,
)
from tests.support.store_scenarios import DATASET, STORIES, Story


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as path:
        yield path


def traced(folder: Path, story: Story, script: str = store_scenarios.__file__) -> tuple[Disk, tuple[Call, ...], Store]:
    """Return the disk before the story, the calls of it, and the store afterwards."""
    store = Store(folder / "store")
    story.prepare(store)
    before = Disk(store.root)
    with Tracer(folder, script) as tracer:
        ended = tracer.run(story, store, CALLS)
    assert ended.code == 0, ended.output
    return before, tuple(call for call in ended.log if call.changes and call.is_below(store.root)), store


@pytest.mark.parametrize("name", STORIES)
def test_nothing_gets_its_name_before_it_is_on_the_disk(folder: Path, name: str):
    need_strace()
    before, log, _ = traced(folder, STORIES[name])
    assert careless(before, log) == []


@pytest.mark.parametrize("name", STORIES)
def test_a_power_loss_at_any_moment_harms_nothing(folder: Path, name: str):
    """At every call, for every way in which what was not flushed may be lost."""
    need_strace()
    story = STORIES[name]
    disk, log, after = traced(folder, story)
    disks, wrong = losses(folder, story, disk, log, state(after))
    sys.stdout.write(f"{name}: {len(log)} system calls, {disks} different disks\n")
    assert wrong == []
    assert disks > len(log) / 4


def losses(
    folder: Path, story: Story, disk: Disk, log: Sequence[Call], expected: dict[str, object]
) -> tuple[int, list[str]]:
    """Return on how many different disks the power loss was tried, and what was wrong."""
    champions = {champion_of(disk, folder), expected["champion"]}
    seen: list[dict[str, bytes | None]] = []
    wrong: list[str] = []
    for call in log:
        disk.apply(call)
        for contents in disk.after_power_loss():
            if contents not in seen:
                seen.append(contents)
                store = lay_out(contents, folder / "lost")
                faults = problems(store, story, champions) + problems_after_again(store, story, expected)
                wrong += [f"after {call.name} {call.paths[-1].name}: {problem}" for problem in faults]
                shutil.rmtree(store.root)
    return len(seen), wrong


@pytest.mark.parametrize("name", STORIES)
def test_what_a_command_reported_survives_a_power_loss(folder: Path, name: str):
    need_strace()
    disk, log, after = traced(folder, STORIES[name])
    assert survives(folder, disk, log, state(after))


def survives(folder: Path, disk: Disk, log: Sequence[Call], expected: dict[str, object]) -> bool:
    """Whether a power loss after the last call finds everything that is `expected` on the disk."""
    for call in log:
        disk.apply(call)
    return all(
        whole(lay_out(contents, folder / f"end-{n}"), expected) for n, contents in enumerate(disk.after_power_loss())
    )


def whole(store: Store, expected: dict[str, object]) -> bool:
    try:
        return state(store) == expected and not verify(store).damage
    except DamagedEntry:
        return False


def champion_of(disk: Disk, folder: Path) -> object:
    store = lay_out(disk.after_power_loss()[0], folder / "first")
    champion = Registry(store, DATASET).champion()
    return champion and champion.number


CARELESS = {
    "no file is flushed": "os.fsync = lambda descriptor: None",
    "no folder is flushed": "storage.store.flush = storage.files.flush = lambda path: path.is_dir() or flush(path)",
    "the hint is first": """
def choose(store):
    write_json(store.part(DATASET, "registry") / "champion.json", {"version": 1, "decision": 1})
    make_model(store)
    make_evaluation(store)
    register(store)
    note_run(store)
store_scenarios.COMMANDS["whole"] = choose
""",
}


@pytest.mark.parametrize("change", CARELESS.values(), ids=CARELESS)
def test_a_careless_writer_is_found_out(folder: Path, change: str):
    """What the two tests above find in a writer that is worse than the store."""
    need_strace()
    script = folder / "careless.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(store_scenarios.ROOT)!r})\nimport storage.store\n"
        "from storage.files import flush, write_json\nfrom tests.support import store_scenarios\n"
        f"from tests.support.store_scenarios import *\n{change}\n"
    )
    before, log, after = traced(folder, STORIES["a whole run"], str(script))
    assert careless(copy.deepcopy(before), log)
    lost = not survives(folder, copy.deepcopy(before), log, state(after))
    assert lost or losses(folder, STORIES["a whole run"], before, log, state(after))[1]
