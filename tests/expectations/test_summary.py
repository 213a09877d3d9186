"""What the expectations look at: one row per image, measured block by block."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from expectations import summary
from storage.datasets import catalog
from storage.formats import parquet
from storage.records import FolderEntry, Split

Blocks = list[tuple[np.ndarray, np.ndarray]]

ROWS = 1000
"""Rows of a part: more than any table here has."""


def blocks(images: object, labels: object, rows: int = 2) -> Blocks:
    pixels, classes = np.array(images, np.uint8), np.array(labels, np.uint8)
    return [(pixels[n : n + rows], classes[n : n + rows]) for n in range(0, len(classes), rows)]


def describe(images: object, labels: object, classes: int = 2, train: summary.Survey | None = None) -> summary.Table:
    image_blocks = blocks(images, labels)
    return whole(summary.images(image_blocks, summary.survey(image_blocks, classes), train, ROWS))


def whole(parts: Iterable[summary.Table]) -> summary.Table:
    """Put the parts of a table together."""
    tables = list(parts)
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


FOUR = [[[0, 0], [0, 9]], [[9, 9], [9, 9]], [[0, 3], [0, 0]], [[0, 0], [0, 9]]]


def test_each_image_is_measured():
    table = describe(FOUR, [0, 1, 0, 1])
    assert {name: values.tolist() for name, values in table.items() if name != "digest"} == {
        "index": [0, 1, 2, 3],
        "label": [0, 1, 0, 1],
        "pixel_min": [0, 9, 0, 0],
        "pixel_max": [9, 9, 3, 9],
        "mean": [2.25, 9.0, 0.75, 2.25],
        "blank": [0, 1, 0, 0],
        "duplicate": [0, 0, 0, 1],
        "conflict": [1, 0, 0, 1],
        "leaked": [0, 0, 0, 0],
        # Without itself, each image of 0 is further from its own mean than it is from that of 1.
        "nearest": [1, 0, 0, 0],
        "centroid_hit": [0, 0, 1, 0],
    }


def test_columns_have_the_types_and_the_order_declared():
    table = describe(FOUR, [0, 1, 0, 1])
    assert [(name, values.dtype.type) for name, values in table.items()] == list(summary.IMAGE_COLUMNS.items())


def test_equal_images_and_only_those_have_equal_digests():
    digests = describe(FOUR, [0, 1, 0, 1])["digest"].tolist()
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3


def test_images_of_another_split_are_leaked():
    train = summary.survey(blocks(FOUR[:2], [0, 1]), 2)
    assert describe(FOUR[2:], [0, 0], train=train)["leaked"].tolist() == [0, 1]


def test_repeats_are_those_found_one_by_one():
    random = np.random.default_rng(3)
    images, labels = random.integers(0, 2, (400, 3, 3)), random.integers(0, 2, 400)
    of_train, of_test = summary.survey(blocks(images[200:], labels[200:]), 2), blocks(images[:200], labels[:200])
    table = whole(summary.images(of_test, summary.survey(of_test, 2), of_train, 30))
    keys = [image.tobytes() for image in images]
    assert table["duplicate"].tolist() == [int(keys[n] in keys[:n]) for n in range(200)]
    seen = [{labels[m] for m in range(200) if keys[m] == keys[n]} for n in range(200)]
    assert table["conflict"].tolist() == [int(len(classes) == 2) for classes in seen]
    assert table["leaked"].tolist() == [int(keys[n] in keys[200:]) for n in range(200)]
    for name in ("duplicate", "conflict", "leaked"):
        assert 20 < table[name].sum() < 200


@pytest.mark.parametrize(("part_rows", "sizes"), [(4, [4, 4, 2]), (3, [4, 4, 2]), (10, [10]), (11, [10])])
def test_the_table_comes_in_parts_of_so_many_rows(part_rows: int, sizes: list[int]):
    image_blocks = blocks(np.arange(10)[:, None, None] % 7, np.arange(10) % 2)
    survey = summary.survey(image_blocks, 2)
    parts = list(summary.images(image_blocks, survey, None, part_rows))
    assert [len(part["index"]) for part in parts] == sizes
    together, at_once = whole(parts), whole(summary.images(image_blocks, survey, None, ROWS))
    assert together["index"].tolist() == list(range(10))
    for name in summary.IMAGE_COLUMNS:
        np.testing.assert_array_equal(together[name], at_once[name])


def test_the_same_label_twice_is_no_conflict():
    table = describe([FOUR[0], FOUR[0], FOUR[1]], [1, 1, 0])
    assert table["duplicate"].tolist() == [0, 1, 0]
    assert table["conflict"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_block_boundaries_change_nothing(rows: int):
    random = np.random.default_rng(1)
    images, labels = random.integers(0, 256, (50, 5, 4)), random.integers(0, 3, 50)
    at_once, cut = blocks(images, labels, 50), blocks(images, labels, rows)
    survey = summary.survey(at_once, 3)
    np.testing.assert_array_equal(survey.means.means, summary.survey(cut, 3).means.means)
    first, second = (
        whole(summary.images(image_blocks, summary.survey(image_blocks, 3), None, ROWS))
        for image_blocks in (at_once, cut)
    )
    for name in summary.IMAGE_COLUMNS:
        np.testing.assert_array_equal(first[name], second[name])


def test_centroids_are_the_means_and_the_nearest_is_found():
    random = np.random.default_rng(2)
    images, labels = random.integers(0, 256, (300, 6, 5), dtype=np.uint8), random.integers(0, 4, 300, dtype=np.uint8)
    flat = images.reshape(300, -1).astype(float)
    expected = np.stack([flat[labels == n].mean(axis=0) for n in range(4)])
    centroids = summary.survey(blocks(images, labels), 4).means
    np.testing.assert_allclose(centroids.means, expected, rtol=1e-6)
    nearest = ((flat[:, None] - expected) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(centroids.nearest(images.reshape(300, -1)), nearest)


def test_an_image_is_left_out_of_its_own_mean():
    """With as many pixels as these, means of a few images are nearest to those very images, whatever their labels."""
    random = np.random.default_rng(2)
    images, labels = random.integers(0, 256, (60, 10, 10), dtype=np.uint8), random.integers(0, 3, 60, dtype=np.uint8)
    flat = images.reshape(60, -1)
    centroids = summary.survey(blocks(images, labels), 3).means
    expected = []
    for row in range(60):
        rest = np.arange(60) != row
        means = [flat[rest & (labels == n)].mean(axis=0) for n in range(3)]
        expected.append(int(np.argmin([((flat[row] - mean) ** 2).sum() for mean in means])))
    np.testing.assert_array_equal(centroids.nearest(flat, labels), expected)
    assert (centroids.nearest(flat) == labels).mean() > 0.8
    assert (np.array(expected) == labels).mean() < 0.4


def matched(images: np.ndarray, labels: np.ndarray, classes: int) -> float:
    image_blocks, matches = blocks(images, labels, 50), summary.Matches()
    for part in summary.images(image_blocks, summary.survey(image_blocks, classes), None, 50):
        matches.add(part)
    return matches.by_chance


def test_the_chance_of_a_match_is_that_of_labels_dealt_out_at_random():
    """Of labels that mean nothing, no more pass a limit than it says."""
    random = np.random.default_rng(4)
    images = random.integers(0, 256, (200, 4, 4), dtype=np.uint8)
    chances = np.array([matched(images, random.integers(0, 4, 200), 4) for _ in range(400)])
    for limit in (0.01, 0.05, 0.2):
        assert (chances <= limit).mean() <= limit + 3 * np.sqrt(limit / 400)
    assert (chances > 0.4).any()


def test_classes_hard_to_tell_apart_match_more_often_than_by_chance():
    random = np.random.default_rng(5)
    labels = random.integers(0, 5, 3000)
    means = random.integers(100, 112, (5, 8, 8))
    images = np.clip(random.normal(means[labels], 60), 0, 255).astype(np.uint8)
    image_blocks = blocks(images, labels, 50)
    share = whole(summary.images(image_blocks, summary.survey(image_blocks, 5), None, ROWS))["centroid_hit"].mean()
    assert 0.22 < share < 0.4
    assert matched(images, labels, 5) < 1e-6
    assert matched(images, np.roll(labels, 1), 5) > 0.01


def test_so_few_rows_tell_nothing():
    assert matched(np.array([[[0]], [[200]], [[90]]], np.uint8), np.array([0, 1, 0]), 2) == 0


def test_a_class_without_rows_is_never_nearest():
    means = summary.survey(blocks([[[0]], [[200]]], [0, 2]), 4).means
    assert means.labels.tolist() == [0, 2]
    assert means.nearest(np.array([[1], [199]], np.uint8)).tolist() == [0, 2]


def test_labels_that_are_no_class_do_not_hit():
    table = describe([[[0]], [[200]], [[200]]], [0, 1, 255])
    assert table["label"].tolist() == [0, 1, 255]
    assert table["centroid_hit"].tolist() == [1, 1, 0]


def test_a_split_with_no_usable_label_has_no_hits():
    assert describe([[[0]], [[9]]], [7, 255])["centroid_hit"].tolist() == [0, 0]


def test_a_split_without_rows_gives_an_empty_table():
    table = describe(np.empty((0, 2, 2)), [])
    assert [(name, len(values), values.dtype.type) for name, values in table.items()] == [
        (name, 0, kind) for name, kind in summary.IMAGE_COLUMNS.items()
    ]


def test_classes_are_counted():
    table = summary.class_table(np.array([0, 0, 0, 2, 255, 255]), 3)
    assert table["rows"].tolist() == [3, 0, 1]
    assert table["share"].tolist() == pytest.approx([0.5, 0, 1 / 6])
    assert table["imbalance"].tolist() == [1, np.inf, 3]


def test_classes_of_no_rows_are_counted():
    table = summary.class_table(np.empty(0, np.int64), 2)
    assert table["rows"].tolist() == [0, 0]
    assert table["share"].tolist() == [0, 0]


def ground(images: object, labels: object, classes: int = 2) -> float:
    image_blocks, pixels = blocks(images, labels), summary.PixelRange()
    survey = summary.survey(image_blocks, classes)
    for part in summary.images(image_blocks, survey, None, 2):
        pixels.add(part)
    shape = np.array(images).shape[1:]
    return float(summary.ground_table(survey.means, shape, pixels)["ground"][0])  # type: ignore[arg-type]


def framed(border: int, inside: int) -> list[list[int]]:
    return [[border] * 4, [border, inside, inside, border], [border] * 4]


def test_the_ground_is_the_border_of_all_images_in_the_range_of_their_pixels():
    assert ground([framed(10, 210)], [0]) == 0
    assert ground([framed(210, 10)], [0]) == 1
    assert ground([framed(60, 210), framed(10, 210), framed(10, 10)], [0, 1, 1]) == pytest.approx(50 / 3 / 200)
    assert ground([[[10, 210], [10, 210]], [[10, 210], [210, 210]]], [1, 0]) == pytest.approx(5 / 8)


def test_the_ground_of_images_without_a_border_of_their_own_is_all_of_them():
    assert ground([[[0, 0, 0, 200]], [[0, 100, 0, 200]]], [0, 1]) == pytest.approx(500 / 8 / 200)


@pytest.mark.parametrize(("images", "labels"), [([[[7]], [[7]]], [0, 1]), ([[[0]], [[9]]], [7, 255]), ([], [])])
def test_the_ground_of_what_has_no_range_or_no_class_contradicts_no_ink(images: list, labels: list[int]):
    assert ground(np.array(images).reshape(-1, 1, 1), labels) == 0.5


def write_split(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> Split:
    split = Split(FolderEntry(folder), name, len(labels), images.shape[1:], 10, "content", {})  # type: ignore[arg-type]
    with parquet.Writer(split.file, images.shape[1:], tuple("0123456789")) as writer:
        writer.write(images, labels)
        writer.close({"image_shape": images.shape[1:], "rows": len(labels), "digest": "content", "sources": {}})
    return split


def test_both_splits_are_measured_against_the_training_split(tmp_path: Path):
    train = write_split(tmp_path, "train", np.array([[[0]], [[200]]], np.uint8), np.array([0, 1], np.uint8))
    test = write_split(tmp_path, "test", np.array([[[10]], [[200]]], np.uint8), np.array([1, 1], np.uint8))
    of_train, of_test = (summary.survey(parquet.blocks(split.file), 10) for split in (train, test))
    (table,) = summary.images(parquet.blocks(train.file), of_train, None, ROWS)
    assert (table["centroid_hit"].tolist(), table["leaked"].tolist()) == ([1, 1], [0, 0])
    (table,) = summary.images(parquet.blocks(test.file), of_test, of_train, ROWS)
    assert (table["centroid_hit"].tolist(), table["leaked"].tolist()) == ([0, 1], [0, 1])


def test_archive_table_puts_declared_beside_found(tmp_path: Path):
    mnist = catalog.find("mnist")
    split = write_split(tmp_path, "test", np.zeros((3, 2, 5), np.uint8), np.zeros(3, np.uint8))
    table = summary.archive_table(mnist, [split], {"test": 3})
    assert {name: values[0] for name, values in table.items()} == {
        "index": 0,
        "split": "test",
        "rows_declared": 10_000,
        "rows_decoded": 3,
        "rows_found": 3,
        "shape_declared": "28×28",
        "shape_found": "2×5",
        "content_decoded": "content",
        "content_found": "content",
        "images_declared": mnist.archive("test-images").payload_sha256,
        "images_found": "none",
        "labels_declared": mnist.archive("test-labels").payload_sha256,
        "labels_found": "none",
    }


def test_memory_does_not_grow_with_the_size_of_images():
    def large() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        random = np.random.default_rng(0)
        for _ in range(4):
            yield random.integers(0, 256, (64, 256, 256), dtype=np.uint8), np.zeros(64, np.uint8)

    tracemalloc.start()
    try:
        list(summary.images(large(), summary.survey(large(), 1), None, ROWS))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    block = 64 * 256 * 256
    # Two blocks while one follows the other; as float32, one alone would be four times its size.
    assert peak < 3.5 * block
