"""The fresh process of `confirm`: load a saved model, predict a few rows, write the probabilities.

    python -m tasks.model.confirm_worker MODEL_FOLDER SPLIT_FILE OUTPUT

It imports neither Prefect nor TensorFlow, and so takes a tenth of the time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from storage.formats import arrays, parquet
from storage.records import TrainedModel
from storage.store import load
from tasks.model.classifier import predict

ROWS = 64


def sample_rows(rows: int) -> np.ndarray:
    """Return the numbers of the rows to predict again: at most `ROWS`, evenly spaced over the split."""
    return np.unique(np.linspace(0, rows - 1, min(ROWS, rows)).astype(int))


def main(arguments: list[str]) -> None:
    """Predict the fixture rows of a split with a model, both given by path, and write the probabilities."""
    model_folder, split_file, output = map(Path, arguments)
    rows = parquet.metadata(split_file)["rows"]
    images = parquet.rows(split_file, sample_rows(rows).tolist())
    arrays.write(output, {"probability": predict(load(model_folder, TrainedModel), images)})


if __name__ == "__main__":
    main(sys.argv[1:])
