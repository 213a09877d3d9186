"""Splits as Parquet: the same pixels back, and no damage read in silence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import parquet
from storage.errors import DamagedEntry

SHAPE = (6, 5)


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (500, *SHAPE), dtype=np.uint8), random.integers(0, 3, 500, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path, arrays: tuple[np.ndarray, np.ndarray]) -> Path:
    return write(tmp_path / "split.parquet", *arrays)


def write(path: Path, images: np.ndarray, labels: np.ndarray, block: int = 128) -> Path:
    with parquet.Writer(path, SHAPE, ("a", "b", "c")) as writer:
        for start in range(0, len(images), block):
            writer.write(images[start : start + block], labels[start : start + block])
        writer.close({"image_shape": SHAPE, "rows": len(images)})
    return path


def test_what_was_written_is_read(path: Path, arrays: tuple[np.ndarray, np.ndarray]):
    images, labels = parquet.read(path)
    np.testing.assert_array_equal(images, arrays[0])
    np.testing.assert_array_equal(labels, arrays[1])
    assert [len(block) for block, _ in parquet.blocks(path)] == [128, 128, 128, 116]
    np.testing.assert_array_equal(parquet.labels(path), arrays[1])
    assert parquet.metadata(path)["rows"] == 500


def test_single_rows_are_found_across_row_groups(path: Path, arrays: tuple[np.ndarray, np.ndarray]):
    np.testing.assert_array_equal(parquet.rows(path, [499, 0, 130]), arrays[0][[499, 0, 130]])


def test_same_rows_give_same_bytes(tmp_path: Path, path: Path, arrays: tuple[np.ndarray, np.ndarray]):
    assert write(tmp_path / "again.parquet", *arrays).read_bytes() == path.read_bytes()


def test_other_readers_know_the_classes(path: Path):
    features = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == ["a", "b", "c"]


def test_no_flipped_bit_is_read_in_silence(path: Path, arrays: tuple[np.ndarray, np.ndarray]):
    good = path.read_bytes()
    random = np.random.default_rng(1)
    for bit in random.integers(0, len(good) * 8, 200):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(data))
        try:
            images, labels = parquet.read(path)
        except DamagedEntry:
            continue
        np.testing.assert_array_equal(images, arrays[0])
        np.testing.assert_array_equal(labels, arrays[1])


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"image": pa.array([b"x" * 29], pa.binary(29)), "label": pa.array([1], pa.uint8())}),
        pa.table({"image": pa.array([b"x" * 30], pa.binary(30)), "label": pa.array([1], pa.int64())}),
        pa.table({"picture": pa.array([b"x" * 30], pa.binary(30)), "label": pa.array([1], pa.uint8())}),
    ],
    ids=["pixel missing", "int64 label", "renamed column"],
)
def test_other_columns_are_refused(tmp_path: Path, table: pa.Table):
    path = tmp_path / "other.parquet"
    pq.write_table(table.replace_schema_metadata({"idxflow": json.dumps({"image_shape": SHAPE})}), path)
    with pytest.raises(DamagedEntry, match="expected the columns"):
        parquet.read(path)


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path):
    path = tmp_path / "no.parquet"
    path.write_bytes(b"no")
    with pytest.raises(DamagedEntry, match="expected the Parquet file"):
        parquet.read(path)
