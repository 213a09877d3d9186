"""The store: complete or absent, verified when found again, made once however many ask."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.errors import DamagedEntry, StoreError
from storage.files import read_json, sealed
from storage.records import Entry, FolderEntry
from storage.store import ENTRY, Plan, Store

PLAN = Plan("tiny", "decode", "train", inputs={"images": "aa"}, parameters={"rate": 0.001}, code={"m": "1"})


@dataclass(frozen=True)
class Thing:
    entry: Entry
    value: int


class Maker:
    """Makes a `Thing` and counts how often."""

    def __init__(self, value: int = 7) -> None:
        self.calls = 0
        self.value = value

    def __call__(self, folder: Path) -> Thing:
        self.calls += 1
        (folder / "data.bin").write_bytes(b"x" * 100)
        return Thing(FolderEntry(folder), self.value)


def once(store: Store, maker: Maker, plan: Plan = PLAN):
    return store.get_or_make(plan, Thing, maker, lambda thing: f"value {thing.value}")


def test_a_result_is_made_once_and_found_again(store: Store):
    maker = Maker()
    first, second = once(store, maker), once(store, maker)
    assert maker.calls == 1
    assert (first.step.reused, second.step.reused) == (False, True)
    assert first.record == second.record
    assert first.step.name == "decode train"
    assert first.step.reason == "first run"
    assert first.record.entry.folder == store.entries("tiny", "decode") / PLAN.key


def test_an_entry_lists_its_files_and_what_it_was_made_from(store: Store):
    folder = once(store, Maker()).record.entry.folder
    entry = json.loads((folder / ENTRY).read_text())
    assert entry["files"]["data.bin"]["bytes"] == 100
    assert entry["made_from"]["parameters"] == {"rate": 0.001}
    assert entry["record"] == {"value": 7}
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o444}


def test_the_same_plan_gives_the_same_bytes(store: Store, tmp_path: Path):
    copy = Store(tmp_path / "other")
    first, second = (once(s, Maker()).record.entry.folder for s in (store, copy))
    assert (first / ENTRY).read_bytes() == (second / ENTRY).read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"inputs": {"images": "bb"}}, "new images"),
        ({"parameters": {"rate": 0.003}}, "rate 0.001 → 0.003"),
        ({"code": {"m": "2"}}, "code of m changed"),
        ({"libraries": {"numpy": "3"}}, "numpy none → 3"),
        ({"inputs": {"images": "bb"}, "code": {"m": "2"}}, "new images, code of m changed"),
    ],
)
def test_a_changed_plan_is_made_anew_and_says_why(store: Store, change: dict, reason: str):
    once(store, Maker())
    maker = Maker()
    result = once(store, maker, dataclasses.replace(PLAN, **change))
    assert maker.calls == 1
    assert result.step.reason == reason


def test_the_reason_names_what_differs_inside_of_a_mapping(store: Store):
    config = {"epochs": 50, "hidden": [50, 50]}
    once(store, Maker(), dataclasses.replace(PLAN, parameters={"config": config, "seed": 1}))
    changed = {"hidden": [50, 50], "epochs": 5}
    result = once(store, Maker(), dataclasses.replace(PLAN, parameters={"config": changed, "seed": 1}))
    assert result.step.reason == "config.epochs 50 → 5"


def test_nobody_looks_for_the_reason_of_one_of_many(store: Store, monkeypatch: pytest.MonkeyPatch):
    once(store, Maker())
    monkeypatch.setattr(store, "newest_entries", lambda *arguments: pytest.fail("it looked"))
    plan = dataclasses.replace(PLAN, inputs={"images": "bb"})
    result = once(store, Maker(), dataclasses.replace(plan, one_of_many=True))
    assert (result.step.reason, result.step.key) == ("new", plan.key)


def test_the_reason_compares_with_the_most_similar_result(store: Store):
    for rate in (0.001, 0.003):
        once(store, Maker(), dataclasses.replace(PLAN, parameters={"rate": rate, "seed": 1}))
    result = once(store, Maker(), dataclasses.replace(PLAN, parameters={"rate": 0.001, "seed": 2}))
    assert result.step.reason == "seed 1 → 2"


def test_steps_that_share_a_folder_are_not_compared(store: Store):
    once(store, Maker(), dataclasses.replace(PLAN, step="evaluate"))
    assert once(store, Maker(), dataclasses.replace(PLAN, step="confirm")).step.reason == "first run"


def damage(folder: Path, how: str) -> None:
    path, entry = folder / "data.bin", folder / ENTRY
    for file in (path, entry):
        file.chmod(0o644)
    damages: dict[str, Callable[[], object]] = {
        "bit": lambda: path.write_bytes(b"y" + b"x" * 99),
        "cut": lambda: path.write_bytes(b"x" * 50),
        "gone": path.unlink,
        "link": lambda: path.rename(folder.parent / "elsewhere") and path.symlink_to(folder.parent / "elsewhere"),
        "another file": (folder / "more.bin").touch,
        "entry": lambda: entry.write_text("{"),
        "no entry": entry.unlink,
        "another record": lambda: entry.write_bytes(sealed(read_json(entry) | {"record": {}})),
    }
    damages[how]()


DAMAGED = [
    pytest.param("bit", marks=pytest.mark.remedies("storage.store:_check_file:4")),
    pytest.param("cut", marks=pytest.mark.remedies("storage.store:_check_file:2")),
    pytest.param("gone", marks=pytest.mark.remedies("storage.store:_check_file:3")),
    pytest.param("entry", marks=pytest.mark.remedies("storage.store:read_entry")),
    pytest.param("no entry", marks=pytest.mark.remedies("storage.store:read_entry")),
    pytest.param("link", marks=pytest.mark.remedies("storage.store:_check_file")),
    pytest.param("another file", marks=pytest.mark.remedies("storage.store:read_entry:2")),
    pytest.param("another record", marks=pytest.mark.remedies("storage.store:load")),
]
"""And the places that notice it. A run names no remedy: it makes the entry again."""


@pytest.mark.parametrize("how", DAMAGED)
def test_damage_is_noticed_said_and_mended(store: Store, how: str, caplog: pytest.LogCaptureFixture):
    folder = once(store, Maker()).record.entry.folder
    damage(folder, how)
    with pytest.raises(DamagedEntry):
        store.find(PLAN, Thing)
    maker = Maker()
    result = once(store, maker)
    assert maker.calls == 1
    assert result.step.reason.startswith("damaged: ")
    assert "making it again" in caplog.text
    assert once(store, maker).step.reused


def test_a_failed_step_leaves_nothing_under_its_name(store: Store):
    def fail(folder: Path) -> Thing:
        (folder / "half.bin").write_bytes(b"half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        store.get_or_make(PLAN, Thing, fail, str)
    assert store.find(PLAN, Thing) is None
    assert once(store, Maker()).step.reason == "first run"


def test_ten_threads_make_it_once(store: Store):
    maker = Maker()
    threads = [threading.Thread(target=once, args=(store, maker)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert maker.calls == 1


KILLED = """
import os, pathlib, sys
from tests.storage.test_store import PLAN, Thing
from storage.store import Store
def make(folder):
    (folder / "data.bin").write_bytes(b"half")
    os.kill(os.getpid(), 9)
