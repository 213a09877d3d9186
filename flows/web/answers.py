"""What the API answers, as its OpenAPI description has it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Prediction(BaseModel):
    """The answer for one image."""

    id: str | None = Field(description="What the request calls the image; otherwise, if predictions are logged, ours.")
    label: int = Field(description="Number of the class, from 0.")
    name: str = Field(description="Name of the class.")
    probability: float = Field(description="Of this class, by the model: over 0, at most 1.")
    version: int = Field(description="Number of the model that answered, the same in the whole answer.")
    probabilities: list[float] | None = Field(
        default=None, description="Of each class, if `probabilities=true` was asked for."
    )


class Predictions(BaseModel):
    """The answer to a request, in the order of its images."""

    dataset: str
    version: int
    predictions: list[Prediction]
    remarks: list[str] = Field(description="What is odd about the images, such as that they look inverted.")


class Refusal(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="What was expected, what was found, and what to do.")


class Champion(BaseModel):
    """A data set and the model that answers for it."""

    dataset: str
    version: int | None = Field(description="None before the first promotion.")
    since: str | None = Field(description="When it became champion, ISO 8601, UTC.")
    test_accuracy: float | None
    classes: list[str] | None
    image_shape: list[int] | None = Field(description="Height and width in pixels.")
    problem: str | None = Field(description="Why a newer champion could not be loaded.")


class LiveAccuracy(BaseModel):
    """How often a champion was right about logged images whose labels have come."""

    dataset: str
    version: int
    labelled: int = Field(description="Images that have an answer of this version in the log, and a label.")
    correct: int
    accuracy: float | None = Field(description="None without labels.")
    low: float = Field(description="Of the Wilson interval, 95 %.")
    high: float
    test_accuracy: float
    sentence: str


class Health(BaseModel):
    """Whether all is well."""

    status: str = Field(description="`ok`, or `degraded`: then what could be loaded before still answers.")
    problems: dict[str, str] | None = Field(default=None, description="A sentence for each data set.")
    champions: dict[str, int | None] | None = Field(default=None, description="The version that answers.")


_ARRAY = {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}}
_TEXT = {"type": "string", "format": "byte", "description": "A PNG or JPEG in base64."}
_IMAGE = {"oneOf": [_ARRAY, _TEXT]}
_BINARY = {"schema": {"type": "string", "format": "binary"}}

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image or several: a PNG, a JPEG, an array of NumPy (uint8, .npy), or JSON.",
        "content": {
            "image/png": _BINARY,
            "image/jpeg": _BINARY,
            "application/x-npy": _BINARY,
            "application/octet-stream": {**_BINARY, "description": "A .npy file, too."},
            "application/json": {
                "schema": {
                    "oneOf": [
                        {
                            "type": "object",
                            "properties": {
                                "images": {"type": "array", "items": _IMAGE},
                                "ids": {"type": "array", "items": {"type": "string"}},
                            },
                            "required": ["images"],
                        },
                        {
                            "type": "object",
                            "properties": {"image": _IMAGE, "id": {"type": "string"}},
                            "required": ["image"],
                        },
                        {"type": "array", "items": _IMAGE},
                    ]
                }
            },
        },
    }
}
"""The body of a request for predictions, for the description."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": why}
    for status, why in {
        400: "The images cannot be read or used.",
        401: "The token is missing or wrong.",
        404: "There is no such data set.",
        413: "The body, a picture or their number is over the limit.",
        415: "The type of the body is unknown.",
        422: "An option is wrong.",
        429: "Too many requests from one address.",
        503: "There is no champion yet, or too many requests wait.",
    }.items()
}
