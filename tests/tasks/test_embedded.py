"""The embedded data set: real digits, the same on every machine."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np

from storage.datasets import catalog
from storage.formats import idx
from tasks.sources import embedded

DIGITS = catalog.find("digits")


def test_the_archives_are_what_the_manifest_pins(tmp_path: Path):
    embedded.write(DIGITS, tmp_path / "inbox")
    files = sorted(path.name for path in (tmp_path / "inbox").iterdir())
    assert files == sorted(spec.file for spec in DIGITS.archives)
    for spec in DIGITS.archives:
        payload = gzip.decompress((tmp_path / "inbox" / spec.file).read_bytes())
        assert (len(payload), hashlib.sha256(payload).hexdigest()) == (spec.payload_bytes, spec.payload_sha256)


def test_every_digit_is_in_exactly_one_split_with_its_label(tmp_path: Path):
    embedded.write(DIGITS, tmp_path)
    arrays = {spec.role: idx.read(tmp_path / spec.file) for spec in DIGITS.archives}
    rows = [
        np.column_stack([arrays[f"{split}-images"].reshape(-1, 64), arrays[f"{split}-labels"]])
        for split in ("train", "test")
    ]
    assert [len(r) for r in rows] == [DIGITS.rows["train"], DIGITS.rows["test"]]
    # Not above, where all tests would wait for it to be imported.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    expected = np.column_stack([bunch.data.astype(np.uint8), bunch.target.astype(np.uint8)])
    np.testing.assert_array_equal(np.unique(np.vstack(rows), axis=0), np.unique(expected, axis=0))
    # Each class in proportion.
    shares = [np.bincount(r[:, -1], minlength=10) / len(r) for r in rows]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.002)


def test_the_same_bytes_at_any_time(tmp_path: Path):
    for name in ("a", "b"):
        embedded.write(DIGITS, tmp_path / name)
    for spec in DIGITS.archives:
        assert (tmp_path / "a" / spec.file).read_bytes() == (tmp_path / "b" / spec.file).read_bytes()


def test_only_what_is_missing_is_written(tmp_path: Path):
    embedded.write(DIGITS, tmp_path)
    edited, missing = (tmp_path / spec.file for spec in DIGITS.archives[:2])
    edited.write_bytes(b"kept")
    missing.unlink()
    embedded.write(DIGITS, tmp_path)
    assert edited.read_bytes() == b"kept"
    assert idx.read(missing).shape == (DIGITS.rows["train"],)
