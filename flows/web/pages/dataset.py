"""The page `/DATASET/`: all of one data set: its runs, versions, decisions and drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from flows.champions import decision_values
from flows.dataset_in_store import DatasetInStore
from flows.health import run_status, time_of
from flows.web.pages.overview import summary
from flows.web.pages.rendering import page
from flows.web.refusals import Refused
from flows.web.served import Site, followed, site_of
from storage.drifts import Drifts
from storage.errors import IdxflowError
from storage.registry import NO_RUN

router = APIRouter()
T = TypeVar("T")

AT_ONCE = 20
"""Rows of a table on a page."""

Number = Annotated[int, Query(ge=1, le=1_000_000, description="Page, from 1, the newest.")]


@dataclass(frozen=True)
class Numbers:
    """Which page of each table is shown."""

    runs: Number = 1
    decisions: Number = 1
    versions: Number = 1
    drift: Number = 1


@dataclass(frozen=True)
class Part(Generic[T]):
    """A page of a table, newest first."""

    rows: list[T]
    number: int
    """Of the page, from 1."""
    total: int
    """Rows of all pages."""

    @property
    def last(self) -> int:
        """Number of the last page."""
        return max(1, -(-self.total // AT_ONCE))

    @property
    def first_row(self) -> int:
        return (self.number - 1) * AT_ONCE + 1


@router.get("/{dataset}")
async def without_slash(dataset: str, site: Annotated[Site, Depends(site_of)]) -> Response:
    """Lead to the page, whose links are relative."""
    if dataset not in site.champions.names:
        raise HTTPException(404)
    return RedirectResponse(f"{quote(dataset, safe='')}/", 307)


@router.get("/{dataset}/")
async def show(
    request: Request,
    dataset: str,
    site: Annotated[Site, Depends(site_of)],
    numbers: Annotated[Numbers, Depends()],
) -> HTMLResponse:
    """Show a data set."""
    followed(site, dataset)
    values = await site.pages.work.do(partial(_values, site, dataset, numbers))
    return page(request, "dataset", values)


def _values(site: Site, name: str, numbers: Numbers) -> dict[str, Any]:
    data, due, now = site.pages.data(name), site.pages.schedule.known(), datetime.now(UTC)
    drifts = Drifts(site.store, name)
    try:
        shown = {
            "runs": part([*reversed(data.ledger.names("runs"))], numbers.runs, partial(_run, data)),
            "decisions": part([*reversed(data.registry.outline())], numbers.decisions, partial(_decision, data)),
            "versions": part([*reversed(data.registry.numbers())], numbers.versions, partial(_version, data)),
            "drift": part([*reversed(drifts.numbers())], numbers.drift, drifts.values),
        }
    except (IdxflowError, OSError) as error:
        raise Refused(503, str(error)) from error
    return {
        "store": site.store.address,
        "dataset": name,
        "summary": summary(site, name, due, now),
        "unknown": due.unknown,
        "now": now,
        "numbers": asdict(numbers),
        **shown,
    }


def part(rows: Sequence[T], number: int, values: Callable[[T], dict[str, Any]]) -> Part[dict[str, Any]]:
    """Return a page of a table; the last one if `number` is higher.

    Args:
        rows: what each row is made of, newest first.
        values: makes the values of a row; only called for those that are shown.
    """
    number = min(number, max(1, -(-len(rows) // AT_ONCE)))
    shown = rows[(number - 1) * AT_ONCE : number * AT_ONCE]
    return Part([values(row) for row in shown], number, len(rows))


def _run(data: DatasetInStore, name: str) -> dict[str, Any]:
    record = data.ledger.record("runs", name)
    status = run_status(record)
    return {
        "run": status.run,
        "time": time_of(status),
        "state": status.state,
        "sentence": status.sentence,
        "version": record.get("version"),
        "accuracy": accuracy if isinstance(accuracy := record.get("test_accuracy"), float) else None,
        "seconds": status.seconds,
        "asked_by": record.get("asked_by") or "unknown",
    }


def _decision(data: DatasetInStore, turn: Any) -> dict[str, Any]:
    values = decision_values(data, data.registry.whole(turn))
    return {**values, "by_hand": values["run"] == NO_RUN, "asked_by": values["asked_by"] or "unknown"}


def _version(data: DatasetInStore, number: int) -> dict[str, Any]:
    version, champion = data.registry.version(number), data.registry.champion()
    return {
        "number": number,
        "time": version.time,
        "run": version.run,
        "accuracy": version.test_accuracy,
        "train_accuracy": version.train_accuracy,
        "champion": champion is not None and champion.number == number,
        "collected": data.registry.retired(version),
    }
