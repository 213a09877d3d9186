"""A model as MLflow keeps and loads it: its flavour `keras`, with the names of the classes beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np

from storage.errors import ExportFailed
from tasks.serving.export import TOLERANCE, probe_images, reopened
from tasks.serving.predict import Model

_PACKAGES = ("keras", "tensorflow", "numpy")
"""What a model needs to be loaded elsewhere."""


def save(model: Model, exported: Path, saved: Path, ids: tuple[str, str]) -> None:
    """Write an MLflow model into the new folder `saved`.

    Args:
        exported: the folder of an export of the format `keras`.
        ids: MLflow's of the model and of the run.

    Raises:
        ExportFailed: it does not predict what the model does.
    """
    import mlflow.keras
    from mlflow import pyfunc
    from mlflow.models import Model as Description
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    pixels = TensorSpec(np.dtype(np.float32), (-1, *model.image_shape))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, len(model.classes)))
    mlflow.keras.save_model(
        reopened(exported / "model.keras", bool(model.record.own)),
        str(saved),
        mlflow_model=Description(model_id=ids[0], run_id=ids[1]),
        signature=ModelSignature(inputs=Schema([pixels]), outputs=Schema([probabilities])),
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in _PACKAGES],
        metadata={"classes": list(model.classes), "pixel_range": list(model.pixel_range)},
    )
    (saved / "model.json").write_bytes((exported / "model.json").read_bytes())
    images = probe_images(model)
    with _silent_keras():
        answered = np.asarray(pyfunc.load_model(str(saved)).predict(images.astype(np.float32)))
    expected = model.predict(images).probabilities
    difference = float(np.abs(answered - expected).max()) if answered.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE:
        raise ExportFailed(
            f"expected MLflow to load v{model.version.number} of {model.version.dataset} with the model's own "
            f"probabilities within {TOLERANCE:g}; they differ by up to {difference:.2g}; the model was not sent; "
            "install the versions of keras and mlflow-skinny that requirements.lock names"
        )


@contextmanager
def _silent_keras() -> Iterator[None]:
    """Keep off the terminal the bar of Keras, and TensorFlow's advice against loading many models in one process."""
    import keras

    advice = logging.getLogger("tensorflow")
    level = advice.level
    advice.setLevel(logging.ERROR)
    was_on = keras.config.is_interactive_logging_enabled()
    keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        advice.setLevel(level)
        if was_on:
            keras.config.enable_interactive_logging()
