"""Show in the Prefect UI how many parts of a step are done."""

from __future__ import annotations

import math
import threading
import time

from tasks.ui import artifacts
from tasks.ui.epochs import SHOW_SECONDS
from tasks.ui.progress import Progress


class PartsDisplay:
    """A listener that shows the progress of work in parts as artifacts, each at most once per `SHOW_SECONDS`."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._turn = threading.Lock()
        self._bars: dict[str, tuple[artifacts.ProgressBar, float]] = {}

    def __call__(self, step: Progress) -> None:
        """Show progress that counts parts, and no other."""
        if step.unit != "parts" or not step.total:
            return
        name, now = artifacts.key(step.name, self._dataset), time.monotonic()
        # Two splits are decoded at once.
        with self._turn:
            if step.name not in self._bars:
                bar = artifacts.ProgressBar(name, f"{step.name} of {self._dataset}")
                self._bars[step.name] = (bar, -math.inf)
            bar, shown = self._bars[step.name]
            is_due = step.done >= step.total or now - shown >= SHOW_SECONDS
            if is_due:
                self._bars[step.name] = (bar, now)
        if is_due:
            bar.move(100 * step.done / step.total, f"{step.name}: {step.note}")
