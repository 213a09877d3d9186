"""What all routes share: the store that is served, its champions, limits, and how a request is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from fastapi import Request

from flows.service.guard import Rules
from flows.web.champions import Champions, Followed
from flows.web.limits import RequestLimits
from flows.web.metrics import Metrics
from flows.web.pages.state import State
from flows.web.refusals import Refused
from flows.web.work import Work
from storage.prediction_log import PredictionLog
from storage.store import Store

JSON_TYPE = "application/json"
NPY_TYPES = ("application/x-npy", "application/octet-stream")
PICTURE_TYPES = ("image/png", "image/jpeg")
FORM_TYPE = "multipart/form-data"
"""Only of the form of a page. Another site's page can send it, too, but not without its origin, which is refused."""
MEDIA_TYPES = frozenset((JSON_TYPE, *NPY_TYPES, *PICTURE_TYPES, FORM_TYPE))
"""What the body of a request can be."""


def rules(host: str, names: tuple[str, ...] = ()) -> Rules:
    """Return which `Host`, origin and content types are accepted by a site that listens on `host`."""
    listening = Rules.listening(host, names)
    return Rules(
        listening.names, listening.any_address, listening.origins, MEDIA_TYPES, closed=(), command="idxflow serve"
    )


@dataclass(frozen=True)
class Site:
    """One store, as it is served."""

    store: Store
    """Opened (`storage.opening.open_store`)."""
    datasets: tuple[str, ...] = ()
    """The only data sets that are served; empty: all of the store, those that come later, too."""
    token: str | None = None
    """What each request has to know; None: nothing."""
    rules: Rules = field(default_factory=lambda: rules("127.0.0.1"))
    limits: RequestLimits = field(default_factory=RequestLimits)

    log: PredictionLog | None = None
    """Where predictions are kept; None: nowhere. `application` starts and stops its thread."""

    @cached_property
    def champions(self) -> Champions:
        """The champions, loaded. `application` starts and stops the thread that follows them."""
        return Champions(self.store, self.datasets)

    @cached_property
    def metrics(self) -> Metrics:
        """What is counted, for `/metrics`."""
        return Metrics(self)

    @cached_property
    def work(self) -> Work:
        """The thread that computes answers; anything that takes longer than a millisecond belongs there."""
        return Work(self.limits.waiting)

    @cached_property
    def pages(self) -> State:
        """What the pages for people keep."""
        return State(self.store)


async def site_of(request: Request) -> Site:
    """Return the site; for `Depends`. A coroutine, because FastAPI calls any other function in a thread."""
    site: Site = request.app.state.site
    return site


def followed(site: Site, dataset: str) -> Followed:
    """Return what is known of a data set's champion.

    Raises:
        Refused: 404 if there is no such data set.
    """
    try:
        return site.champions.followed(dataset)
    except KeyError:
        raise Refused(404, site.champions.unknown(dataset)) from None
