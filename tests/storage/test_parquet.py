"""Splits as Parquet: the same pixels back, and no damage read in silence."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import DamagedEntry
from storage.formats import parquet

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


IMAGE, LABEL = pa.array([b"x" * 30], pa.binary(30)), pa.array([1], pa.uint8())
FIELDS = [pa.field("image", pa.binary(30), nullable=False), pa.field("label", pa.uint8(), nullable=False)]
GOOD = {"image_shape": SHAPE, "rows": 1}


def table(fields: list[pa.Field], *columns: pa.Array) -> pa.Table:
    return pa.Table.from_arrays(list(columns), schema=pa.schema(fields))


def without(nullable: int) -> list[pa.Field]:
    return [field.with_nullable(number == nullable) for number, field in enumerate(FIELDS)]


OTHER: dict[str, tuple[pa.Table, object, str]] = {
    "a pixel missing": (
        table([pa.field("image", pa.binary(29), False), FIELDS[1]], pa.array([b"x" * 29], pa.binary(29)), LABEL),
        GOOD,
        r"expected the columns image: fixed_size_binary\[30\].*found image: fixed_size_binary\[29\]",
    ),
    "int64 labels": (
        table([FIELDS[0], pa.field("label", pa.int64(), False)], IMAGE, pa.array([1], pa.int64())),
        GOOD,
        "found.*label: int64",
    ),
    "a renamed column": (
        table([FIELDS[0].with_name("picture"), FIELDS[1]], IMAGE, LABEL),
        GOOD,
        "found picture",
    ),
    "a column missing": (table(FIELDS[:1], IMAGE), GOOD, "expected the columns"),
    "a column more": (table([*FIELDS, FIELDS[1].with_name("more")], IMAGE, LABEL, LABEL), GOOD, "more: uint8"),
    "a column twice": (table([*FIELDS, FIELDS[1]], IMAGE, LABEL, LABEL), GOOD, "expected the columns"),
    "columns exchanged": (table(FIELDS[::-1], LABEL, IMAGE), GOOD, "expected the columns"),
    "a null label": (table(without(1), IMAGE, pa.array([None], pa.uint8())), GOOD, "label: uint8 or null"),
    "a null image": (table(without(0), pa.array([None], pa.binary(30)), LABEL), GOOD, "image.* or null"),
    "no row": (table(FIELDS, IMAGE[:0], LABEL[:0]), GOOD | {"rows": 0}, "rows; found 0"),
    "another number of rows": (table(FIELDS, IMAGE, LABEL), GOOD | {"rows": 2}, "expected 2 rows; found 1"),
    "no shape": (table(FIELDS, IMAGE, LABEL), {}, "image_shape"),
    "a shape of three": (table(FIELDS, IMAGE, LABEL), {"image_shape": [2, 3, 5]}, "too many values"),
    "a negative shape": (
        table([pa.field("image", pa.binary(), False), FIELDS[1]], pa.array([b"x" * 30]), LABEL),
        {"image_shape": [-1, 1]},
        "-1 by 1 pixels",
    ),
    "a huge shape": (table(FIELDS, IMAGE, LABEL), {"image_shape": [1 << 40, 1 << 40]}, "by 1099511627776 pixels"),
    "a shape of texts": (table(FIELDS, IMAGE, LABEL), {"image_shape": ["6", 5]}, "by 5 pixels"),
    "a shape of truths": (table(FIELDS, IMAGE, LABEL), {"image_shape": [True, 30]}, "True by 30 pixels"),
    "no object": (table(FIELDS, IMAGE, LABEL), [1], "expected the Parquet file"),
}


@pytest.mark.parametrize("what", OTHER)
@pytest.mark.parametrize("read", [parquet.read, parquet.labels, lambda path: parquet.rows(path, [0])])
def test_anything_but_a_split_is_refused_in_one_sentence(tmp_path: Path, what: str, read: Callable[[Path], object]):
    foreign, values, message = OTHER[what]
    path = tmp_path / "other.parquet"
    pq.write_table(foreign.replace_schema_metadata({"idxflow": json.dumps(values)}), path)
    with pytest.raises(DamagedEntry, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: expected")


@pytest.mark.parametrize("values", ["[" * 100_000, "{", b"\xff", ""], ids=["nested", "cut", "not UTF-8", "empty"])
def test_metadata_that_is_no_json_is_refused(tmp_path: Path, values: str):
    path = tmp_path / "other.parquet"
    pq.write_table(table(FIELDS, IMAGE, LABEL).replace_schema_metadata({"idxflow": values}), path)
    for read in (parquet.read, parquet.labels, parquet.metadata):
        with pytest.raises(DamagedEntry, match="expected the Parquet file of a split"):
            read(path)


def test_what_was_read_leaves_nothing_for_the_garbage_collection(path: Path):
    """The footer of a file describes all its pages: a training that opens files again and again would grow."""
    gc.collect()
    gc.disable()
    try:
        for read in (parquet.read, parquet.labels, parquet.metadata, lambda path: parquet.rows(path, [1])):
            read(path)
        left = [type(one) for one in gc.get_objects() if isinstance(one, pq.FileMetaData | pq.ParquetSchema)]
    finally:
        gc.enable()
    assert not left


def test_row_groups_of_any_size_are_the_same_data(tmp_path: Path, arrays: tuple[np.ndarray, np.ndarray]):
    images, labels, path = arrays[0][:40], arrays[1][:40], tmp_path / "groups.parquet"
    pixels = pa.array([image.tobytes() for image in images], pa.binary(30))
    whole = table(FIELDS, pixels, pa.array(labels)).replace_schema_metadata(
        {"idxflow": json.dumps(GOOD | {"rows": 40})}
    )
    with pq.ParquetWriter(path, whole.schema) as writer:
        for start, count in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 38), (40, 0)]:
            writer.write_table(whole.slice(start, count))
    assert [pq.ParquetFile(path).metadata.row_group(n).num_rows for n in range(6)] == [0, 1, 0, 1, 38, 0]
    arrays_read = parquet.read(path)
    np.testing.assert_array_equal(arrays_read[0], images)
    np.testing.assert_array_equal(arrays_read[1], labels)
    np.testing.assert_array_equal(parquet.rows(path, [39, 0, 1]), images[[39, 0, 1]])


def test_a_cut_file_is_refused_wherever_it_ends(path: Path):
    whole = path.read_bytes()
    for size in np.linspace(0, len(whole) - 1, 59).astype(int):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedEntry, match="expected the Parquet file"):
            parquet.read(path)


def test_a_row_group_too_many_is_refused(tmp_path: Path, arrays: tuple[np.ndarray, np.ndarray]):
    with parquet.Writer(tmp_path / "more.parquet", SHAPE, ("a", "b", "c")) as writer:
        writer.write(*(array[:10] for array in arrays))
        writer.write(*(array[:10] for array in arrays))
        writer.close({"image_shape": SHAPE, "rows": 10})
    with pytest.raises(DamagedEntry, match="expected 10 rows; found 20"):
        parquet.read(tmp_path / "more.parquet")


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path):
    path = tmp_path / "no.parquet"
    path.write_bytes(b"no")
    with pytest.raises(DamagedEntry, match="expected the Parquet file"):
        parquet.read(path)
