"""Of sorted columns, a reader gets the rows of a range, and no other numbers than were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage.errors import DamagedEntry
from storage.formats import sorted_columns

KINDS: sorted_columns.Kinds = {"key": np.int64, "value": np.uint8}
LIMITS = np.iinfo(np.int64)


def written(path: Path, rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows)
    columns = {
        "key": np.sort(random.integers(LIMITS.min, LIMITS.max, rows)),
        "value": random.integers(0, 256, rows).astype(np.uint8),
    }
    sorted_columns.write(path, columns, KINDS)
    return columns


@pytest.mark.parametrize("rows", [0, 1, 20_000])
def test_a_range_has_its_rows_and_their_place_in_the_file(tmp_path: Path, rows: int):
    columns = written(tmp_path / "columns.parquet", rows)
    for low, high in ((LIMITS.min, LIMITS.max), (-(1 << 62), -1), (0, 1 << 50), (7, 7)):
        start, found = sorted_columns.between(tmp_path / "columns.parquet", KINDS, low, high)
        inside = np.flatnonzero((columns["key"] >= low) & (columns["key"] <= high))
        assert {name: values.dtype for name, values in found.items()} == KINDS
        for name in KINDS:
            np.testing.assert_array_equal(found[name], columns[name][inside])
        assert not len(inside) or start == inside[0]


def test_equal_columns_give_equal_bytes(tmp_path: Path):
    written(tmp_path / "one", 300)
    written(tmp_path / "other", 300)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_no_flipped_bit_gives_other_numbers(tmp_path: Path):
    path = tmp_path / "columns.parquet"
    columns, whole = written(path, 500), path.read_bytes()
    random = np.random.default_rng(0)
    for bit in random.integers(0, len(whole) * 8, 200).tolist():
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = sorted_columns.between(path, KINDS, LIMITS.min, LIMITS.max)[1]
        except DamagedEntry:
            continue
        # The bit has no meaning, or lies in the description of the row groups, which the SHA-256 of the entry covers.
        assert all(np.isin(found[name], columns[name]).all() for name in KINDS)


def test_other_columns_are_refused(tmp_path: Path):
    written(tmp_path / "columns.parquet", 3)
    with pytest.raises(DamagedEntry, match="expected the columns key, more; its columns are key, value; remove"):
        sorted_columns.between(tmp_path / "columns.parquet", {"key": np.int64, "more": np.int64}, 0, 1)
