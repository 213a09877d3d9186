"""Archives in a folder."""

from __future__ import annotations

import gzip
import hashlib
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from storage.datasets import catalog
from storage.datasets.catalog import ArchiveSpec, Dataset
from storage.errors import DigestMismatch, FormatError, IdxflowError, SourceUnavailable, StoreError
from storage.files import sha256_of
from storage.store import Store
from tasks.fetch import fetch
from tasks.sources import embedded
from tasks.sources.origins import payload_sha256
from tests.fetch.helpers import (
    BODY,
    FILE,
    OTHER,
    PAYLOAD,
    PAYLOAD_SHA256,
    PAYLOAD_TOO,
    SHA256,
    SPEC,
    UNPINNED,
    WRONG,
    folder,
    get,
    leftovers,
)


@pytest.mark.parametrize(
    ("name", "data", "stored"),
    [
        (FILE, BODY, FILE),
        (FILE, OTHER, FILE),
        (FILE, gzip.compress(PAYLOAD[:999]) + gzip.compress(b"") + gzip.compress(PAYLOAD[999:]), FILE),
        ("t10k-images-idx3-ubyte", PAYLOAD, "t10k-images-idx3-ubyte"),
        ("t10k-images.idx3-ubyte", PAYLOAD, "t10k-images-idx3-ubyte"),
        ("t10k-images.idx3-ubyte.gz", BODY, FILE),
    ],
)
def test_a_folder_may_have_the_archive_or_its_payload(
    store: Store, dataset: Dataset, tmp_path: Path, name: str, data: bytes, stored: str
):
    place = folder(tmp_path, data, name)
    archive = get(store, dataset, spec=PAYLOAD_TOO, source=str(place)).record
    assert archive.file.read_bytes() == data
    assert (archive.file_name, archive.source) == (stored, str(place / name))
    assert payload_sha256(archive.file, len(PAYLOAD)) == PAYLOAD_SHA256


@pytest.mark.parametrize(
    ("data", "spec", "error", "words"),
    [
        pytest.param(WRONG, PAYLOAD_TOO, DigestMismatch, f"or payload SHA-256 {PAYLOAD_SHA256[:12]}", id="other bytes"),
        pytest.param(
            OTHER, SPEC, DigestMismatch, f"found {hashlib.sha256(OTHER).hexdigest()[:12]}", id="compressed again"
        ),
        pytest.param(BODY[:-9], PAYLOAD_TOO, DigestMismatch, "gzip stream is cut short", id="cut"),
        pytest.param(
            BODY[:-4], PAYLOAD_TOO, DigestMismatch, "gzip stream is cut short", id="cut in its last four bytes"
        ),
        pytest.param(OTHER[:99] + b"\0" + OTHER[100:], PAYLOAD_TOO, DigestMismatch, "damaged", id="damaged"),
        pytest.param(OTHER + b"\0", PAYLOAD_TOO, DigestMismatch, "more after", id="trailing byte"),
        pytest.param(OTHER + OTHER, PAYLOAD_TOO, DigestMismatch, f"holds more than {len(PAYLOAD):,}", id="twice"),
        pytest.param(OTHER + b"x", PAYLOAD_TOO, DigestMismatch, "more after", id="more after"),
        pytest.param(OTHER + OTHER[:9], PAYLOAD_TOO, DigestMismatch, "cut short", id="a cut member more"),
        pytest.param(
            gzip.compress(bytes(10**7)), PAYLOAD_TOO, DigestMismatch, f"holds more than {len(PAYLOAD):,}", id="bomb"
        ),
        pytest.param(b"", PAYLOAD_TOO, DigestMismatch, "0 bytes", id="empty"),
        pytest.param(bytes(10**7), PAYLOAD_TOO, FormatError, "10,000,000 bytes where at most", id="too large"),
        pytest.param(BODY, replace(UNPINNED, bytes=7), FormatError, "manifest declares 7", id="unpinned, other size"),
    ],
)
def test_a_folder_with_another_file_is_refused(
    store: Store,
    dataset: Dataset,
    tmp_path: Path,
    data: bytes,
    spec: ArchiveSpec,
    error: type[IdxflowError],
    words: str,
):
    place = folder(tmp_path, data)
    with pytest.raises(error) as raised:
        get(store, dataset, spec=spec, source=str(place))
    assert words in str(raised.value)
    assert f"{FILE}: expected " in str(raised.value)
    assert str(place) in str(raised.value)
    assert "`idxflow manifest FOLDER`" in str(raised.value)
    assert leftovers(store) == []


def test_an_archive_of_another_data_set_is_named(store: Store, dataset: Dataset, tmp_path: Path):
    """Of the catalog by its digest; of others, that it is complete: nobody is to look for what is cut off."""
    digits = catalog.find("digits")
    embedded.write(digits, tmp_path / "digits")
    place, archive = tmp_path / "digits", digits.archive("test-images")
    longer = replace(SPEC, bytes=10**6)
    with pytest.raises(DigestMismatch, match=r"\(it is t10k-images-idx3-ubyte.gz of digits\); give a place that"):
        get(store, dataset, spec=longer, source=str(place))
    assert archive.file == FILE
    for data in (OTHER, PAYLOAD):
        with pytest.raises(DigestMismatch, match=r"\(a complete file, but another one\)"):
            get(store, dataset, spec=longer, source=str(folder(tmp_path, data)))
    for data in (OTHER[:-1], PAYLOAD[:-1], b""):
        with pytest.raises(DigestMismatch, match=r"\(is it cut short\?\)"):
            get(store, dataset, spec=longer, source=str(folder(tmp_path, data)))


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: (p.mkdir(), (p / FILE).mkdir())])
def test_a_missing_file_is_a_warning_where_the_next_source_has_it(
    store: Store, dataset: Dataset, tmp_path: Path, make, caplog: pytest.LogCaptureFixture
):
    place = tmp_path / "nothing"
    make(place)
    with pytest.raises(SourceUnavailable, match=r"nothing: (there is no .+|\S+ is a folder, not a regular file);"):
        get(store, dataset, source=str(place))
    assert not caplog.records
    dataset = replace(dataset, source=folder(tmp_path))
    assert get(store, dataset, source=str(place)).record.sha256 == SHA256
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert str(place) in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that fails when read: /proc/self/mem")
def test_a_file_that_cannot_be_read_is_the_sources_fault_not_the_stores(store: Store, dataset: Dataset, tmp_path: Path):
    place = folder(tmp_path)
    (place / FILE).unlink()
    (place / FILE).symlink_to("/proc/self/mem")
    for spec in (SPEC, UNPINNED):
        with pytest.raises(SourceUnavailable, match=f"{FILE} cannot be read"):
            get(store, dataset, spec=spec, source=str(place))


def test_a_disk_that_takes_no_more_is_the_stores_fault(store: Store, dataset: Dataset, tmp_path: Path):
    place = folder(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(StoreError, match="File too large"):
            get(store, dataset, source=str(place))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert get(store, dataset, source=str(place)).record.sha256 == SHA256


def test_real_mnist_is_accepted_by_digest_or_payload(store: Store, mnist_dir: Path):
    dataset = catalog.find("mnist")
    for spec in dataset.archives:
        fetched = fetch.fn(store, dataset, spec, str(mnist_dir))
        assert fetched.record.sha256 == sha256_of(mnist_dir / spec.file)
        again = fetched.record.sha256 != spec.sha256
        assert fetched.step.summary.endswith("compressed again, same content as published") is again
