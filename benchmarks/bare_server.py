"""What one would write first: a FastAPI application that calls `model.predict`, for `benchmarks.serving`.

python -m benchmarks.bare_server MODEL.keras PORT
"""

from __future__ import annotations

import sys

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Image(BaseModel):
    """One image."""

    image: list[list[int]]


def application(path: str) -> FastAPI:
    """Return the application for a model that Keras has saved."""
    import keras

    app, model = FastAPI(), keras.saving.load_model(path)

    @app.post("/predict")
    def predict(asked: Image) -> dict[str, float]:
        probabilities = model.predict(np.asarray([asked.image], np.float32), verbose=0)[0]
        return {"label": int(probabilities.argmax()), "probability": float(probabilities.max())}

    return app


if __name__ == "__main__":
    uvicorn.run(application(sys.argv[1]), port=int(sys.argv[2]), log_level="warning")
