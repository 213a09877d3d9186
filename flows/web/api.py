"""The API of `idxflow serve`, for programs."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from starlette.requests import ClientDisconnect

from flows import live
from flows.web import bodies, description
from flows.web.access import TRUSTED
from flows.web.answers import BODY, REFUSALS, Champion, Health, LiveAccuracy, Predictions
from flows.web.limits import RequestLimits
from flows.web.metrics import CONTENT_TYPE
from flows.web.pages.rendering import page
from flows.web.refusals import Refused
from flows.web.served import Site, followed, site_of
from storage.prediction_log import Answers
from tasks.serving import image_files
from tasks.serving.image_files import ImageOptions
from tasks.serving.predict import Model

router = APIRouter()

_CLOSE = {"connection": "close"}
"""After a body that was not read to its end: the rest of it would be taken for the next request."""

_OF_A_DATASET: dict[int | str, dict[str, Any]] = {status: REFUSALS[status] for status in (401, 404, 422, 429)}
"""How a question about a data set can be refused, for the description."""
_OF_A_CHAMPION = {**_OF_A_DATASET, 503: REFUSALS[503]}

TheSite = Annotated[Site, Depends(site_of)]


@dataclass(frozen=True)
class Wishes:
    """How a request wants its images changed first, and what it wants to know."""

    resize: bool
    scale: bool
    invert: bool
    probabilities: bool


async def wishes_of(
    resize: Annotated[bool, Query(description="Resize images of another size, with antialiasing.")] = False,
    scale: Annotated[bool, Query(description="Scale pixels of 0-255 to the range of the training data.")] = False,
    invert: Annotated[bool, Query(description="Invert the pixels (255 - x).")] = False,
    probabilities: Annotated[bool, Query(description="Answer with the probability of each class, too.")] = False,
) -> Wishes:
    """Return what a request wants. A coroutine, as `site_of` is."""
    return Wishes(resize, scale, invert, probabilities)


@router.post(
    "/v1/{dataset}/predict",
    summary="Classify images with the champion",
    response_model=Predictions,
    responses=REFUSALS,
    openapi_extra=BODY,
)
async def predict(
    request: Request, dataset: str, site: TheSite, wishes: Annotated[Wishes, Depends(wishes_of)]
) -> Response:
    """Classify one image or several; the answers are in their order, and all by one version.

    `curl -H 'Content-Type: image/png' --data-binary @digit.png http://127.0.0.1:4280/v1/mnist/predict`
    """
    model = champion(site, dataset)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await whole(request, site.limits)
    answer = await site.work.do(partial(_answered, site, model, _Asking(dataset, media_type, body, wishes)))
    return Response(answer, media_type="application/json")


@router.get(
    "/v1/{dataset}", summary="Show a data set and its champion", response_model=Champion, responses=_OF_A_DATASET
)
async def dataset_of(dataset: str, site: TheSite) -> dict[str, Any]:
    """Show the version that answers, its classes and the size of its images."""
    known = followed(site, dataset)
    version = known.model.version if known.model else None
    return {
        "dataset": dataset,
        "version": version.number if version else None,
        "since": known.since.isoformat(timespec="seconds") if known.since else None,
        "test_accuracy": version.test_accuracy if version else None,
        "classes": version.classes if version else None,
        "image_shape": version.image_shape if version else None,
        "problem": known.problem,
    }


@router.get(
    "/v1/{dataset}/live",
    summary="Show the accuracy on logged predictions whose labels have come",
    response_model=LiveAccuracy,
    responses=_OF_A_CHAMPION,
)
async def live_accuracy(dataset: str, site: TheSite) -> dict[str, Any]:
    """Show how often the champion was right, by the labels that `idxflow labels add` has joined by id."""
    found = await run_in_threadpool(live.of_champion, site.store, dataset, champion(site, dataset).version)
    return live.values(dataset, found)


@router.get(
    "/v1/{dataset}/mean.png",
    summary="The mean of the training images, as a picture to try",
    response_class=Response,
    responses=_OF_A_CHAMPION,
)
async def mean_image(dataset: str, site: TheSite) -> Response:
    """Return a PNG of the size that the model takes."""
    data = await site.work.do(partial(_mean_image, champion(site, dataset)))
    return Response(data, media_type="image/png")


@router.get("/healthz", summary="Show whether each champion is loaded", response_model_exclude_none=True)
async def health(request: Request, site: TheSite) -> Health:
    """Say `ok`, or `degraded` with a sentence for each problem; then the older champion still answers.

    Without the token of a site that has one, only the status.
    """
    problems = site.champions.problems()
    if site.log and site.log.problem:
        problems["log of predictions"] = site.log.problem
    status = "degraded" if problems else "ok"
    if not request.scope[TRUSTED]:
        return Health(status=status)
    models = {name: site.champions.followed(name).model for name in site.champions.names}
    versions = {name: model.version.number if model else None for name, model in models.items()}
    return Health(status=status, problems=problems, champions=versions)


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def metrics(site: TheSite) -> Response:
    """Return the metrics in Prometheus's text format; their names begin with `idxflow_`."""
    return Response(await run_in_threadpool(site.metrics.text), headers={"content-type": CONTENT_TYPE})


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Show what /openapi.json says, without a request to elsewhere."""
    described = request.app.openapi()
    about = described["info"]["description"]
    return page(request, "api", {"about": about, "content": description.content(described)})


@dataclass(frozen=True)
class _Asking:
    dataset: str
    media_type: str
    body: bytes
    wishes: Wishes


def _mean_image(model: Model) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(model.mean_image.round().astype("uint8")).save(buffer, "PNG")
    return buffer.getvalue()


def champion(site: Site, dataset: str) -> Model:
    """Return the model that answers now. Take it once for an answer.

    Raises:
        Refused: 404 if there is no such data set, 503 if it has no champion that can be used.
    """
    known = followed(site, dataset)
    if known.model is None:
        command = site.store.command(f"run {dataset}")
        sentence = known.problem or f"expected a champion of {dataset}; found none yet; `{command}` makes one"
        raise Refused(503, sentence, {"retry-after": "10"})
    return known.model


async def whole(request: Request, limits: RequestLimits) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: 413 if it is too large, 408 if it comes too slowly, 400 if the client has gone.
    """
    # Said before it is sent: then nothing of it needs to be read.
    said = request.headers.get("content-length", "0")
    parts, size = list[bytes](), int(said) if said.isdecimal() else 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            _check_size(size, limits)
            size = 0
            async for part in request.stream():
                size += len(part)
                _check_size(size, limits)
                parts.append(part)
    except TimeoutError:
        raise Refused(
            408,
            f"expected the whole body within {limits.body_seconds:g} s; found {size:,} bytes; send it faster",
            _CLOSE,
        ) from None
    except ClientDisconnect:
        # Nobody reads it: it is for the metrics, and instead of a traceback in the log.
        raise Refused(
            400, f"expected the whole body; found {size:,} bytes and no more; send it again", _CLOSE
        ) from None
    return b"".join(parts)


