"""Show the artifacts of a run in the Prefect UI.

Artifacts are only a view of the store. So nothing is shown outside of a run, and an unreachable Prefect API causes a
warning, not a failure. It must not delay a run either: Prefect retries each request for half a minute, and a training
makes one every second. So after a failed request, the API is not used for a while.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from tasks.ui.markdown import escaped

SITE_VARIABLE = "IDXFLOW_SITE"
"""Environment variable with the address of the pages (`idxflow serve`), to which artifacts link."""
# Prefect: left-alone.
QUIET_SECONDS = 300
"""How long nothing is shown after a failure to reach the Prefect API."""

_log = logging.getLogger(__name__)
_silent_until = -math.inf


def key(*parts: str) -> str:
    """Return a stable artifact key; Prefect allows only `a-z`, `0-9` and `-`."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def show_markdown(name: str, text: str, description: str) -> None:
    """Publish `text` as the markdown artifact `name`."""
    from prefect.artifacts import create_markdown_artifact

    _show(create_markdown_artifact, key=name, markdown=text, description=description)


def show_table(name: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Publish `rows` as the table artifact `name`; values should be strings or rounded numbers.

    Prefect's page renders each string in a table as Markdown with HTML, as it does a description: the name of a class
    could load a picture from anywhere. So strings are escaped.
    """
    from prefect.artifacts import create_table_artifact

    table = [
        {column: escaped(value) if isinstance(value, str) else value for column, value in row.items()} for row in rows
    ]
    _show(create_table_artifact, key=name, table=table, description=description)


def show_link(name: str, url: str, text: str, description: str) -> None:
    """Publish the link artifact `name`, which leads from `text` to `url`."""
    from prefect.artifacts import create_link_artifact

    _show(create_link_artifact, key=name, link=url, link_text=escaped(text), description=description)


def reachable() -> bool:
    """Tell whether the Prefect API is worth calling: no recent request failed to reach it."""
    return time.monotonic() >= _silent_until


class ProgressBar:
    """A progress artifact that moves while a task runs."""

    def __init__(self, name: str, description: str) -> None:
        from prefect.artifacts import create_progress_artifact

        self._id = _show(create_progress_artifact, progress=0.0, key=name, description=description)

    def move(self, percent: float, description: str) -> None:
        """Set the bar to `percent` (0-100)."""
        if self._id:
            from prefect.artifacts import update_progress_artifact

            _show(update_progress_artifact, artifact_id=self._id, progress=percent, description=description)


def _show(call: Callable[..., Any], description: str, **arguments: Any) -> Any:
    from prefect.context import FlowRunContext, TaskRunContext

    global _silent_until
    if not (FlowRunContext.get() or TaskRunContext.get()) or not reachable():
        return None
    try:
        return call(description=escaped(description), **arguments)
    except Exception as error:
        # Any exception: the client raises more kinds than it documents.
        _log.warning("not shown in the Prefect UI: %s: %s", type(error).__name__, error)
        # A server that responds, even only that it is busy, is reachable, so it is called again.
        if not isinstance(error, httpx.HTTPStatusError):
            _silent_until = time.monotonic() + QUIET_SECONDS
        return None
