"""Decode in parts: the rows are those of one file, and each part is made, reused and mended by itself."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.errors import DamagedEntry, FormatError
from storage.formats import chunks, idx, members, split_rows
from storage.records import Done, Split
from storage.store import Store
from storage.workers.current import using
from tasks.decode import decode
from tasks.decoding.pairs import Pair, _Part
from tasks.fetch import fetch
from tests.conftest import TinyFactory, bars
from tests.support.cloud_stores import Cloud
from tests.support.listed_archives import file_name, write_listed
from tests.support.scattered_workers import ScatteredWorkers

ROWS, SHAPE = 100, (9, 7)
ARRAYS = bars(ROWS, 30, 3, SHAPE)
SIZES = (40, 1, 59)
SMALL = 30
"""The rows of a part in tests that cut archives."""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_rows, "PART_ROWS", SMALL)


@pytest.fixture(scope="module")
def scattered() -> Iterator[ScatteredWorkers]:
    workers = ScatteredWorkers()
    yield workers
    workers.close()


def decoded(store: Store, dataset: Dataset, name: str = "train") -> Done[Split]:
    pair = [fetch.fn(store, dataset, dataset.archive(f"{name}-{kind}")).record for kind in ("images", "labels")]
    return decode.fn(store, dataset, name, *pair)


def rows_of(split: Split) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*split_rows.blocks(split), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def check_rows(split: Split) -> None:
    images, labels = rows_of(split)
    np.testing.assert_array_equal(images, ARRAYS["train-images"])
    np.testing.assert_array_equal(labels, ARRAYS["train-labels"])


def keys_of(split: Split) -> list[str]:
    return [part.entry.key for part in split_rows.parts(split)]


def contents(store: Store, dataset: str) -> dict[str, bytes]:
    folder = store.dataset(dataset) / "2-splits"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_several_archives_are_one_split_of_their_rows(store: Store, tmp_path: Path):
    dataset = write_listed(tmp_path, ARRAYS, SIZES)
    fetched = fetch.fn(store, dataset, dataset.archive("train-images"))
    assert fetched.record.parts == 3
    assert fetched.step.name == "fetch train-images"
    assert fetched.step.summary == (
        f"3 archives, {fetched.record.size_bytes:,} bytes from {tmp_path / 'listed-source'}, 3 new"
    )
    assert [one.file_name for one in members.of(fetched.record)] == [
        file_name("train-images", n, True) for n in range(3)
    ]
    made = decoded(store, dataset)
    assert (made.record.rows, made.record.parts) == (ROWS, 3)
    assert made.step.summary == "100 images of 9×7 in 3 parts, 3 new"
    assert (made.step.reused, made.step.reason) == (False, "first run")
    check_rows(made.record)
    again = decoded(store, dataset)
    assert (again.step.reused, again.step.summary) == (True, "100 images of 9×7 in 3 parts")
    assert again.record == made.record


@pytest.mark.parametrize("packed", [True, False])
def test_a_large_archive_is_cut_into_parts(store: Store, tiny: TinyFactory, small_parts: None, packed: bool):
    dataset = tiny(train=ROWS)
    if not packed:
        for kind in ("images", "labels"):
            path = dataset.source / dataset.archive(f"train-{kind}").file
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    made = decoded(store, dataset)
    assert [part.rows for part in split_rows.parts(made.record)] == [30, 30, 30, 10]
    assert made.step.summary == "100 images of 9×7 in 4 parts, 4 new"
    check_rows(made.record)
    assert made.record.sources["train-images"] == hashlib.sha256(idx.encode(ARRAYS["train-images"])).hexdigest()
    assert decoded(store, dataset).step.reused
    # What an error calls them, if one kills its workers.
    pair = Pair(store, dataset, "train", *(fetch.fn(store, dataset, spec).record for spec in dataset.archives[:2]))
    suffix = ".gz" if packed else ""
    assert _Part(pair, (30, 60)).label == f"rows 30 to 59 of train-images-idx3-ubyte{suffix}"


@pytest.mark.parametrize("packed", [True, False])
def test_the_reason_is_what_was_there_before_the_run(
    store: Store, tmp_path: Path, small_parts: None, packed: bool, monkeypatch: pytest.MonkeyPatch
):
    # The parts are entries of the same step, and newer than all that was there.
    monkeypatch.setattr("storage.store.LOOKED_AT", 3)
    dataset = write_listed(tmp_path, ARRAYS, (ROWS,), packed)
    assert decoded(store, dataset).step.reason == "first run"
    renamed = replace(dataset, classes=tuple(f"{name}s" for name in dataset.classes))
    again = decoded(store, renamed).step
    assert again.summary == "100 images of 9×7 in 4 parts, 4 new"
    assert again.reason.startswith('classes ["bar 0"')


def test_compressed_or_not_parts_have_the_same_content(tmp_path: Path, small_parts: None):
    digests = set()
    for packed in (True, False):
        folder = tmp_path / f"{packed}"
        folder.mkdir()
        store = Store(folder / "store")
        store.prepare()
        made = decoded(store, write_listed(folder, ARRAYS, (ROWS,), packed))
        digests.add((made.record.digest, *(part.digest for part in split_rows.parts(made.record))))
    assert len(digests) == 1


@pytest.mark.parametrize("packed", [True, False])
def test_workers_in_any_order_make_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scattered: ScatteredWorkers, packed: bool
):
    dataset = write_listed(tmp_path, ARRAYS, (20, 30, 50), packed)
    stores = []
    for name, workers in (("here", None), ("there", scattered)):
        store = Store(tmp_path / name)
        store.prepare()
        if workers:
            with using(workers):
                made = decoded(store, dataset)
            assert ("decode train", 3) in workers.seen
        else:
            made = decoded(store, dataset)
        # Not what others have made meanwhile.
        assert made.step.reason == "first run"
        check_rows(made.record)
        stores.append(contents(store, "listed"))
    assert stores[0] == stores[1]


def test_an_error_of_a_worker_is_that_of_the_archive(store: Store, tmp_path: Path, scattered: ScatteredWorkers):
    dataset = write_listed(tmp_path, ARRAYS, SIZES)
    path = dataset.source / file_name("train-images", 2, True)
    path.write_bytes(gzip.compress(b"no IDX", mtime=0))
    with (
        using(scattered),
        pytest.raises(FormatError, match=r"^listed: train-images-002.*: expected an IDX magic number"),
    ):
        decoded(store, dataset)


@pytest.mark.parametrize("packed", [True, False])
def test_an_error_names_the_archive_and_the_row_in_it_and_leaves_what_was_made(
    store: Store, tmp_path: Path, small_parts: None, packed: bool
):
    labels = ARRAYS["train-labels"].astype(np.int16)
    arrays = {**ARRAYS, "train-labels": np.where(np.arange(ROWS) == 95, 300, labels).astype(np.int16)}
    dataset = write_listed(tmp_path, arrays, (20, 80), packed)
    with pytest.raises(FormatError, match=r"^listed: train-labels-001\S+: expected labels .*; found 300 at row 75;"):
        decoded(store, dataset)
    before = contents(store, "listed")
    made = decoded(store, write_listed(tmp_path, {**ARRAYS, "train-labels": labels}, (20, 80), packed))
    # The labels of the second archive are others now: only the first is as it was.
    assert made.step.summary == "100 images of 9×7 in 4 parts, 3 new"
    finished = {path: data for path, data in before.items() if ".partial" not in path}
    assert len(finished) == 2 * (1 + 2)
    assert finished.items() <= contents(store, "listed").items()


@pytest.mark.parametrize("packed", [True, False])
def test_what_was_made_before_an_error_is_used_by_the_next_run(
    store: Store, tmp_path: Path, small_parts: None, packed: bool, monkeypatch: pytest.MonkeyPatch
):
    from tasks.decoding import pairs as module

    dataset = write_listed(tmp_path, ARRAYS, (ROWS,), packed)
    write, calls = module.write_part, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(module, "write_part", failing)
    with pytest.raises(Exception, match="No space left"):
        decoded(store, dataset)
    monkeypatch.setattr(module, "write_part", write)
    made = decoded(store, dataset)
    assert made.step.reason == "2 new parts"
    assert made.step.summary == "100 images of 9×7 in 4 parts, 2 new"
    check_rows(made.record)


@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_part_is_mended_alone(
    store: Store, tmp_path: Path, small_parts: None, packed: bool, caplog: pytest.LogCaptureFixture
):
    dataset = write_listed(tmp_path, ARRAYS, (ROWS,), packed)
    made = decoded(store, dataset)
    before = contents(store, "listed")
    damaged = [*split_rows.parts(made.record)][1]
    damaged.file.chmod(0o644)
    damaged.file.write_bytes(b"x" + damaged.file.read_bytes()[1:])
    mended = decoded(store, dataset)
    assert mended.step.summary == "100 images of 9×7 in 4 parts, 1 new"
    assert mended.step.reason == "1 new part"
    assert damaged.entry.key in caplog.text
    assert contents(store, "listed") == before


def test_an_archive_that_is_added_or_left_out_makes_only_its_own_part(store: Store, tmp_path: Path):
    dataset = write_listed(tmp_path, ARRAYS, (20, 30, 50))
    less = replace(dataset, archives=tuple(spec for spec in dataset.archives if spec.number < 2))
    first = decoded(store, less)
    second = decoded(store, dataset)
    assert (first.step.reason, second.step.reason) == ("first run", "1 new part")
    assert keys_of(second.record)[:2] == keys_of(first.record)
    window = replace(
        dataset, archives=tuple(spec for spec in dataset.archives if spec.number > 0 or "test" in spec.role)
    )
    slid = decoded(store, window)
    assert slid.step.summary == "80 images of 9×7 in 2 parts"
    assert keys_of(slid.record) == keys_of(second.record)[1:]


def test_one_archive_that_becomes_the_first_of_several_is_not_decoded_again(store: Store, tmp_path: Path):
    dataset = write_listed(tmp_path, ARRAYS, (60, 40))
    alone = replace(dataset, archives=tuple(spec for spec in dataset.archives if spec.number == 0))
    first = decoded(store, alone).record
    assert not first.parts
    grown = decoded(store, dataset)
    assert grown.step.reason == "1 new part"
    assert keys_of(grown.record)[0] == first.entry.key


@pytest.mark.parametrize("packed", [True, False])
def test_an_error_names_a_file_as_the_user_has_it_whatever_its_suffix_promises(
    store: Store, tmp_path: Path, packed: bool
):
    dataset = write_listed(tmp_path, ARRAYS, (ROWS,))
    path = dataset.source / file_name("train-images", 0, True)
    found = dataset.source / file_name("train-images", 0, packed)
    data = gzip.decompress(path.read_bytes())
    path.unlink()
    found.write_bytes(data)
    with pytest.raises(FormatError, match=f"^listed: {found.name}: expected images of 9×8 pixels"):
        decoded(store, replace(dataset, image_shape=(9, 8)))


def test_an_error_names_the_archive_itself_where_another_has_the_same_content(store: Store, tmp_path: Path):
    dataset = write_listed(tmp_path, ARRAYS, (20, 30, 50))
    for spec in dataset.archives_of("train-labels")[:2]:
        (dataset.source / spec.file).write_bytes(gzip.compress(idx.encode(np.zeros(20, np.uint8)), mtime=0))
    names = " and ".join(f"listed: {file_name(role, 1, True)}" for role in ("train-images", "train-labels"))
    with pytest.raises(FormatError, match=f"^{names}: expected as many labels as images; found 30 images and 20 "):
        decoded(store, dataset)


@pytest.mark.remedies("tasks.decoding.pairs:_joined")
def test_the_manifest_declares_the_rows_of_all_archives_together(store: Store, tmp_path: Path):
    dataset = write_listed(tmp_path, ARRAYS, SIZES)
    decoded(store, replace(dataset, rows={"train": ROWS}))
    with pytest.raises(
        FormatError,
        match=r"^listed: expected 99 rows for the split 'train', .*; found 100 in its archives together; .*toml$",
    ):
        decoded(store, replace(dataset, rows={"train": 99}))


def test_declared_payloads_of_several_archives_are_those_of_the_split(store: Store, tmp_path: Path):
    dataset = write_listed(tmp_path, ARRAYS, SIZES, packed=False)
    split = decoded(store, dataset).record
    known = tuple(
        replace(spec, payload_sha256=one.sha256)
        for spec, one in zip(
            dataset.archives_of("train-images"),
            members.of(fetch.fn(store, dataset, dataset.archive("train-images")).record),
            strict=True,
        )
    )
    declared = replace(dataset, archives=(*known, *(s for s in dataset.archives if s.role != "train-images")))
    assert declared.payload_sha256("train-images") == split.sources["train-images"]
    assert declared.payload_sha256("train-labels") is None


@pytest.mark.remedies("storage.formats.chunks:_chunk")
def test_a_range_of_a_damaged_archive_is_not_decoded(
    store: Store, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    dataset = write_listed(tmp_path, ARRAYS, (ROWS,), packed=False)
    pair = [fetch.fn(store, dataset, dataset.archive(f"train-{kind}")).record for kind in ("images", "labels")]
    file = pair[0].file
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[5500] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        DamagedEntry, match=r"expected SHA-256 \S+ of the bytes from 5,000; found .*; remove .*run again"
    ):
        decode.fn(store, dataset, "train", *pair)
    assert sum(path.endswith("entry.json") for path in contents(store, "listed")) == 2
    shutil.rmtree(file.parent)
    assert decoded(store, dataset).step.reason == "2 new parts"


@pytest.mark.remedies("storage.formats.chunks:reader")
def test_digests_of_chunks_that_cannot_be_read_are_named(store: Store, tmp_path: Path, small_parts: None):
    dataset = write_listed(tmp_path, ARRAYS, (ROWS,), packed=False)
    pair = [fetch.fn(store, dataset, dataset.archive(f"train-{kind}")).record for kind in ("images", "labels")]
    file = pair[0].entry.path(chunks.CHUNKS)
    file.chmod(0o644)
    file.write_text("{}")
    with pytest.raises(DamagedEntry, match=rf"{file}: expected the digests of chunks; .*; remove {file.parent}, "):
        decode.fn(store, dataset, "train", *pair)
    shutil.rmtree(file.parent)
    check_rows(decoded(store, dataset).record)


def test_a_large_archive_that_was_fetched_without_digests_of_chunks_is_decoded(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As by earlier versions."""
    dataset = write_listed(tmp_path, ARRAYS, (ROWS,), packed=False)
    for kind in ("images", "labels"):
        record = fetch.fn(store, dataset, dataset.archive(f"train-{kind}")).record
        assert not chunks.are_noted(record.entry)
    monkeypatch.setattr(split_rows, "PART_ROWS", SMALL)
    made = decoded(store, dataset)
    assert made.record.parts == 4
    check_rows(made.record)