def _check_size(size: int, limits: RequestLimits) -> None:
    if size > limits.body_bytes:
        raise Refused(
            413,
            f"expected a body of at most {limits.body_bytes:,} bytes; found more; send the images in several requests",
            _CLOSE,
        )


def _answered(site: Site, model: Model, asking: _Asking) -> bytes:
    """Return the answer, JSON, to a request; called in the thread that computes."""
    wishes, remarks = asking.wishes, list[str]()
    options = ImageOptions(
        model.image_shape, model.pixel_range, wishes.resize, wishes.scale, wishes.invert, spelling="?{}=true"
    )

    def say(remark: str) -> None:
        if remark not in remarks:
            remarks.append(remark)

    asked = bodies.read(asking.media_type, asking.body, options, site.limits, say)
    inverted = int(model.looks_inverted(asked.images).sum())
    if remark := image_files.if_inverted("the body", inverted, len(asked.images), options):
        say(remark)
    found = model.predict(asked.images)
    site.metrics.predicted(asking.dataset, found.version, found.name)
    ids = asked.ids
    if site.log:
        ids = ids or _new_ids(len(found))
        site.log.add(
            asking.dataset,
            Answers(ids, datetime.now(UTC), asked.images, found.label, found.probability, found.version),
        )
    answers: list[dict[str, Any]] = [
        {"id": given, "label": label, "name": name, "probability": probability, "version": found.version}
        for given, label, name, probability in zip(
            ids or (None,) * len(found), found.label.tolist(), found.name, found.probability.tolist(), strict=True
        )
    ]
    if wishes.probabilities:
        for answer, row in zip(answers, found.probabilities.tolist(), strict=True):
            answer["probabilities"] = row
    content = {"dataset": asking.dataset, "version": found.version, "predictions": answers, "remarks": remarks}
    return json.dumps(content, ensure_ascii=False).encode()


def _new_ids(count: int) -> tuple[str, ...]:
    """Return ids that nobody else has."""
    request = secrets.token_hex(8)
    return (request,) if count == 1 else tuple(f"{request}-{row}" for row in range(count))
