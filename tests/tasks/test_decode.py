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
from storage.records import Archive, FolderEntry
from storage.store import Store
from tasks.decode import decode
from tests.conftest import TinyFactory, bars


def archive(dataset: Dataset, role: str) -> Archive:
    """Stand in for `fetch`: the file where the data set's source has it."""
    file = dataset.source / dataset.archive(role).file
    return Archive(FolderEntry(dataset.source), role, file.name, file.stat().st_size, sha256_of(file), "test")


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
    assert "labels" not in store.made_from("tiny", "decode", decoded(store, usual).record.entry.key)["parameters"]


def test_a_base_is_the_short_form_of_labels(store: Store, tiny: TinyFactory):
    shifted = {"train-labels": (np.arange(120) % 3 + 1).astype(np.uint8)}
    written = decoded(store, tiny(arrays=shifted, manifest="labels = [1, 2, 3]"))
    short = decoded(store, tiny(arrays=shifted, manifest="label_base = 1"))
    assert short.step.reused
    assert (short.step.key, short.record) == (written.step.key, written.record)
    np.testing.assert_array_equal(parquet.labels(short.record.file), np.arange(120) % 3)


def test_a_split_read_as_it_is_has_the_key_and_the_digest_of_earlier_versions(store: Store, tiny: TinyFactory):
    plain = decoded(store, tiny())
    for nothing in ("label_base = 0", "transpose = false", 'ink = "bright"'):
        assert decoded(store, tiny(manifest=nothing)).step.key == plain.step.key
    parameters = store.made_from("tiny", "decode", plain.record.entry.key)["parameters"]
    assert parameters == {
        "classes": ["bar 0", "bar 1", "bar 2"],
        "image_shape": [9, 7],
        "label_column": None,
        "rows": None,
    }
    assert plain.record.digest == "27dfa9b2c0e5233af1fd3ba9fc8e126bfcc85da7d350fc0a1ea72514cecd0828"


ARRAYS = bars(120, 30, 3, (9, 7))
FORMS = {
    "upright": (lambda images: images, ""),
    "a channel at the end": (lambda images: images[..., None], ""),
    "a channel before the rows": (lambda images: images[:, None], ""),
    "transposed": (lambda images: images.swapaxes(1, 2), "transpose = true\n"),
    "transposed, a channel at the end": (lambda images: images.swapaxes(1, 2)[..., None], "transpose = true\n"),
    "transposed, a channel before the rows": (lambda images: images.swapaxes(1, 2)[:, None], "transpose = true\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_are_upright_and_grey_however_the_archive_has_them(store: Store, tiny: TinyFactory, form: str):
    change, manifest = FORMS[form]
    split = decoded(store, tiny(arrays={"train-images": change(ARRAYS["train-images"])}, manifest=manifest)).record
    np.testing.assert_array_equal(parquet.read(split.file)[0], ARRAYS["train-images"])
    assert split.image_shape == (9, 7)


def test_transposed_images_are_another_split_also_where_rows_are_as_many_as_columns(store: Store, tiny: TinyFactory):
    arrays = bars(120, 30, 3, (8, 8))
    upright = decoded(store, tiny(shape=(8, 8)))
    transposed = decoded(store, tiny(shape=(8, 8), manifest="transpose = true"))
    assert transposed.step.reason == "transpose none → true"
    assert transposed.record.sources == upright.record.sources
    assert transposed.record.digest != upright.record.digest
    np.testing.assert_array_equal(parquet.read(transposed.record.file)[0], arrays["train-images"].transpose(0, 2, 1))


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
        pair.append(Archive(FolderEntry(mnist_dir), role, file.name, file.stat().st_size, sha256_of(file), "test"))
    split = decode.fn(store, dataset, "test", *pair).record
    assert split.rows == 10000
    assert split.sources == {r: dataset.archive(r).payload_sha256 for r in ("test-images", "test-labels")}
