"""Bad archives: none is read as something, each is refused in one sentence, none costs memory or time."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.datasets.catalog import DEFAULT_FILES, Dataset
from storage.errors import DigestMismatch, FormatError
from storage.files import sha256_of
from storage.formats import idx
from storage.records import Archive
from storage.store import Store
from tasks.decode import decode
from tasks.fetch import fetch
from tests.support import badfiles
from tests.support.badfiles import GOOD, IMAGES_FILE, MISPLACED, PACKED, READABLE, UNREADABLE, Misplaced, assert_says

ROOT = Path(__file__).resolve().parents[2]


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / IMAGES_FILE
    path.write_bytes(data)
    return path


def fetched(store: Store, dataset: Dataset, role: str) -> Archive:
    return fetch.fn(store, dataset, dataset.archive(role)).record


def decoded(store: Store, dataset: Dataset, split: str = "train"):
    return decode.fn(
        store, dataset, split, *(fetched(store, dataset, f"{split}-{kind}") for kind in ("images", "labels"))
    )


@pytest.mark.parametrize(("data", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_the_reader_refuses_it_in_one_sentence(tmp_path: Path, data: bytes, message: str):
    with pytest.raises(FormatError, match=message) as caught:
        idx.read(file_of(tmp_path, data))
    assert_says(caught.value, f"{IMAGES_FILE}: expected ")


@pytest.mark.parametrize("data", [data for data, _ in UNREADABLE.values()], ids=UNREADABLE.keys())
def test_even_with_a_digest_that_matches_it_becomes_no_split(store: Store, tmp_path: Path, data: bytes):
    dataset = badfiles.write(tmp_path / "in", {"train-images": data})
    assert dataset.source
    spec = replace(dataset.archive("train-images"), sha256=sha256_of(dataset.source / IMAGES_FILE))
    images = fetch.fn(store, dataset, spec).record
    labels = fetched(store, dataset, "train-labels")
    with pytest.raises(FormatError) as caught:
        decode.fn(store, dataset, "train", images, labels)
    # The store keeps what is not compressed without `.gz`.
    assert_says(caught.value, "bars: ", IMAGES_FILE.removesuffix(".gz"))
    assert not list(store.entries("bars", "decode").glob("[!.]*"))


@pytest.mark.parametrize("data", [data for data, _ in UNREADABLE.values()], ids=UNREADABLE.keys())
def test_with_the_digest_of_the_right_archive_it_does_not_even_get_into_the_store(
    store: Store, tmp_path: Path, data: bytes
):
    dataset = badfiles.write(tmp_path / "in", {"train-images": data})
    spec = replace(dataset.archive("train-images"), sha256=sha256_of(file_of(tmp_path, PACKED)))
    with pytest.raises(DigestMismatch) as caught:
        fetch.fn(store, dataset, spec)
    assert_says(caught.value, "bars: ", IMAGES_FILE, "--source")
    assert not list(store.entries("bars", "fetch").glob("[!.]*"))


@pytest.mark.parametrize("data", READABLE.values(), ids=READABLE.keys())
def test_what_is_only_unusual_gives_the_same_images(store: Store, tmp_path: Path, data: bytes):
    np.testing.assert_array_equal(idx.read(file_of(tmp_path, data)), GOOD["train-images"])
    usual = decoded(store, badfiles.write(tmp_path / "usual")).record
    assert decoded(store, badfiles.write(tmp_path / "in", {"train-images": data})).record.digest == usual.digest
    # A name inside of an archive is nobody's path.
    assert {path.name for path in tmp_path.iterdir()} == {"store", "usual", "in", IMAGES_FILE}


@pytest.mark.parametrize("packed", [False, True])
def test_wherever_an_archive_is_cut_it_is_refused(tmp_path: Path, packed: bool):
    whole = idx.encode(GOOD["train-images"][:3])
    whole = gzip.compress(whole) if packed else whole
    for length in range(len(whole)):
        with pytest.raises(FormatError) as caught:
            idx.read(file_of(tmp_path, whole[:length]))
        assert_says(caught.value, IMAGES_FILE)


@pytest.mark.parametrize("case", MISPLACED.values(), ids=MISPLACED.keys())
def test_an_archive_that_is_not_what_it_stands_for_becomes_no_split(store: Store, tmp_path: Path, case: Misplaced):
    dataset = badfiles.write(tmp_path / "in", case.changes, case.manifest)
    with pytest.raises(FormatError, match=case.message) as caught:
        decoded(store, dataset, case.split)
    assert_says(caught.value, "bars: ", case.file)


MEASURED = """
import json, resource, sys, time
from pathlib import Path
from storage.formats import idx
from storage.errors import FormatError
from tasks.decoding import writing
from tests.support.badfiles import write
from storage.records import FolderEntry, Archive

def archive(dataset, role):
    return Archive(FolderEntry(dataset.source), role, dataset.archive(role).file, 0, "", "")

def attempts():
    for path in sorted(Path(sys.argv[1]).iterdir()):
        if "wide" not in path.name:
            yield path.name, lambda: idx.read(path)
        # By hard link: none of it is to be in memory before the reader is.
        dataset = write(Path(sys.argv[2], path.name))
        role = "train-labels" if "labels" in path.name else "train-images"
        target = dataset.source / dataset.archive(role).file
        target.unlink()
        target.hardlink_to(path)
        pair = [archive(dataset, "train-images"), archive(dataset, "train-labels")]
        yield path.name + ", decoded", lambda: writing.write_split(dataset, "train", *pair, dataset.source)

found = {}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, attempt in attempts():
    started = time.process_time()
    try:
        attempt()
    except FormatError as error:
        found[name] = [time.process_time() - started, str(error)]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"found": found, "mebibytes": (peak - before) / 1024, "all": peak / 1024}))
"""
GIGANTIC = {
    "a bomb of 10 GiB": badfiles.bomb(badfiles.IMAGES, 10_240),
    "a bomb in the labels": badfiles.bomb(badfiles.LABELS, 10_240),
    "labels, very wide": badfiles.bomb(badfiles.header(60, 2**32 - 1), 10_240),
    "an image, very wide": badfiles.bomb(badfiles.header(60, 2**14, 2**14), 10_240),
    "4 GiB declared": badfiles.header(2**32 - 1) + bytes(10),
    "a product that wraps to 0": badfiles.header(2**31, 2**31, 4) + bytes(24),
    "the largest product": badfiles.header(*[2**32 - 1] * 8, code=0x0E),
    "1 TiB declared": badfiles.header(2**20, 2**10, 2**10) + bytes(100),
}


def test_bombs_and_overflows_cost_neither_memory_nor_time(tmp_path: Path):
    files, work = tmp_path / "files", tmp_path / "work"
    files.mkdir()
    for name, data in GIGANTIC.items():
        (files / name).write_bytes(data)
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED, str(files), str(work)],
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path / "prefect")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    measured = json.loads(process.stdout)
    read = [name for name in GIGANTIC if "wide" not in name]
    assert set(measured["found"]) == {*read, *(f"{name}, decoded" for name in GIGANTIC)}
    for name, (processor_seconds, sentence) in measured["found"].items():
        assert processor_seconds < 2, name
        assert_says(
            sentence,
            DEFAULT_FILES["train-labels" if "labels" in name else "train-images"] if "decoded" in name else name,
        )
    assert measured["mebibytes"] < 64, measured
