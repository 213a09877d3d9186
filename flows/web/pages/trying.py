"""The page `/DATASET/try`: draw or choose a picture, and see the champion's answer with the nearest training images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from PIL import Image

from flows.web.api import champion, whole
from flows.web.pages import forms
from flows.web.pages.rendering import page, refused
from flows.web.pages.state import Training
from flows.web.refusals import Refused
from flows.web.served import Site, followed, site_of
from storage.errors import FormatError, IdxflowError
from tasks.report.figures import data_uri
from tasks.serving import drawing, image_files, picture
from tasks.serving.drawing import Usual
from tasks.serving.image_files import ImageOptions
from tasks.serving.nearest import Near
from tasks.serving.predict import Model, Predictions

router = APIRouter()

NEAREST = 8
_PICTURE = "the picture"


@dataclass(frozen=True)
class _Seen:
    """What the champion saw, and its answer."""

    image: np.ndarray
    """uint8 of shape (height, width)."""
    said: tuple[str, ...]
    """How the picture was changed, in sentences."""
    predictions: Predictions


@router.get("/{dataset}/try")
async def form(request: Request, dataset: str, site: Annotated[Site, Depends(site_of)]) -> HTMLResponse:
    """Show the form."""
    model = followed(site, dataset).model
    return page(request, "try", _values(dataset, model))


@router.post("/{dataset}/try")
async def tried(request: Request, dataset: str, site: Annotated[Site, Depends(site_of)]) -> HTMLResponse:
    """Show the answer for a picture, on the same page."""
    followed(site, dataset)
    model = None
    try:
        model = champion(site, dataset)
        body = await whole(request, site.limits)
        return page(request, "try", await _answer(site, model, request.headers.get("content-type", ""), body))
    except Refused as error:
        if model is None or error.headers:
            return refused(request, error.status, error.sentence, error.headers)
        return page(request, "try", {**_values(dataset, model), "problem": error.sentence}, error.status)


async def _answer(site: Site, model: Model, content_type: str, body: bytes) -> dict[str, Any]:
    sent = await site.pages.work.do(partial(forms.read, content_type, body))
    known, lost = await site.pages.work.do(partial(_training, site, model))
    like = known.usual if known and "fit" in sent.fields else None
    # Pillow's warnings can be caught by one thread only, which is that of the API.
    seen = await site.work.do(partial(_see, site, model, sent.files.get("picture", b""), like))
    near = await site.pages.work.do(partial(known.rows.nearest, seen.image, NEAREST)) if known else []
    return {
        **_values(model.version.dataset, model),
        "fit": "fit" in sent.fields,
        "answer": _shown(model, seen),
        "near": [_shown_near(model, one) for one in near],
        "known": {"rows": len(known.rows.rows), "total": known.rows.total} if known else None,
        "lost": lost,
    }


def _training(site: Site, model: Model) -> tuple[Training | None, str]:
    """Return the training images, or why there are none."""
    try:
        with site.store.in_use(model.version.dataset):
            found = site.pages.training(model)
        return found, "" if found else "the store has the images that this version was trained on no more"
    except (IdxflowError, OSError) as error:
        return None, str(error)


def _see(site: Site, model: Model, data: bytes, like: Usual | None) -> _Seen:
    """Return what the champion sees in a picture, and its answer."""
    said = list[str]()
    try:
        image = _image(site, model, data, like, said.append)
    except FormatError as error:
        raise Refused(400, str(error)) from error
    return _Seen(image, tuple(said), model.predict(image))


def _image(site: Site, model: Model, data: bytes, like: Usual | None, say: image_files.Say) -> np.ndarray:
    if not data:
        raise FormatError("expected a picture, a PNG or JPEG; found none; draw one, or choose a file")
    found = picture.read(data, _PICTURE, ("PNG", "JPEG"), site.limits.pixels)
    height, width = model.image_shape
    if like:
        fitted = drawing.fitted(found.pixels, like)
        say(
            f"What is drawn was cut out, scaled to a longer side of {like.box} pixels, and put into {height}×{width} "
            f"pixels with its centre of mass where the training images have theirs"
            f"{', and inverted to their colours' if fitted.inverted else ''}."
        )
        return fitted.image
    if found.pixels.shape != model.image_shape:
        say(f"The whole picture was resized to {height}×{width} pixels.")
    options = ImageOptions(model.image_shape, model.pixel_range, resize=True, scale=True)
    images = image_files.prepared(_PICTURE, found.pixels, options, lambda _: None)
    if model.looks_inverted(images)[0]:
        low, high = model.pixel_range
        say("It was inverted, because it looked like the inverse of the training images.")
        images = (low + high - images.astype(np.int64)).clip(0, 255).astype(np.uint8)
    image: np.ndarray = images[0]
    return image


def _values(dataset: str, model: Model | None) -> dict[str, Any]:
    """Return the values of the page without an answer."""
    height, width = model.image_shape if model else (1, 1)
    return {
        "dataset": dataset,
        "version": model.version.number if model else None,
        "height": height,
        "width": width,
        "fit": True,
        "problem": "",
        "answer": None,
        "near": [],
        "known": None,
        "lost": "",
    }


def _shown(model: Model, seen: _Seen) -> dict[str, Any]:
    found = seen.predictions
    probabilities = found.probabilities[0].tolist()
    return {
        "name": found.name[0],
        "probability": float(found.probability[0]),
        "image": png(seen.image, model.pixel_range),
        "said": seen.said,
        "classes": [
            {"name": name, "probability": value, "best": number == int(found.label[0])}
            for number, (name, value) in enumerate(zip(model.classes, probabilities, strict=True))
        ],
    }


def _shown_near(model: Model, near: Near) -> dict[str, Any]:
    name = model.classes[near.label] if near.label < len(model.classes) else str(near.label)
    return {"name": name, "row": near.row, "distance": near.distance, "image": png(near.image, model.pixel_range)}


def png(image: np.ndarray, pixel_range: tuple[int, int]) -> str:
    """Return an image, uint8 of shape (height, width), as the `data:` address of a PNG.

    Args:
        pixel_range: what is shown as black and as white; the pixels of some data sets end at 16.
    """
    low, high = pixel_range
    shown = np.clip((image.astype(np.float64) - low) * 255 / max(1, high - low), 0, 255)
    stream = io.BytesIO()
    Image.fromarray(np.rint(shown).astype(np.uint8)).save(stream, "PNG")
    return data_uri(stream.getvalue(), "image/png")
