"""The fresh process of `confirm`: load a saved model, predict a few rows, write the probabilities.

    python -m tasks.model.confirm_worker SPLIT_FILE OUTPUT < REQUEST

It imports neither Prefect nor TensorFlow, and so takes a tenth of the time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from storage.formats import arrays, parquet
from storage.records import FilesEntry, TrainedModel, from_json, to_json
from tasks.model.classifier import predict

ROWS = 64


def sample_rows(rows: int) -> np.ndarray:
    """Return the numbers of the rows to predict again: at most `ROWS`, evenly spaced over the split."""
    return np.unique(np.linspace(0, rows - 1, min(ROWS, rows)).astype(int))


def request(model: TrainedModel) -> str:
    """Return what the fresh process needs to know of a model, as JSON."""
    files = [model.architecture, model.weights, model.normalization]
    return json.dumps({"key": model.entry.key, "record": to_json(model), "files": [str(file) for file in files]})


def requested(text: str) -> TrainedModel:
    """Return the model of a `request`."""
    values = json.loads(text)
    files = [Path(file) for file in values["files"]]
    entry = FilesEntry(values["key"], str(files[0].parent), {file.name: file for file in files})
    return from_json(TrainedModel, values["record"], entry)


def main(arguments: list[str]) -> None:
    """Predict the fixture rows of a split with the model that standard input describes; write the probabilities."""
    split_file, output = map(Path, arguments)
    model = requested(sys.stdin.read())
    rows = parquet.metadata(split_file)["rows"]
    images = parquet.rows(split_file, sample_rows(rows).tolist())
    arrays.write(output, {"probability": predict(model, images)})


if __name__ == "__main__":
    main(sys.argv[1:])
