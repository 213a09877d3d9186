"""The style sheets and the script of the pages. `_site` cannot be the name of a data set."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from tasks.report.rendering import TEMPLATES

router = APIRouter()

_OWN = Path(__file__).parent.parent / "static"
FILES = {
    # The pages look like the reports.
    "report.css": (TEMPLATES / "report.css", "text/css"),
    "site.css": (_OWN / "site.css", "text/css"),
    "draw.js": (_OWN / "draw.js", "text/javascript"),
}


@router.get("/_site/{name}")
async def file(name: str) -> FileResponse:
    """Return a file of the pages."""
    if name not in FILES:
        raise HTTPException(404)
    path, media_type = FILES[name]
    # A newer version may have others: a browser asks whether they have changed.
    return FileResponse(path, media_type=media_type, headers={"cache-control": "no-cache"})
