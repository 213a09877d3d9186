"""The nearest training images: exactly those, whatever the number of rows, over a bounded part of a large split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.formats import parquet
from storage.records import FolderEntry, Split
from tasks.serving import nearest
from tasks.serving.nearest import TrainingRows


def test_they_are_those_of_a_plain_search_and_ties_keep_their_order():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (9_000, 5, 4), np.uint8)
    images[4_500:] = images[:4_500]
    rows = TrainingRows(images, (np.arange(9_000) % 7).astype(np.uint8), np.arange(9_000), 9_000)
    asked = random.integers(0, 256, (5, 4), np.uint8)
    distances = np.sqrt(((images.astype(int) - asked) ** 2).sum(axis=(1, 2)))
    expected = np.argsort(distances, kind="stable")[:6]
    found = rows.nearest(asked, 6)
    assert [near.row for near in found] == expected.tolist()
    assert [near.distance for near in found] == distances[expected].tolist()
    assert [near.label for near in found] == (expected % 7).tolist()
    assert np.array_equal(found[0].image, images[expected[0]])
    assert rows.nearest(images[8_000], 1)[0].distance == 0


def test_of_a_large_split_blocks_over_all_of_it_are_searched(tmp_path: Path):
    split = Split(FolderEntry(tmp_path), "train", 1000, (4, 4), 2, "ab" * 32, {})
    images = np.repeat(np.arange(1000) % 256, 16).reshape(1000, 4, 4).astype(np.uint8)
    with parquet.Writer(split.file, (4, 4), ("a", "b")) as writer:
        for start in range(0, 1000, 50):
            writer.write(images[start : start + 50], np.zeros(50, np.uint8))
        writer.close({"image_shape": (4, 4), "rows": 1000})
    everything = nearest.read(split)
    assert (len(everything.rows), everything.total) == (1000, 1000)
    assert np.array_equal(everything.images, images)
    some = nearest.read(split, most_bytes=16 * 120)
    assert some.total == 1000
    assert some.rows.tolist() == [*range(50), *range(450, 500), *range(900, 920)]
    assert np.array_equal(some.images, images[some.rows])