@pytest.mark.parametrize("packed", [True, False])
def test_in_object_storage_it_is_the_same(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, packed: bool
):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    dataset = write_listed(tmp_path, ARRAYS, (40, 60), packed)
    cloud = Cloud(tmp_path)
    store = cloud.machine()
    store.prepare()
    for kind in ("images", "labels"):
        fetch.fn(store, dataset, dataset.archive(f"train-{kind}"))
    other = cloud.machine("other")
    other.prepare()
    made = decoded(other, dataset)
    check_rows(made.record)
    assert made.record.parts == 4
    if not packed:
        # Read by range: nothing of an archive was fetched as a whole.
        assert not [
            one
            for one in cloud.objects.operations
            if one.name == "download" and "1-archives" in one.key and one.key.endswith("ubyte")
        ]
    cloud.objects.forget()
    assert decoded(other, dataset).step.reused
    cloud.close()


def test_of_many_parts_only_the_first_is_compared_with_what_is_there(tmp_path: Path, small_parts: None):
    listings = []
    for number, sizes in enumerate([(25,) * 4, (10,) * 10]):
        cloud = Cloud(tmp_path / f"cloud-{number}")
        store = cloud.machine()
        store.prepare()
        decoded(store, write_listed(tmp_path, ARRAYS, sizes))
        listings.append(sum(one.name == "walk" for one in cloud.objects.operations))
        cloud.close()
    assert listings[0] == listings[1]


def test_a_list_of_one_archive_is_the_archive(store: Store, tmp_path: Path, tiny: TinyFactory):
    one = decoded(store, tiny(train=ROWS))
    listed = write_listed(tmp_path, ARRAYS, (ROWS,))
    assert decoded(store, replace(listed, name="tiny")).step.key == one.step.key


def test_thousands_of_archives_are_few_words_in_a_record(store: Store, tmp_path: Path):
    dataset = write_listed(tmp_path, ARRAYS, (1,) * 50)
    fetched = fetch.fn(store, dataset, dataset.archive("train-images"))
    few = catalog.read(write_listed(tmp_path, ARRAYS, (50, 50)).manifest)
    some = fetch.fn(store, few, few.archive("train-images"))
    entries = [(one.record.entry.path("entry.json")).stat().st_size for one in (fetched, some)]
    assert abs(entries[0] - entries[1]) < 20
