"""Parts of splits: `gc`, `verify` and `copy` know which entry lists which, in a folder and in object storage."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from storage import copying
from storage.errors import DamagedEntry
from storage.files import read_json
from storage.formats import members, split_rows
from storage.ledger import Ledger
from storage.records import Archive, Done, Split
from storage.retention import collect
from storage.store import Store
from storage.verify import verify
from tasks.decode import decode
from tasks.fetch import fetch
from tests.conftest import bars
from tests.support.cloud_stores import LIFE, Cloud
from tests.support.listed_archives import write_listed
from tests.support.memory_objects import Operation, Stopped

NAME = "listed"
ARRAYS = bars(50, 10, 3, (9, 7))


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.close()


@pytest.fixture(params=["folder", "objects"])
def place(request: pytest.FixtureRequest, tmp_path: Path, cloud: Cloud) -> Store:
    store = Store(tmp_path / "store") if request.param == "folder" else cloud.machine()
    store.prepare()
    return store


def trained(store: Store, tmp_path: Path, run: str, numbers: Sequence[int], state: str = "kept") -> Split:
    """Do what a run on some of five archives does to the store, as far as its splits; record it."""
    done = decoded(store, tmp_path, numbers)
    steps = [{"step": one.step.step, "subject": one.step.subject, "key": one.step.key} for one in done]
    Ledger(store, NAME).append("runs", run, {"state": state, "report": None, "steps": steps})
    return done[-1].record


def decoded(store: Store, tmp_path: Path, numbers: Sequence[int]) -> list[Done]:
    dataset = write_listed(tmp_path, ARRAYS, (10,) * 5)
    chosen = tuple(spec for spec in dataset.archives if spec.number in numbers or spec.role.startswith("test"))
    dataset = replace(dataset, archives=chosen)
    pair: list[Done[Archive]] = [
        fetch.fn(store, dataset, dataset.archive(f"train-{kind}")) for kind in ("images", "labels")
    ]
    return [*pair, decode.fn(store, dataset, "train", *(one.record for one in pair))]


def parts(split: Split) -> list[str]:
    return [part.entry.key for part in split_rows.parts(split)]


def splits(store: Store) -> set[str]:
    return {entry.name.key for entry in store.upkeep(NAME).entries() if entry.name.folder == "2-splits"}


def test_what_a_kept_entry_lists_is_kept(place: Store, tmp_path: Path):
    split = trained(place, tmp_path, "run-1", range(5))
    assert len(splits(place)) == 6
    collected = collect(place, NAME, keep_last=1)
    # Of the five archives of labels, three differ.
    assert (collected.entries, collected.kept) == ((), 6 + 6 + 4)
    assert verify(place, NAME).findings == ()
    assert [part.rows for part in split_rows.parts(split)] == [10] * 5


def test_parts_that_a_kept_split_shares_stay_when_another_goes(place: Store, tmp_path: Path):
    first, second, third = (trained(place, tmp_path, f"run-{n}", range(n, n + 3)) for n in range(3))
    gone, *shared = parts(first)
    assert shared == parts(second)[:2]
    would = collect(place, NAME, keep_last=2, dry_run=True)
    assert collect(place, NAME, keep_last=2) == would
    assert splits(place) == {second.entry.key, third.entry.key, *parts(second), *parts(third)}
    assert gone not in splits(place)
    assert verify(place, NAME).findings == ()
    collect(place, NAME, keep_last=1)
    assert splits(place) == {third.entry.key, *parts(third)}
    # The second again: only what is gone is made.
    assert decoded(place, tmp_path, range(1, 4))[-1].step.reason == "1 new part"


def test_what_a_failed_run_has_made_stays_for_the_next(place: Store, tmp_path: Path):
    trained(place, tmp_path, "run-1", range(2))
    # Of the next run, the split was made, and then its end recorded without it.
    made = decoded(place, tmp_path, range(1, 5))[-1].record
    Ledger(place, NAME).append("runs", "run-2", {"state": "failed", "report": None, "steps": []})
    collect(place, NAME, keep_last=1)
    assert splits(place) == {made.entry.key, *parts(made)}
    assert decoded(place, tmp_path, range(1, 5))[-1].step.reused
    trained(place, tmp_path, "run-3", range(2))
    collect(place, NAME, keep_last=1)
    assert made.entry.key not in splits(place)
    assert len(splits(place)) == 3


def test_a_list_goes_before_what_it_lists(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trained(store, tmp_path, "run-1", range(3))
    trained(store, tmp_path, "run-2", (4,))
    from storage import upkeep

    removed = []

    def discard(folder: Path) -> None:
        removed.append((folder / members.MEMBERS).exists())
        if len(removed) == 6:
            raise Stopped

    monkeypatch.setattr(upkeep, "discard", discard)
    with pytest.raises(Stopped):
        collect(store, NAME, keep_last=1)
    assert removed == sorted(removed, reverse=True)
    assert removed.count(True) == 3


def test_a_part_that_is_gone_is_said_and_made_again(place: Store, tmp_path: Path):
    split = trained(place, tmp_path, "run-1", range(3))
    part = [*split_rows.parts(split)][1]
    drop(place, part)
    (finding,) = verify(place, NAME).damage
    assert finding.where == split.entry.where().rstrip("/")
    assert finding.problem == f"expected a part of it at {part.entry.where().rstrip('/')}; found none"
    assert finding.remedy == "run the same command again to rebuild it"
    assert decoded(place, tmp_path, range(3))[-1].step.summary == "30 images of 9×7 in 3 parts, 1 new"
    assert verify(place, NAME).findings == ()


def drop(store: Store, part: Split) -> None:
    key = store.entry_key(NAME, "decode", part.entry.key)
    if store.leases:
        store.objects.delete([found.key for found in store.objects.walk(key)])
    else:
        shutil.rmtree(store.root / key)


@pytest.mark.remedies("storage.formats.members:_damaged")
def test_a_list_that_cannot_be_read_keeps_gc_from_removing_anything(store: Store, tmp_path: Path):
    split = trained(store, tmp_path, "run-1", range(3))
    path = split.entry.path(members.MEMBERS)
    path.chmod(0o644)
    path.write_text("{")
    with pytest.raises(
        DamagedEntry, match=rf"expected the list of its parts; .*; remove {path.parent}, then run again"
    ):
        collect(store, NAME, keep_last=1)
    shutil.rmtree(path.parent)
    assert decoded(store, tmp_path, range(3))[-1].step.reused is False
    assert collect(store, NAME, keep_last=1).entries == ()


@pytest.mark.parametrize("number", [0, 4, 5, 6])
def test_a_copy_that_is_cut_off_never_has_a_list_without_its_parts(
    store: Store, tmp_path: Path, cloud: Cloud, number: int
):
    split = trained(store, tmp_path, "run-1", range(5))
    target = cloud.machine()
    seen = []

    def stop(operation: Operation) -> None:
        if operation.name == "create" and "/2-splits/" in operation.key:
            seen.append(operation)
        if len(seen) > number:
            raise Stopped

    cloud.objects.before = stop
    if number < 6:
        with pytest.raises(Stopped):
            copying.copy(store, target, NAME)
    else:
        copying.copy(store, target, NAME)
    cloud.objects.before = lambda operation: None
    cloud.clock.advance(LIFE + 10)
    other = cloud.machine("other")
    assert verify(other, NAME).damage == ()
    copying.copy(store, other, NAME)
    copied = other.get(NAME, "decode", split.entry.key, Split)
    assert parts(copied) == parts(split)
    assert verify(other, NAME).damage == ()


def test_a_record_of_many_parts_is_as_long_as_that_of_few(store: Store, tmp_path: Path):
    few, many = (trained(store, tmp_path, f"run-{n}", range(n)) for n in (2, 5))
    sizes = [len(str(read_json(split.entry.path("entry.json")))) for split in (few, many)]
    assert abs(sizes[0] - sizes[1]) < 10
