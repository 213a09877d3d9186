"""Readers that need little of a file in object storage fetch little of it, and notice what is not right."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from storage.cloud_store import CloudStore
from storage.errors import DamagedEntry, StoreError
from storage.formats import parquet
from storage.records import Entry, FolderEntry
from storage.runtime.ranged import TAIL, Ranged, contents
from storage.store import ENTRY, Plan
from tests.support.memory_objects import MemoryObjects, cloud_store

GROUPS, ROWS = 8, 512
IMAGES = np.random.default_rng(5).integers(0, 256, (GROUPS * ROWS, 14, 14), dtype=np.uint8)
LABELS = (np.arange(GROUPS * ROWS) % 10).astype(np.uint8)


@dataclass(frozen=True)
class Stored:
    """A record of a split, and of a small file beside it."""

    entry: Entry


def made(store: CloudStore) -> Entry:
    """Return the entry of a split from the store, or make it."""

    def make(folder: Path) -> Stored:
        with parquet.Writer(folder / "train.parquet", (14, 14), tuple("abcdefghij")) as writer:
            for group in range(GROUPS):
                rows = slice(group * ROWS, (group + 1) * ROWS)
                writer.write(IMAGES[rows], LABELS[rows])
            writer.close({"image_shape": [14, 14], "rows": len(LABELS)})
        (folder / "small.txt").write_text("a small file")
        return Stored(FolderEntry(folder))

    return store.get_or_make(Plan("tiny", "decode", "train"), Stored, make, lambda _: "").record.entry


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def mine(objects: MemoryObjects, tmp_path: Path) -> Entry:
    """The entry, as the person sees it who has made it."""
    return made(cloud_store(tmp_path / "mine", objects))


@pytest.fixture
def theirs(mine: Entry, objects: MemoryObjects, tmp_path: Path) -> CloudStore:
    """The store, as another person sees it, who has nothing in the cache."""
    store = cloud_store(tmp_path / "theirs", objects)
    objects.forget()
    return store


@pytest.fixture
def entry(theirs: CloudStore, objects: MemoryObjects) -> Entry:
    """The same entry there."""
    entry = made(theirs)
    objects.forget()
    return entry


def key_of(entry: Entry, name: str) -> str:
    return entry.where(name).removeprefix("memory://bucket/store/")


def test_labels_are_read_without_the_pixels(entry: Entry, objects: MemoryObjects):
    source = entry.source("train.parquet")
    assert isinstance(source, Ranged)
    assert np.array_equal(parquet.labels(source), LABELS)
    # The end of the file, and the column of each row group but that in the end.
    assert set(objects.counts) == {"range"}
    assert objects.counts["range"] <= GROUPS
    assert parquet.metadata(source)["rows"] == len(LABELS)
    assert objects.counts["range"] <= GROUPS, "the end of the file is kept"


def test_a_few_rows_are_read_with_their_row_groups_alone(entry: Entry, objects: MemoryObjects):
    numbers = [ROWS + 7, 3, ROWS + 8, 3]
    assert np.array_equal(parquet.rows(entry.source("train.parquet"), numbers), IMAGES[numbers])
    assert objects.counts == {"range": 3}
    read = parquet.read(entry.source("train.parquet"))
    assert np.array_equal(read[0], IMAGES)


def test_what_is_on_this_machine_is_read_there(mine: Entry, entry: Entry, objects: MemoryObjects):
    assert isinstance(mine.source("train.parquet"), Path)
    assert entry.path("train.parquet") == entry.source("train.parquet")
    assert objects.counts == {"download": 1}
    assert FolderEntry(Path("folder")).source("x") == Path("folder/x")


@pytest.mark.remedies("storage.cloud_store:_damaged")
def test_a_small_file_is_fetched_whole_and_checked(theirs: CloudStore, entry: Entry, objects: MemoryObjects):
    source = entry.source("small.txt")
    assert contents(source) == b"a small file"
    assert contents(source) == b"a small file"
    assert objects.counts == {"range": 1}
    assert str(source) == entry.where("small.txt")
    objects.put(key_of(entry, "small.txt"), b"a smell file")
    with pytest.raises(DamagedEntry, match="run again to rebuild it"):
        contents(entry.source("small.txt"))
    assert contents(made(theirs).source("small.txt")) == b"a small file"


def test_a_flipped_bit_is_noticed_by_the_checksum_of_its_page(entry: Entry, objects: MemoryObjects):
    key = key_of(entry, "train.parquet")
    data = bytearray(objects.get(key))
    # In the pixels of the first row group.
    data[1000] ^= 1
    objects.put(key, bytes(data))
    with pytest.raises(DamagedEntry, match="run again to rebuild it"):
        parquet.rows(entry.source("train.parquet"), [0])


def test_a_bit_that_was_flipped_on_the_way_does_not_cost_the_entry(entry: Entry, objects: MemoryObjects):
    """The whole file is fetched then, and is right."""
    source = entry.source("train.parquet")
    whole = entry.path("train.parquet")
    damaged = Ranged(str(source), whole.stat().st_size, "", lambda start, stop: b"\0" * (stop - start), lambda: whole)
    with pytest.raises(DamagedEntry, match=r"expected the Parquet file of a split; .*, then run again"):
        parquet.labels(damaged)
    assert np.array_equal(parquet.labels(entry.source("train.parquet")), LABELS)


@pytest.mark.remedies("storage.cloud_store:_removed")
def test_a_file_that_is_gone_is_named(theirs: CloudStore, entry: Entry, objects: MemoryObjects):
    gone = "; found none: `idxflow gc` has removed its entry, or another program did; run again"
    sources = [entry.source(name) for name in ("small.txt", "train.parquet")]
    # As `idxflow gc` does.
    folder = key_of(entry, "").rstrip("/")
    objects.delete([f"{folder}/{ENTRY}", *(found.key for found in objects.walk(folder))])
    for source, read in zip(sources, (contents, parquet.labels), strict=True):
        with pytest.raises(StoreError, match=f"^expected {source}{gone}"):
            read(source)
    with pytest.raises(StoreError, match=gone):
        entry.path("train.parquet")
    assert np.array_equal(parquet.labels(made(theirs).source("train.parquet")), LABELS)


def test_a_file_that_the_entry_does_not_have_does_not_exist(entry: Entry):
    source = entry.source("none")
    assert isinstance(source, Path)
    assert not source.exists()
    assert entry.sha256("none") is None


@pytest.mark.remedies("storage.cloud_store:_load")
def test_an_entry_of_something_else_is_made_again(theirs: CloudStore, entry: Entry, objects: MemoryObjects):
    key = key_of(entry, "").rstrip("/") + f"/{ENTRY}"
    objects.put(key, objects.get(key).replace(b"tiny", b"mini"))
    with pytest.raises(DamagedEntry, match=f"{ENTRY}: expected a record of Stored; "):
        theirs.get("tiny", "decode", entry.key, Stored)
    assert contents(made(theirs).source("small.txt")) == b"a small file"
    theirs.get("tiny", "decode", entry.key, Stored)


@pytest.mark.parametrize("size", [0, 1, TAIL - 1, TAIL, TAIL + 1, 3 * TAIL])
def test_it_reads_as_a_file_does(tmp_path: Path, size: int):
    data = np.random.default_rng(size).bytes(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return data[start:stop]

    with Ranged("somewhere", size, "", read, lambda: path) as ranged, path.open("rb") as file:
        for step in range(40):
            position, count = (step * 7919) % (size + 2), 1 + (step * 104_729) % (TAIL + 3)
            assert ranged.seek(position) == file.seek(position)
            assert ranged.read(count) == file.read(count)
            assert ranged.tell() == file.tell()
        for whence, offset in ((os.SEEK_END, -1), (os.SEEK_CUR, 0), (os.SEEK_SET, 0)):
            if size:
                assert ranged.seek(offset, whence) == file.seek(offset, whence)
                assert ranged.read() == file.read()
    assert all(0 <= start < stop <= size for start, stop in asked)
