"""A drawing becomes an image like those of the training split: its size, place and colours."""

from __future__ import annotations

import numpy as np
import pytest

from storage.errors import FormatError
from tasks.serving import drawing
from tasks.serving.drawing import Usual

LIKE = Usual((28, 28), paper=0, ink=255, box=20, centre=(14.0, 14.0))


def bars(count: int, paper: int, ink: int) -> np.ndarray:
    """Return images of 16 x 12 pixels, each with an upright bar of 10 x 2 pixels around row 8 and column 7."""
    images = np.full((count, 16, 12), paper, np.uint8)
    images[:, 3:13, 6:8] = ink
    return images


@pytest.mark.parametrize(("paper", "ink"), [(0, 255), (255, 0), (250, 3)])
def test_what_is_usual_is_measured(paper: int, ink: int):
    like = drawing.usual(bars(5, paper, ink), (0, 255))
    assert like is not None
    assert (like.paper, like.ink) == (paper, 255 if ink > paper else 0)
    assert like.box == 10
    assert like.centre == pytest.approx((8, 7))


def test_photographs_are_no_drawings():
    random = np.random.default_rng(0)
    assert drawing.usual(random.integers(0, 256, (50, 16, 12), np.uint8), (0, 255)) is None
    assert drawing.usual(np.zeros((5, 16, 12), np.uint8), (0, 255)) is None
    assert drawing.usual(np.zeros((0, 16, 12), np.uint8), (0, 255)) is None


@pytest.mark.parametrize("place", [(0, 0), (5, 90), (70, 150)])
@pytest.mark.parametrize("dark", [True, False])
def test_ink_gets_its_usual_size_place_and_colour(place: tuple[int, int], dark: bool):
    page = np.full((240, 320), 230 if dark else 12, np.uint8)
    top, left = (place[0] + 10, place[1] + 10)
    page[top : top + 120, left : left + 60] = 20 if dark else 240
    found = drawing.fitted(page, LIKE)
    rows, columns = (np.flatnonzero(found.image.max(axis=axis) > 127) for axis in (1, 0))
    assert (len(rows), len(columns)) == (20, 10)
    assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(14, abs=0.5)
    assert (columns[0] + columns[-1] + 1) / 2 == pytest.approx(14, abs=0.5)
    assert found.image.max() == 255
    assert found.image[0].max() == 0
    assert found.inverted is dark


def test_the_centre_of_mass_counts_not_that_of_the_box():
    page = np.zeros((100, 100), np.uint8)
    page[10:90, 10:20] = 255
    page[80:90, 10:90] = 255
    image = drawing.fitted(page, LIKE).image.astype(float)
    row, column = ((image.sum(axis=axis) @ (np.arange(28) + 0.5)) / image.sum() for axis in (1, 0))
    assert row == pytest.approx(14, abs=0.6)
    assert column == pytest.approx(14, abs=0.6)


def test_nothing_is_cut_off_however_uneven_it_is():
    page = np.zeros((200, 20), np.uint8)
    page[:, 5:8] = 255
    page[190:, :] = 255
    like = Usual((8, 8), paper=0, ink=255, box=8, centre=(4.0, 4.0))
    image = drawing.fitted(page, like).image
    assert image[0].max() > 50
    assert image[-1].max() == 255


@pytest.mark.remedies("tasks.serving.drawing:_shares")
def test_an_empty_page_is_refused():
    page = np.full((50, 50), 200, np.uint8)
    page[20:30, 20:30] = 210
    with pytest.raises(FormatError, match="expected something drawn; found a picture of nearly one grey, 200 to 210"):
        drawing.fitted(page, LIKE)
