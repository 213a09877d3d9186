"""What a run shows in the Prefect UI besides its log. Outside of a run, nothing is shown and nothing fails."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

_log = logging.getLogger(__name__)


def key(*parts: str) -> str:
    """Return a stable artifact key; Prefect allows only `a-z`, `0-9` and `-`."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def show_markdown(name: str, text: str, description: str) -> None:
    """Publish `text` as the markdown artifact `name`."""
    if _in_run():
        from prefect.artifacts import create_markdown_artifact

        create_markdown_artifact(key=name, markdown=text, description=description)


def show_table(name: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Publish `rows` as the table artifact `name`; values should be texts or rounded numbers."""
    if _in_run():
        from prefect.artifacts import create_table_artifact

        create_table_artifact(key=name, table=[dict(row) for row in rows], description=description)


class ProgressBar:
    """A progress artifact that moves while a task runs."""

    def __init__(self, name: str, description: str) -> None:
        self._id: UUID | None = None
        if _in_run():
            from prefect.artifacts import create_progress_artifact

            self._id = create_progress_artifact(progress=0.0, key=name, description=description)  # type: ignore[assignment]

    def move(self, percent: float, description: str) -> None:
        """Set the bar to `percent` (0-100)."""
        if self._id:
            from prefect.artifacts import update_progress_artifact

            update_progress_artifact(self._id, progress=percent, description=description)


def _in_run() -> bool:
    from prefect.context import FlowRunContext, TaskRunContext

    return bool(FlowRunContext.get() or TaskRunContext.get())
