"""What is in the store is verified and used again, without any source."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.datasets import catalog
from storage.datasets.catalog import ArchiveSpec, Dataset
from storage.errors import SourceUnavailable
from storage.records import Archive, Done
from storage.store import Store
from tasks.fetch import fetch
from tasks.sources import embedded
from tasks.sources.origins import payload_sha256
from tests.conftest import TinyFactory
from tests.fetch.helpers import BODY, FILE, PATH, SHA256, SPEC, WRONG, folder, get
from tests.support.faultserver import FaultServer, good


def test_what_is_there_is_reused_without_any_source(store: Store, dataset: Dataset, tmp_path: Path):
    place = folder(tmp_path)
    first = fetch.fn(store, dataset, SPEC, str(place))
    (place / FILE).unlink()
    again = fetch.fn(store, dataset, SPEC, "https://192.0.2.1/nowhere")
    assert (first.step.reused, again.step.reused) == (False, True)
    assert again.record == first.record
    assert again.step.summary == f"{len(BODY):,} bytes from {place}, sha256 {SHA256[:12]}"
    with pytest.raises(SourceUnavailable):
        fetch.fn(Store(tmp_path / "other"), dataset, SPEC, str(place))
    assert fetch.fn(store, dataset, SPEC).step.reused


def test_a_damaged_archive_in_the_store_is_noticed_and_fetched_again(store: Store, dataset: Dataset):
    with FaultServer({PATH: good(BODY)}) as server:
        file = get(store, dataset, server.url(PATH)).record.file
        file.chmod(0o644)
        file.write_bytes(WRONG)
        fetched = get(store, dataset, server.url(PATH))
        assert fetched.step.reason.startswith("damaged")
        assert fetched.record.file.read_bytes() == BODY
        assert server.request_count(PATH) == 2


def test_an_archive_without_digest_is_known_by_its_content(store: Store, tiny: TinyFactory):
    dataset = tiny()
    spec = dataset.archive("train-labels")
    file = dataset.source / spec.file
    before = file.read_bytes()
    first = fetch.fn(store, dataset, spec)
    assert fetch.fn(store, dataset, spec).step.reused
    file.write_bytes(before + b"more")
    changed = fetch.fn(store, dataset, spec)
    assert changed.record.file.read_bytes() == before + b"more"
    assert changed.record.entry.folder != first.record.entry.folder
    assert changed.step.reason == "new archive"
    assert first.record.file.read_bytes() == before
    file.write_bytes(before)
    assert fetch.fn(store, dataset, spec).record.entry.folder == first.record.entry.folder


def test_the_embedded_data_come_by_the_same_way_four_at_once(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    dataset = catalog.find("digits")
    read: list[int] = []
    digits = embedded.digits
    monkeypatch.setattr(embedded, "digits", lambda: (read.append(1), digits())[1])
    start = threading.Barrier(4)

    def run(spec: ArchiveSpec) -> Done[Archive]:
        start.wait()
        return fetch.fn(store, dataset, spec)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, dataset.archives))
    for spec, result in zip(dataset.archives, results, strict=True):
        assert result.record.role == spec.role
        assert payload_sha256(result.record.file, 10**6) == spec.payload_sha256
        assert "bytes from scikit-learn (embedded), sha256 " in result.step.summary
    assert len(read) == 1
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_damaged_inbox_is_written_again(store: Store):
    dataset = catalog.find("digits")
    spec = dataset.archive("test-labels")
    inbox = store.inbox("digits")
    inbox.mkdir(parents=True)
    (inbox / spec.file).write_bytes(b"half a fi")
    assert payload_sha256(fetch.fn(store, dataset, spec).record.file, 10**6) == spec.payload_sha256
