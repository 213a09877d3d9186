"""Sets of archives that arrive in one machine's folder, for a store in object storage that other machines read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from storage.arrivals import Arrivals, new_id
from storage.cloud_store import CloudStore
from storage.datasets.catalog import Dataset
from storage.errors import DigestMismatch, SourceUnavailable, StoreError
from storage.files import sha256_of
from storage.ledger import Ledger
from storage.retention import collect
from storage.snapshots import Arrival, ArrivedFile
from storage.verify import verify
from tasks.fetch import find_or_fetch
from tasks.sources.download import POLICY
from tests.conftest import TinyFactory
from tests.support.memory_objects import MemoryObjects, Stopped, stopping_at

ADDRESS = "s3://bucket/store"
INBOX = "tiny/0-inbox/arrivals"

Machine = Callable[[], CloudStore]


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects(ADDRESS)


@pytest.fixture
def machine(objects: MemoryObjects, tmp_path: Path) -> Machine:
    """Return the store as another machine has it: with a cache of its own."""
    numbers = count()
    return lambda: CloudStore(objects, cache=tmp_path / f"cache-{next(numbers)}")


@pytest.fixture
def tiny_set(tiny: TinyFactory) -> Dataset:
    return tiny()


def take(store: CloudStore, dataset: Dataset) -> Arrival:
    """Take the archives of a data set in the order in which `flows.watcher` does."""
    arrivals, source = Arrivals(store, "tiny"), dataset.source
    assert source
    with arrivals.alone(), arrivals.partial() as place:
        files = {}
        for spec in dataset.archives:
            copy = place / spec.file
            copy.write_bytes((source / spec.file).read_bytes())
            files[spec.role] = ArrivedFile(spec.file, copy.stat().st_size, sha256_of(copy))
        arrival = Arrival(new_id(), "tiny", str(dataset.manifest), str(source), files)
        arrivals.add(place, arrival)
    return arrival


def without_source(dataset: Dataset, arrival: Arrival) -> Dataset:
    """What a run of a set is given: its archives are pinned, and nothing else is known of them."""
    pinned = (replace(spec, sha256=arrival.files[spec.role].sha256) for spec in dataset.archives)
    return replace(dataset, source=None, archives=tuple(pinned))


def fetch(store: CloudStore, dataset: Dataset, arrival: Arrival, number: int = 0) -> str:
    source = Arrivals(store, "tiny").where(arrival.id)
    wanted = without_source(dataset, arrival)
    return find_or_fetch(store, wanted, wanted.archives[number], source, POLICY).record.source


def test_another_machine_reads_what_has_arrived(machine: Machine, tiny_set: Dataset):
    arrival = take(machine(), tiny_set)
    worker = machine()
    assert Arrivals(worker, "tiny").waiting(arrival.source) == [arrival]
    for number, spec in enumerate(tiny_set.archives):
        # What the report says is where it was, not where this machine has a copy of it.
        assert fetch(worker, tiny_set, arrival, number) == f"{ADDRESS}/{INBOX}/{arrival.id}/{spec.file}"


def test_the_watchers_own_machine_fetches_nothing(machine: Machine, objects: MemoryObjects, tiny_set: Dataset):
    store = machine()
    arrival = take(store, tiny_set)
    objects.forget()
    fetch(store, tiny_set, arrival)
    assert objects.counts["download"] == 0


@pytest.mark.remedies("storage.snapshots:check:2")
@pytest.mark.remedies("storage.snapshots:check:2")
def test_an_archive_that_is_not_what_arrived_is_not_used(machine: Machine, objects: MemoryObjects, tiny_set: Dataset):
    arrival = take(machine(), tiny_set)
    file = arrival.files["train-images"].name
    objects.put(f"{INBOX}/{arrival.id}/{file}", b"damaged")
    worker = machine()
    with pytest.raises(DigestMismatch, match="it is not what arrived: expected SHA-256"):
        fetch(worker, tiny_set, arrival)
    place = f"{ADDRESS}/{INBOX}/{arrival.id}"
    assert [*Arrivals(worker, "tiny").damage()] == [(place, f"{file} is not what arrived")]
    (finding,) = verify(worker, "tiny").damage
    assert (finding.where, finding.remedy) == (place, "copy the set into its folder again, and remove this")
    objects.delete([key for key in objects.contents() if key.startswith(f"{INBOX}/{arrival.id}/")])
    again = take(machine(), tiny_set)
    assert fetch(worker, tiny_set, again).startswith(f"{ADDRESS}/{INBOX}/{again.id}/")


def test_damage_of_equal_size_is_found_only_by_reading(machine: Machine, objects: MemoryObjects, tiny_set: Dataset):
    arrival = take(machine(), tiny_set)
    file = arrival.files["test-labels"]
    objects.put(f"{INBOX}/{arrival.id}/{file.name}", bytes(file.bytes))
    arrivals = Arrivals(machine(), "tiny")
    assert [*arrivals.damage(contents=False)] == []
    assert [place for place, _ in arrivals.damage()] == [f"{ADDRESS}/{INBOX}/{arrival.id}"]


@pytest.mark.parametrize("by_gc", [False, True])
def test_a_set_that_was_run_well_leaves_nothing(
    machine: Machine, objects: MemoryObjects, tiny_set: Dataset, by_gc: bool
):
    arrival = take(machine(), tiny_set)
    worker = machine()
    arrivals = Arrivals(worker, "tiny")
    assert arrivals.surplus() == []
    Ledger(worker, "tiny").append("runs", "run-1", {"state": "kept", "report": None, "arrival": arrival.id})
    removed = collect(machine(), "tiny") if by_gc else arrivals.discard(arrival.id)
    assert removed is None or [left.where for left in removed.leftovers] == [f"{ADDRESS}/{INBOX}/{arrival.id}"]
    assert not [key for key in objects.contents() if key.startswith(INBOX)]
    assert not arrivals.is_lost(arrival)
    with pytest.raises(SourceUnavailable, match="the set is no longer there"):
        fetch(worker, tiny_set, arrival)


def test_a_set_whose_snapshot_is_gone_before_its_run_is_lost(
    machine: Machine, objects: MemoryObjects, tiny_set: Dataset
):
    arrival = take(machine(), tiny_set)
    arrivals = Arrivals(machine(), "tiny")
    assert not arrivals.is_lost(arrival)
    objects.delete([f"{INBOX}/{arrival.id}/arrival.json"])
    assert arrivals.is_lost(arrival)


def test_a_watcher_that_ends_at_any_moment_leaves_a_recorded_set_or_rubbish(
    machine: Machine, objects: MemoryObjects, tiny_set: Dataset
):
    store = machine()
    take(store, tiny_set)
    calls = len(objects.operations)
    ended_with = set[tuple[int, int]]()
    for number in range(1, calls + 1):
        left = MemoryObjects(ADDRESS, before=stopping_at(number))
        with pytest.raises(Stopped):
            take(CloudStore(left, cache=store.root / f"{number}-a"), tiny_set)
        left.before = lambda _: None
        for lease in [key for key in left.contents() if "/leases/" in key]:
            # As after two minutes.
            left.delete([lease])
        arrivals = Arrivals(CloudStore(left, cache=store.root / f"{number}-b"), "tiny")
        with arrivals.alone():
            sets = arrivals.waiting(str(tiny_set.source))
            rubbish = [*arrivals.unfinished(), *arrivals.surplus()]
        assert collect(CloudStore(left, cache=store.root / f"{number}-c"), "tiny").leftovers == tuple(rubbish)
        assert [*arrivals.damage()] == []
        whole = [arrival for arrival in sets if not arrivals.is_lost(arrival)]
        assert len(whole) == len(sets)
        ended_with.add((len(sets), len(rubbish)))
    assert ended_with == {(0, 0), (0, 1), (1, 0)}


def test_a_cache_that_cannot_be_written_is_not_taken_for_a_missing_archive(
    machine: Machine, tiny_set: Dataset, tmp_path: Path
):
    arrival = take(machine(), tiny_set)
    (tmp_path / "cache-1").mkdir()
    (tmp_path / "cache-1" / "files").write_text("")
    with pytest.raises(StoreError, match="choose another folder with IDXFLOW_CACHE"):
        Arrivals(machine(), "tiny").fetched(arrival.id, "train-images")
