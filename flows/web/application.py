"""The application of `idxflow serve`: its routes, behind the guard (`flows.service.guard`) and the token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from flows.service.guard import Guard
from flows.web import access, api
from flows.web.metrics import Measured
from flows.web.pages import rendering, routes
from flows.web.refusals import Refused, refused
from flows.web.served import Site
from storage.errors import IdxflowError

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""For pages that do not set one: everything from here, and nothing in the page itself that could be injected."""


def application(site: Site) -> FastAPI:
    """Return the ASGI application that serves a store."""
    app = FastAPI(
        title="idxflow",
        version=version("idxflow"),
        description="Classify images with the champion of a data set.",
        lifespan=_lifespan,
        # FastAPI's own pages load from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.state.site = site
    # Only for the description; `Token` is what refuses.
    app.include_router(api.router, dependencies=[Security(HTTPBearer(auto_error=False))] if site.token else [])
    app.include_router(routes.router)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(IdxflowError, _unreadable)
    # The last one that is added is the outermost.
    app.add_middleware(access.Token, token=site.token)
    app.add_middleware(access.Pace, per_second=site.limits.requests_per_second)
    app.add_middleware(Guard, rules=site.rules, own={}, key="error", policy=POLICY)
    app.add_middleware(Measured, metrics=site.metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    site: Site = app.state.site
    site.pages.start()
    await run_in_threadpool(site.champions.start)
    if site.log:
        site.log.start()
    try:
        yield
    finally:
        site.champions.stop()
        site.work.stop()
        site.pages.work.stop()
        if site.log:
            await run_in_threadpool(site.log.stop)


def _refused(request: Request, error: Any) -> Response:
    if rendering.wanted(request):
        return rendering.refused(request, error.status, error.sentence, error.headers)
    return refused(error.status, error.sentence, error.headers)


def _unreadable(request: Request, error: Any) -> Response:
    # Such as a damaged file of the store: its sentence names it, and what to do.
    return _refused(request, Refused(503, str(error)))


def _invalid(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    where, found = ".".join(map(str, first["loc"][1:])), str(first.get("input"))[:100]
    sentence = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}; found {found!r}; correct it"
    return _refused(request, Refused(422, sentence))


def _http_error(request: Request, error: Any) -> Response:
    sentences = {
        404: f"expected an address that is served here; found {request.url.path[:100]!r}; / has the links",
        405: f"expected another method; found {request.method} {request.url.path[:100]!r}; see /openapi.json",
    }
    sentence = sentences.get(error.status_code, str(error.detail))
    return _refused(request, Refused(error.status_code, sentence, error.headers))
