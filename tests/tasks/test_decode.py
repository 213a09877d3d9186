"""Decode: two archives become one split, or are refused in one sentence."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from storage.datasets.catalog import Dataset
from storage.errors import FormatError
from storage.files import sha256_of
from storage.formats import idx, parquet
from storage.records import Archive
from storage.store import Store
from tasks.decode import decode
from tests.conftest import TinyFactory, bars


def archive(dataset: Dataset, role: str) -> Archive:
    """Stand in for `fetch`: the file where the data set's source has it."""
    file = dataset.source / dataset.archive(role).file
    return Archive(dataset.source, role, file.name, file.stat().st_size, sha256_of(file), "test")


def decoded(store: Store, dataset: Dataset, name: str = "train"):
    return decode.fn(store, dataset, name, archive(dataset, f"{name}-images"), archive(dataset, f"{name}-labels"))


def test_pixels_and_labels_arrive_as_they_were(store: Store, tiny: TinyFactory):
    dataset = tiny(train=20000)
    result = decoded(store, dataset)
    arrays = bars(20000, 30, 3, (9, 7))
    images, labels = parquet.read(result.record.file)
    np.testing.assert_array_equal(images, arrays["train-images"])
    np.testing.assert_array_equal(labels, arrays["train-labels"])
    assert result.record.rows == 20000
    assert result.step.summary == "20,000 images of 9×7"
    assert result.record.sources["train-images"] == hashlib.sha256(idx.encode(arrays["train-images"])).hexdigest()


def test_the_second_time_it_is_reused(store: Store, tiny: TinyFactory):
    dataset = tiny()
    first, second = decoded(store, dataset), decoded(store, dataset)
    assert second.step.reused
    assert second.record == first.record


def test_other_compression_of_the_same_pixels_is_the_same_split(store: Store, tiny: TinyFactory):
    dataset = tiny()
    first = decoded(store, dataset).record
    path = dataset.source / dataset.archive("train-images").file
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    second = decoded(store, dataset)
    assert second.step.reason == "new train-images"
    assert second.record.digest == first.digest


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_labels_of_any_whole_number_type_are_read(store: Store, tiny: TinyFactory, kind: type):
    labels = (np.arange(120) % 3).astype(kind)
    split = decoded(store, tiny(arrays={"train-labels": labels})).record
    np.testing.assert_array_equal(parquet.labels(split.file), labels)


def test_a_column_of_wider_labels_is_the_class(store: Store, tiny: TinyFactory):
    wide = np.stack([np.arange(120), np.arange(120) % 3], axis=1).astype(np.int32)
    split = decoded(store, tiny(arrays={"train-labels": wide}, manifest="label_column = 1")).record
    np.testing.assert_array_equal(parquet.labels(split.file), np.arange(120) % 3)


def test_labels_are_the_classes_that_the_manifest_says(store: Store, tiny: TinyFactory):
    values = np.array([-7, 300, 2], np.int16)
    shifted = {"train-labels": values[np.arange(120) % 3]}
    dataset = tiny(arrays=shifted, manifest="labels = [-7, 300, 2]")
    split = decoded(store, dataset).record
    np.testing.assert_array_equal(parquet.labels(split.file), np.arange(120) % 3)
    turned = decoded(store, tiny(arrays=shifted, manifest="labels = [300, -7, 2]"))
    assert turned.step.reason == "labels [-7, 300, 2] → [300, -7, 2]"
    assert turned.record.digest != split.digest
    np.testing.assert_array_equal(parquet.labels(turned.record.file), np.array([1, 0, 2])[np.arange(120) % 3])
    with pytest.raises(
        FormatError, match=r"expected labels -7, 301, 2; found 300 at row 1; .* labels = \[…\] in .*toml"
    ):
        decoded(store, tiny(arrays=shifted, manifest="labels = [-7, 301, 2]"))


def test_the_usual_labels_are_those_of_a_manifest_without_any(store: Store, tiny: TinyFactory):
    usual, declared = tiny(), tiny(manifest="labels = [0, 1, 2]", name="tiny")
    assert decoded(store, usual).record == decoded(store, declared).record
    assert "labels" not in store.made_from("tiny", "decode", decoded(store, usual).record.folder.name)["parameters"]


def test_a_cut_archive_leaves_no_split(store: Store, tiny: TinyFactory):
    dataset = tiny()
    path = dataset.source / dataset.archive("train-images").file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError, match="tiny: train-images"):
        decoded(store, dataset)


def test_real_mnist(store: Store, mnist_dir: Path):
    from storage.datasets import catalog

    dataset = catalog.find("mnist")
    pair = []
    for role in ("test-images", "test-labels"):
        file = mnist_dir / dataset.archive(role).file
        pair.append(Archive(mnist_dir, role, file.name, file.stat().st_size, sha256_of(file), "test"))
    split = decode.fn(store, dataset, "test", *pair).record
    assert split.rows == 10000
    assert split.sources == {r: dataset.archive(r).payload_sha256 for r in ("test-images", "test-labels")}
