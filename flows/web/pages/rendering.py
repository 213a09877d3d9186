"""Renders the templates of the pages. Every text is escaped, and control characters are replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup, escape

from flows.health import BAD, ago, span_text
from flows.terminal.text import minute
from storage.words import counted
from tasks.report.phrases import duration
from tasks.report.rendering import percent
from tasks.report.sanitize import presentable

_TEMPLATES = Path(__file__).parent.parent / "templates"
_CODE = re.compile(r"`([^`]+)`")
_HEADERS = {
    "cache-control": "no-store",
    # The forms of the pages send their origin, by which the guard knows them.
    "referrer-policy": "same-origin",
}


def page(request: Request, name: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """Return the page that the template `name` makes of `values`."""
    # Relative, so that a proxy can serve the site below a path of its own.
    root = "../" * (request.url.path.count("/") - 1) or "./"
    text = _engine().get_template(f"{name}.html.j2").render(root=root, **values)
    return HTMLResponse(text, status, _HEADERS)


def wanted(request: Request) -> bool:
    """Tell whether a client shows pages: a browser names their type, a program seldom does."""
    return "text/html" in request.headers.get("accept", "")


def refused(request: Request, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> HTMLResponse:
    """Return a page that says why there is no other."""
    answer = page(request, "refused", {"status": status, "sentence": sentence}, status)
    answer.headers.update(headers or {})
    return answer


@cache
def _engine() -> jinja2.Environment:
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_presentable,
    )
    engine.filters |= {
        "percent": percent,
        "duration": duration,
        "moment": _moment,
        "ago": _ago,
        "until": _until,
        "counted": counted,
        "count": lambda value: f"{value:,}",
        "badge": _badge,
        "coded": coded,
        # The badge beside it shows that.
        "after_verdict": lambda sentence: sentence.removeprefix("drifted: "),
    }
    return engine


def coded(text: str) -> Markup:
    """Return a text as HTML, with code for what stands between backticks, as commands do in messages."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(presentable(text)))))


def _presentable(value: Any) -> Any:
    return presentable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _moment(time: datetime | str | None) -> str:
    """Return a time as `2026-05-01 09:30 UTC`; ISO 8601 texts, too."""
    try:
        return minute(time if isinstance(time, datetime) else datetime.fromisoformat(str(time)))
    except ValueError:
        return "unknown"


def _ago(time: str, now: datetime) -> str:
    try:
        return ago(now - datetime.fromisoformat(time))
    except (ValueError, TypeError):
        return "unknown"


def _until(time: str, now: datetime) -> str:
    due = datetime.fromisoformat(time)
    return "late" if due < now else f"in {span_text(max(timedelta(), due - now))}"


def _badge(state: str) -> str:
    """Return the class of the badge of a run's state or a decision's outcome."""
    if state in BAD or state == "rolled back":
        return "bad" if state in ("failed", "crashed") else "warn"
    return "good" if state in ("promoted", "forced") else ""
