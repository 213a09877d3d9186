"""An audit reads a split in parts row by row, and finds what it finds in one file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from storage.datasets import catalog
from storage.store import Store
from tasks.audit import audit
from tasks.auditing.tables import NearDuplicates, Suspects
from tests.support.split_in_parts import in_one_file, in_parts
from tests.support.splits import handwritten

SIZES = {"train": (16, 200, 1, 83), "test": (40, 60)}


@pytest.mark.parametrize("enlarged", [1, 8])
def test_the_tables_are_those_of_one_file(store: Store, enlarged: int):
    """Also of images that are shrunk first."""
    images, labels = (values[:400].copy() for values in handwritten())
    images = np.kron(images * 15, np.ones((enlarged, enlarged), np.uint8))
    labels[[5, 250]] = (labels[[5, 250]] + 3) % 10
    images[330] = images[217]
    dataset = dataclasses.replace(catalog.find("digits"), image_shape=images.shape[1:])
    rows = {"train": (images[:300], labels[:300]), "test": (images[300:], labels[300:])}
    whole = audit.fn(store, dataset, *(in_one_file(store, dataset, name, *rows[name]) for name in ("train", "test")))
    cut = audit.fn(store, dataset, *(in_parts(store, dataset, name, *rows[name], SIZES[name]) for name in rows))
    assert dataclasses.replace(cut.record, entry=whole.record.entry, digest=whole.record.digest) == whole.record
    assert (cut.record.equal_rows, cut.record.rows) == (1, 300)
    for kind, name in ((Suspects, "suspects"), (NearDuplicates, "near_duplicates")):
        actual, expected = (kind.read(getattr(done.record, name)).columns() for done in (cut, whole))
        for column in kind.KINDS:
            # Row groups of other sizes make matrix products of other shapes, which may round differently.
            np.testing.assert_allclose(actual[column], expected[column], atol=1e-5)