Store(pathlib.Path(sys.argv[1])).get_or_make(PLAN, Thing, make, str)
"""


def test_a_killed_run_blocks_nothing(store: Store):
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.root)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert killed.returncode == -9
    assert store.find(PLAN, Thing) is None
    result = once(store, Maker())
    assert result.record.value == 7
    assert [p.name for p in store.entries("tiny", "decode").iterdir()] == [PLAN.key]


def test_a_store_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="choose another with --store"):
        Store(tmp_path / "file" / "store").prepare()


def test_a_full_disk_is_said(store: Store):
    def full(folder: Path) -> Thing:
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"x")
        return Thing(FolderEntry(folder), 1)

    with pytest.raises(StoreError, match="No space left"):
        store.get_or_make(PLAN, Thing, full, str)


def test_what_was_left_is_never_followed_out_of_the_store(store: Store, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = outside / "secret"
    secret.write_bytes(b"keep")
    secret.chmod(0o400)
    partial = store.entries("tiny", "decode") / f".{PLAN.key}.partial"
    partial.parent.mkdir(parents=True)
    partial.symlink_to(outside)
    once(store, Maker())
    assert (secret.read_bytes(), secret.stat().st_mode & 0o777) == (b"keep", 0o400)

    test_plan = dataclasses.replace(PLAN, subject="test")
    partial = store.entries("tiny", "decode") / f".{test_plan.key}.partial"
    partial.mkdir()
    (partial / "data.bin").symlink_to(secret)
    folder = once(store, Maker(), test_plan).record.entry.folder
    assert (secret.read_bytes(), secret.stat().st_mode & 0o777) == (b"keep", 0o400)
    assert not (folder / "data.bin").is_symlink()


@pytest.mark.remedies("storage.store:made_from")
def test_what_an_entry_was_made_from_is_known_again_once_it_is_made_again(store: Store):
    damage(once(store, Maker()).record.entry.folder, "entry")
    with pytest.raises(DamagedEntry, match="expected what it was made from"):
        store.made_from("tiny", "decode", PLAN.key)
    once(store, Maker())
    assert store.made_from("tiny", "decode", PLAN.key) == PLAN.made_from


def test_a_link_in_place_of_a_part_of_the_store_is_refused(store: Store, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    store.dataset("tiny").mkdir()
    (store.dataset("tiny") / "2-splits").symlink_to(outside)
    with pytest.raises(StoreError, match="expected a folder of the store at .*2-splits; it is a symbolic link"):
        once(store, Maker())
    assert list(outside.iterdir()) == []
