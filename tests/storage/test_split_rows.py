"""Reading a split in parts gives what reading it in one file does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage.errors import DamagedEntry
from storage.formats import members, parquet, quarantined, split_rows
from storage.records import FolderEntry, Split

ROWS = 50
SIZES = (20, 1, 29)
CLASSES = tuple("abc")


@pytest.fixture(scope="module")
def pixels() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return random.integers(0, 256, (ROWS, 4, 5), np.uint8), random.integers(0, 3, ROWS, np.uint8)


def written(folder: Path, images: np.ndarray, labels: np.ndarray, group: int, aside: tuple[int, ...] = ()) -> Split:
    folder.mkdir()
    split = Split(FolderEntry(folder), "train", len(labels), (4, 5), 3, f"digest of {folder.name}", {}, len(aside))
    with parquet.Writer(split.file, (4, 5), CLASSES) as writer:
        for start in range(0, len(labels), group):
            writer.write(images[start : start + group], labels[start : start + group])
        writer.close({"image_shape": (4, 5), "rows": len(labels), "set_aside": list(aside)})
    return split


@pytest.fixture
def in_parts(tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray]) -> Split:
    images, labels = pixels
    ends = np.cumsum(SIZES)
    parts = [
        written(tmp_path / f"part{n}", images[stop - size : stop], labels[stop - size : stop], 8)
        for n, (stop, size) in enumerate(zip(ends, SIZES, strict=True))
    ]
    return whole(tmp_path, parts)


def whole(folder: Path, parts: list[Split]) -> Split:
    (folder / "whole").mkdir()
    members.write(folder / "whole", parts)
    rows, aside = sum(part.rows for part in parts), sum(part.set_aside for part in parts)
    return Split(FolderEntry(folder / "whole"), "train", rows, (4, 5), 3, "digest", {}, aside, len(parts))


def test_the_parts_are_records_with_an_entry_of_their_own(tmp_path: Path, in_parts: Split):
    parts = list(split_rows.parts(in_parts))
    assert [part.rows for part in parts] == [*SIZES]
    assert [part.file for part in parts] == [tmp_path / f"part{n}/train.parquet" for n in range(3)]
    assert [start for start, _ in split_rows.numbered(in_parts)] == [0, 20, 21]
    assert list(split_rows.parts(parts[1])) == [parts[1]]


@pytest.mark.parametrize("start", [0, 7, 8, 19, 20, 21, 30, 49])
def test_blocks_come_in_the_order_of_the_archives(in_parts: Split, pixels: tuple[np.ndarray, np.ndarray], start: int):
    images, labels = zip(*split_rows.blocks(in_parts, start), strict=True)
    np.testing.assert_array_equal(np.concatenate(images), pixels[0][start:])
    np.testing.assert_array_equal(np.concatenate(labels), pixels[1][start:])


def test_labels_and_single_images_are_those_of_the_whole(in_parts: Split, pixels: tuple[np.ndarray, np.ndarray]):
    np.testing.assert_array_equal(split_rows.labels(in_parts), pixels[1])
    np.testing.assert_array_equal(split_rows.images(in_parts, [49, 0, 20, 21]), pixels[0][[49, 0, 20, 21]])


def test_rows_that_were_set_aside_count_in_their_part(tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray]):
    images, labels = pixels
    parts = [
        written(tmp_path / "first", images[:5], labels[:5], 8, aside=(0, 3)),
        written(tmp_path / "second", images[5:9], labels[5:9], 8),
        written(tmp_path / "third", images[9:12], labels[9:12], 8, aside=(1,)),
    ]
    split = whole(tmp_path, parts)
    rows = quarantined.archive_rows(split, range(12))
    assert rows == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14]
    assert quarantined.rows_of(split, rows) == [*range(12)]


def test_a_damaged_list_is_named_with_what_to_do(tmp_path: Path, in_parts: Split):
    (tmp_path / "whole" / members.MEMBERS).write_text("{")
    with pytest.raises(DamagedEntry, match=r"parts\.jsonl: expected the list of its parts; .*; remove .*, then run"):
        list(split_rows.parts(in_parts))
    (tmp_path / "whole" / members.MEMBERS).write_text('{"key": "x", "record": {}}\n')
    with pytest.raises(DamagedEntry, match="expected the list of its parts"):
        list(split_rows.parts(in_parts))


def test_a_part_that_is_gone_is_named(in_parts: Split, tmp_path: Path):
    (tmp_path / "part1/train.parquet").unlink()
    with pytest.raises(DamagedEntry, match=r"part1/train\.parquet"):
        split_rows.labels(in_parts)
