"""The API of `idxflow serve`, for programs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from flows.web.access import TRUSTED
from flows.web.site import Site, site_of

router = APIRouter()


@router.get("/healthz", summary="Whether each champion is loaded")
async def health(request: Request, site: Annotated[Site, Depends(site_of)]) -> dict[str, Any]:
    """Say `ok`, or `degraded` with a sentence for each problem; then the older champion still answers.

    Without the token of a site that has one, only the status.
    """
    problems = site.champions.problems()
    if not request.scope[TRUSTED]:
        return {"status": "degraded" if problems else "ok"}
    champions = {name: site.champions.followed(name).model for name in site.champions.names}
    return {
        "status": "degraded" if problems else "ok",
        "problems": problems,
        "champions": {name: model.version.number if model else None for name, model in champions.items()},
    }
