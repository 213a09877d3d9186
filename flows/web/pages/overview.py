"""The page `/`: how every data set is doing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from flows.health import MAX_AGE_DAYS, Health, health_of
from flows.web.pages.rendering import page
from flows.web.pages.schedule import Due
from flows.web.served import Site, site_of
from storage.errors import IdxflowError
from tasks.report.trend import past_run

router = APIRouter()


@dataclass(frozen=True)
class Summary:
    """How a data set is doing, as the pages show it."""

    name: str
    health: Health | None = None
    """None if it cannot be read."""
    interval: tuple[float, float] | None = None
    """Of the champion's test accuracy, 95 %; None if its run is not known any more."""
    trend: Markup | None = None
    """A picture of the last runs, SVG."""
    problems: tuple[str, ...] = ()
    """What needs attention, in sentences: those of `idxflow status`, and why the newest champion does not answer."""


@router.get("/")
async def index(request: Request, site: Annotated[Site, Depends(site_of)]) -> HTMLResponse:
    """Show how every data set is doing."""
    return page(request, "overview", await site.pages.work.do(partial(_values, site)))


def _values(site: Site) -> dict[str, Any]:
    due, now = site.pages.schedule.known(), datetime.now(UTC)
    return {
        "store": site.store.address,
        "run": site.store.command("run"),
        "summaries": [summary(site, name, due, now) for name in site.champions.names],
        "unknown": due.unknown,
        "now": now,
    }


def summary(site: Site, name: str, due: Due, now: datetime) -> Summary:
    """Return how a data set is doing; if it cannot be read, why. For the thread of the pages."""
    try:
        data = site.pages.data(name)
        health = health_of(data.registry, due.times.get(name), timedelta(days=MAX_AGE_DAYS), now)
        champion = data.registry.champion()
        record = data.ledger.find("runs", champion.run) if champion else None
        run = past_run(record) if record else None
        interval = (run["low"], run["high"]) if run and run["low"] is not None else None
        not_loaded = site.champions.followed(name).problem
        problems = (*health.problems, *([not_loaded] if not_loaded else []))
        return Summary(name, health, interval, site.pages.trend(name), problems)
    except (IdxflowError, OSError) as error:
        return Summary(name, problems=(str(error),))
