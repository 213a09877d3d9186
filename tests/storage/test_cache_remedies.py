"""What errors advise where a store is elsewhere, and this machine has only copies of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.cloud_store import CloudStore
from storage.errors import ConfigError, DamagedEntry, StoreError
from storage.formats import arrays
from storage.objects.cache import CACHE_VARIABLE, DEFAULT_SIZE, SIZE_VARIABLE, cache_size
from storage.records import Entry, FolderEntry
from storage.store import Plan, store_errors
from tasks.sources.partial_file import PartialFile
from tests.support.memory_objects import MemoryObjects

PLAN = Plan("tiny", "evaluate")


@dataclass(frozen=True)
class Result:
    """A record with one file."""

    entry: Entry


def make(store: CloudStore, data: bytes) -> Path:
    def write(folder: Path) -> Result:
        (folder / "result.npz").write_bytes(data)
        return Result(FolderEntry(folder))

    return store.get_or_make(PLAN, Result, write, lambda _: "made").record.entry.path("result.npz")


def test_a_bad_result_is_removed_where_it_is_published(tmp_path: Path):
    objects = MemoryObjects("s3://bucket/store")
    store = CloudStore(objects, cache=tmp_path)
    published = f"s3://bucket/store/{store.entry_key('tiny', 'evaluate', PLAN.folder)}/entry.json"
    with pytest.raises(DamagedEntry, match=f"remove {published}, then run again"):
        arrays.read(make(store, b"no arrays"), {})
    assert make(store, b"new").read_bytes() == b"no arrays"
    objects.delete([published.removeprefix("s3://bucket/store/")])
    assert make(CloudStore(objects, cache=tmp_path), b"new").read_bytes() == b"new"


@pytest.mark.remedies("storage.objects.cache:unusable")
def test_another_place_for_the_cache_is_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    objects = MemoryObjects("s3://bucket/store")
    with pytest.raises(StoreError, match="choose another folder with IDXFLOW_CACHE"):
        CloudStore(objects, cache=tmp_path / "file").prepare()
    CloudStore(objects, cache=tmp_path / "folder").prepare()

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "folder"))
    place = tmp_path / "folder" / "stores"
    with pytest.raises(StoreError, match="choose another with IDXFLOW_CACHE"), store_errors(place):
        raise OSError(28, "No space left on device")
    with pytest.raises(StoreError, match="choose another with IDXFLOW_CACHE"):
        PartialFile(place, "archive").check_room("tiny", 1 << 60)


@pytest.mark.remedies("storage.objects.cache:cache_size")
def test_a_size_of_the_cache_that_is_none_is_to_be_corrected(monkeypatch: pytest.MonkeyPatch):
    for wrong in ("20 gallons", "-1", "G", "1.5G"):
        monkeypatch.setenv(SIZE_VARIABLE, wrong)
        with pytest.raises(ConfigError, match="IDXFLOW_CACHE_SIZE: expected a number of bytes, such as 500M or 20G"):
            cache_size()
    for right, size in (("20G", 20 << 30), ("500m", 500 << 20), ("10KiB", 10 << 10), ("7", 7), ("", DEFAULT_SIZE)):
        monkeypatch.setenv(SIZE_VARIABLE, right)
        assert cache_size() == size
