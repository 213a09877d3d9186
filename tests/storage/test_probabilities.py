"""What a model answers, some rows at a time: all of it, in order, or an error."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from storage.formats import arrays, probabilities
from storage.records import ClassScore, Evaluation, FolderEntry

CLASSES = tuple(ClassScore(number, f"c{number}", 1, 1.0, 1.0, 1.0) for number in range(3))
PREDICTED = np.arange(50, dtype=np.uint8) % 3
PROBABILITY = np.random.default_rng(0).random((50, 3), np.float32)


def score_of(folder: Path) -> Evaluation:
    return Evaluation(FolderEntry(folder), "", "", 50, 0, 0.0, 0.0, 0.0, 0.0, CLASSES, (), ())


def score(folder: Path, predicted: np.ndarray = PREDICTED, probability: np.ndarray = PROBABILITY) -> Evaluation:
    found = score_of(folder)
    arrays.write(found.file, {"predicted": predicted, "probability": probability})
    return found


@pytest.mark.parametrize("rows", [1, 7, 50, 1000])
def test_blocks_are_all_rows_in_order(tmp_path: Path, rows: int):
    blocks = [*probabilities.blocks(score(tmp_path), rows)]
    assert {len(predicted) for predicted, _ in blocks[:-1]} <= {rows}
    np.testing.assert_array_equal(np.concatenate([predicted for predicted, _ in blocks]), PREDICTED)
    np.testing.assert_array_equal(np.concatenate([probability for _, probability in blocks]), PROBABILITY)


@pytest.mark.parametrize(
    ("predicted", "probability"),
    [(PREDICTED[:49], PROBABILITY), (PREDICTED.astype(np.int64), PROBABILITY), (PREDICTED, PROBABILITY.T.copy())],
    ids=["rows", "type", "shape"],
)
def test_other_arrays_are_refused(tmp_path: Path, predicted: np.ndarray, probability: np.ndarray):
    with pytest.raises(ValueError, match=r"^expected .* of shape .*; found .* of shape "):
        [*probabilities.blocks(score(tmp_path, predicted, probability), 7)]


def test_a_flipped_bit_is_found_at_the_end(tmp_path: Path):
    file = score(tmp_path).file
    content = bytearray(file.read_bytes())
    content[content.index(PROBABILITY.tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        [*probabilities.blocks(score_of(tmp_path), 7)]
