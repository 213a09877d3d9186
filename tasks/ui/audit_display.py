"""Report the progress of an audit: to a listener always, to the Prefect UI from time to time."""

from __future__ import annotations

import math
import time

from tasks.ui import artifacts
from tasks.ui.epochs import SHOW_SECONDS
from tasks.ui.progress import Progress, advance


class AuditDisplay:
    """Shows how far the two parts of an audit are: networks fitted, pairs of images compared."""

    def __init__(self, dataset: str) -> None:
        self._bar = artifacts.ProgressBar(artifacts.key("audit", dataset), f"Audit of {dataset}")
        self._shown = -math.inf

    def fitted(self, epochs: int, total: int) -> None:
        """Show that so many epochs of all networks are done."""
        self._show(Progress("audit labels", epochs, total, "epochs"), f"Labels: epoch {epochs} of {total}")

    def compared(self, pairs: int, total: int) -> None:
        """Show that so many pairs of a test and a training image are compared."""
        words = f"Near-duplicates: {pairs:,} of {total:,} pairs"
        self._show(Progress("audit images", pairs, total, "pairs"), words)

    def _show(self, progress: Progress, words: str) -> None:
        advance(progress)
        now, total = time.monotonic(), progress.total or 1
        if progress.done >= total or now - self._shown >= SHOW_SECONDS:
            self._shown = now
            self._bar.move(100 * progress.done / total, words)
