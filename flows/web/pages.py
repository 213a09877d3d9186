"""The pages of `idxflow serve`, for people: made on the server, without a request to anywhere else."""

from __future__ import annotations

from html import escape
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse

from flows.web.served import Site, site_of

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index(site: Annotated[Site, Depends(site_of)]) -> HTMLResponse:
    """List the data sets."""
    rows = "".join(f"<li>{escape(name)}</li>" for name in site.champions.names)
    return HTMLResponse(f'<!doctype html><html lang="en"><title>idxflow</title><h1>idxflow</h1><ul>{rows}</ul></html>')
