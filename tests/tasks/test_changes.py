"""The small changes of test images: exact on small arrays, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from storage.datasets.manifest import Behaviour
from tasks.probing.changes import multiplied, noisy, rotated, shifted, ways

IMAGE = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
NINTHS = np.arange(9, dtype=np.uint8).reshape(1, 3, 3) * 10


@pytest.mark.parametrize(
    ("down", "right", "expected"),
    [
        (0, -1, [[2, 3, 9], [5, 6, 9]]),
        (0, 1, [[9, 1, 2], [9, 4, 5]]),
        (-1, 0, [[4, 5, 6], [9, 9, 9]]),
        (1, 0, [[9, 9, 9], [1, 2, 3]]),
        (0, 2, [[9, 9, 1], [9, 9, 4]]),
        (0, -3, [[9, 9, 9], [9, 9, 9]]),
        (5, 0, [[9, 9, 9], [9, 9, 9]]),
    ],
)
def test_a_shift_moves_whole_pixels(down: int, right: int, expected: list[list[int]]):
    moved = shifted(IMAGE, down, right, background=9)
    assert moved.dtype == np.uint8
    assert moved.tolist() == [expected]


def test_a_quarter_turn_moves_each_pixel_to_its_place():
    assert rotated(NINTHS, 90, background=7).tolist() == [[[60, 30, 0], [70, 40, 10], [80, 50, 20]]]
    assert rotated(NINTHS, -90, background=7).tolist() == [[[20, 50, 80], [10, 40, 70], [0, 30, 60]]]
    assert rotated(NINTHS, 180, background=7).tolist() == NINTHS[:, ::-1, ::-1].tolist()
    assert rotated(NINTHS, 360, background=7).tolist() == NINTHS.tolist()


def test_what_comes_from_beyond_the_image_is_background():
    wide = np.full((1, 1, 5), 200, np.uint8)
    assert rotated(wide, 90, background=9).tolist() == [[[9, 9, 200, 9, 9]]]


def test_between_pixels_values_are_interpolated():
    """An eighth of a turn puts the middle of each side at a distance of 1 along a diagonal of the pixels."""
    bright = np.zeros((1, 3, 3), np.uint8)
    bright[0, 1, 1] = 100
    turned = rotated(bright, 45, background=0)[0]
    near = 1 - np.sqrt(0.5)
    assert turned.tolist() == [[0, 9, 0], [9, 100, 9], [0, 9, 0]]
    assert round(100 * near * near) == 9


def test_noise_depends_on_the_row_alone():
    images = np.full((3, 40, 40), 128, np.uint8)
    both = noisy(images, [4, 5, 6], 8)
    assert np.array_equal(both[1:2], noisy(images[:1], [5], 8))
    assert not np.array_equal(both[0], both[1])
    assert both.std() == pytest.approx(8, rel=0.05)
    assert both.mean() == pytest.approx(128, abs=0.5)
    assert noisy(np.zeros((1, 2, 2), np.uint8), [0], 0.001).tolist() == [[[0, 0], [0, 0]]]


def test_brightness_is_a_factor_within_the_range_of_pixels():
    pixels = np.array([[[0, 5, 100, 250]]], np.uint8)
    assert multiplied(pixels, 1.1).tolist() == [[[0, 6, 110, 255]]]
    assert multiplied(pixels, 0.9).tolist() == [[[0, 4, 90, 225]]]
    assert multiplied(pixels, 0).tolist() == [[[0, 0, 0, 0]]]


def test_each_test_has_its_ways():
    settings = Behaviour(
        shift={"pixels": 1, "changed": 0.1},
        rotate={"degrees": 5, "changed": 0.1},
        noise={"deviation": 8, "changed": 0.1},
        brightness={"percent": 10, "changed": 0.1},
    )
    found = list(ways(settings, background=0))
    assert [(way.test, way.variant) for way in found] == [
        *(("shift", name) for name in ("left", "right", "up", "down")),
        *(("rotate", name) for name in ("clockwise", "anticlockwise")),
        ("noise", "noise"),
        *(("brightness", name) for name in ("brighter", "darker")),
    ]
    by_name = {way.variant: way.change(NINTHS, [0]) for way in found}
    assert all(changed.shape == NINTHS.shape and changed.dtype == np.uint8 for changed in by_name.values())
    assert by_name["left"][0, 0].tolist() == [10, 20, 0]
    assert by_name["up"][0, 0].tolist() == [30, 40, 50]
    assert by_name["brighter"][0, 2].tolist() == [66, 77, 88]
    assert [way.test for way in ways(Behaviour(noise={"deviation": 8, "changed": 0}), 0)] == ["noise"]
