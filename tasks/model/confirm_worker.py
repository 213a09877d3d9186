"""The fresh process of `confirm`: load a saved model, predict a few images, write the probabilities.

    python -m tasks.model.confirm_worker IMAGES OUTPUT < REQUEST

It imports neither Prefect nor TensorFlow, and so takes a tenth of the time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from storage.formats import arrays
from storage.records import FilesEntry, TrainedModel, from_json, to_json
from tasks.model.classifier import predict


def request(model: TrainedModel, file: Path, images: np.ndarray) -> str:
    """Write `images`, uint8 of shape (n, height, width); return what else the fresh process needs, as JSON."""
    arrays.write(file, {"images": images})
    files = [model.architecture, model.weights, model.normalization]
    of_model = {"key": model.entry.key, "record": to_json(model), "files": [str(file) for file in files]}
    return json.dumps({"model": of_model, "shape": images.shape})


def requested(text: str, file: Path) -> tuple[TrainedModel, np.ndarray]:
    """Return the model and the images of a `request`."""
    values = json.loads(text)
    of_model = values["model"]
    files = [Path(file) for file in of_model["files"]]
    entry = FilesEntry(of_model["key"], str(files[0].parent), {file.name: file for file in files})
    images = arrays.read(file, {"images": (np.uint8, tuple(values["shape"]))})["images"]
    return from_json(TrainedModel, of_model["record"], entry), images


def main(arguments: list[str]) -> None:
    """Predict the images with the model that standard input describes; write the probabilities."""
    images_file, output = map(Path, arguments)
    arrays.write(output, {"probability": predict(*requested(sys.stdin.read(), images_file))})


if __name__ == "__main__":
    main(sys.argv[1:])
