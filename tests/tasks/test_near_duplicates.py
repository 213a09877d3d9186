"""The search for near-duplicates: the same as comparing all pairs, whatever the images are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.auditing import near_duplicates
from tasks.auditing.near_duplicates import NEAR, Search, search
from tasks.auditing.survey import digests
from tests.support.splits import handwritten, split_of


def found(folder: Path, train: np.ndarray, test: np.ndarray, **options: int) -> Search:
    """Search, with labels that number the rows."""
    first, second = (
        split_of(folder, name, images, (np.arange(len(images)) % 256).astype(np.uint8), 256, 100)
        for name, images in (("train", train), ("test", test))
    )
    shown: list[tuple[int, int]] = []
    result = search(first, second, digests(train), lambda *how_far: shown.append(how_far), **options)
    assert all(done <= total for done, total in shown)
    assert not shown or shown[-1][0] == shown[-1][1]
    table = result.found
    assert (table.test_label == table.test_row % 256).all()
    assert (table.train_label == table.train_row % 256).all()
    return result


def by_brute_force(train: np.ndarray, test: np.ndarray) -> dict[int, tuple[int, float]]:
    """The nearest training row of each test row and its distance, where it is near."""
    rows, others = (images.reshape(len(images), -1).astype(np.int64) for images in (test, train))
    nearest = {}
    for number, row in enumerate(rows):
        squared = ((others - row) ** 2).sum(axis=1)
        contrast = ((row - row.mean()) ** 2).sum()
        best = int(squared.argmin())
        if squared[best] == 0 or squared[best] <= NEAR**2 * contrast:
            nearest[number] = best, float(np.sqrt(squared[best] / contrast)) if squared[best] else 0.0
    return nearest


def noisy(images: np.ndarray, deviation: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def real() -> tuple[np.ndarray, np.ndarray]:
    """Digits against others, against copies with more and more noise, against themselves."""
    images = handwritten()[0] * np.uint8(15)
    train = images[:900]
    return train, np.concatenate([images[900:1100], noisy(train[:60], 3), noisy(train[60:120], 12), train[::50]])


def random_sizes() -> tuple[np.ndarray, np.ndarray]:
    """Random images of a size that cells do not divide evenly, and edited ones: darker, one pixel changed."""
    images = np.random.default_rng(0).integers(0, 256, (300, 19, 13), np.uint8)
    spotted = images[50:80].copy()
    spotted[:, 9, 9] ^= 255
    return images, np.concatenate([(images[:50] * 0.9).astype(np.uint8), spotted, 255 - images[:20]])


def alike() -> tuple[np.ndarray, np.ndarray]:
    """All images are nearly the same, so every pair is compared pixel by pixel."""
    images = noisy(np.tile(handwritten()[0][3] * np.uint8(15), (350, 1, 1)), 4)
    return images[:300], images[300:]


def flat() -> tuple[np.ndarray, np.ndarray]:
    """Blank images, which have no contrast, and checkerboards, whose cell means are all the same."""
    blank = np.multiply.outer(np.arange(0, 250, 5, dtype=np.uint8), np.ones((16, 16), np.uint8))
    board = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)
    return np.concatenate([blank, board[None]]), np.concatenate(
        [blank[:3] + 1, blank[7:9], board[None] ^ 1, 255 - board[None]]
    )


@pytest.mark.parametrize("images", [real, random_sizes, alike, flat])
def test_it_finds_what_comparing_all_pairs_finds(tmp_path: Path, images):
    train, test = images()
    expected = by_brute_force(train, test)
    result = found(tmp_path, train, test)
    table = result.found
    assert result.compared == len(test)
    assert dict(zip(table.test_row.tolist(), table.train_row.tolist(), strict=True)) == {
        row: near[0] for row, near in expected.items()
    }
    for row, distance in zip(table.test_row.tolist(), table.distance.tolist(), strict=True):
        assert distance == pytest.approx(expected[row][1], rel=1e-6, abs=1e-9)
    assert (np.diff(table.distance) >= 0).all()
    assert len(expected) > 2


def test_small_amounts_in_memory_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train, test = real()
    whole = found(tmp_path / "whole", train, test).found
    for name, value in {"_TEST_BYTES": 64 * 70, "_TEST_ROWS": 16, "_TILE_BYTES": 64 * 8 * 3}.items():
        monkeypatch.setattr(near_duplicates, name, value)
    parts = found(tmp_path / "parts", train, test).found
    for name, values in whole.columns().items():
        assert parts.columns()[name].tolist() == values.tolist()


def test_with_too_many_pairs_a_sample_is_compared_and_equal_images_are_found_anyway(tmp_path: Path):
    train, test = real()
    everything = found(tmp_path / "all", train, test).found
    sample = found(tmp_path / "sample", train, test, pairs=100 * len(train))
    assert sample.compared == 100 + (everything.distance == 0).sum()
    pairs = set(zip(everything.test_row, everything.train_row, strict=True))
    assert set(zip(sample.found.test_row, sample.found.train_row, strict=True)) < pairs
    assert (sample.found.distance == 0).sum() == (everything.distance == 0).sum() == 18
