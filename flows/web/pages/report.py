"""The page `/DATASET/runs/RUN`: the report of a run, as published, or rebuilt from what is left."""

from __future__ import annotations

from functools import partial
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from flows.reports import original_of, report_of
from flows.web.refusals import Refused
from flows.web.served import Site, followed, site_of
from storage.errors import ConfigError
from storage.records import HTML

router = APIRouter()

HEADERS = {
    # Its styles and pictures are in the file. Whatever else may have got into it does nothing.
    "content-security-policy": (
        "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    # A browser refuses a page that is in a sandbox and asks for this isolation, too (HTML, 7.4.5).
    "cross-origin-opener-policy": "unsafe-none",
    "cache-control": "no-store",
}


@router.get("/{dataset}/runs/{run}")
async def report(dataset: str, run: str, site: Annotated[Site, Depends(site_of)]) -> Response:
    """Show the report of a run: an id, the beginning of one, `latest`, or `champion` for the one that made it."""
    followed(site, dataset)
    return await site.pages.work.do(partial(_report, site, dataset, run))


def _report(site: Site, dataset: str, run: str) -> Response:
    data = site.pages.data(dataset)
    try:
        record = data.run(run)
    except ConfigError as error:
        raise Refused(404, str(error)) from error
    name = original_of(record) or str(record["run"])
    if name != run:
        return RedirectResponse(quote(name, safe=""), 307)
    with data.store.in_use(dataset):
        return HTMLResponse(report_of(data, record, (HTML,)).html(), headers=HEADERS)
