"""What a run shows in the Prefect UI besides its log.

It is a view of what the store holds. So outside of a run nothing is shown, and a Prefect API that does not answer
is a warning, not the end of a run. Nor may it hold one up: Prefect tries each request again for half a minute, and a
training asks every second. So once it could not be reached, it is left alone for a while.
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

# Prefect: left-alone.
QUIET_SECONDS = 300
"""How long nothing is shown after the Prefect API could not be reached."""

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
    """Publish `rows` as the table artifact `name`; values should be texts or rounded numbers.

    Prefect's page takes each text of a table for Markdown with HTML in it, as it does a description: the name of a
    class could load a picture from anywhere. So texts are escaped.
    """
    from prefect.artifacts import create_table_artifact

    table = [
        {column: escaped(value) if isinstance(value, str) else value for column, value in row.items()} for row in rows
    ]
    _show(create_table_artifact, key=name, table=table, description=description)


def reachable() -> bool:
    """Tell whether the Prefect API is worth asking: it could be reached the last time."""
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
        # Whatever the client raises: there are more kinds than it documents.
        _log.warning("not shown in the Prefect UI: %s: %s", type(error).__name__, error)
        # A server that answers, if only that it is busy, is there, and is asked again.
        if not isinstance(error, httpx.HTTPStatusError):
            _silent_until = time.monotonic() + QUIET_SECONDS
        return None
