"""Report the progress of a training: every epoch to a listener, some of them to the log and the Prefect UI."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from storage.records import Epoch
from tasks.ui import artifacts
from tasks.ui.progress import Progress, advance, listening

SHOW_SECONDS = 1.0
"""Minimum time between two log lines about epochs, and between two moves of a bar."""
EPOCHS = "epochs"

_log = logging.getLogger(__name__)


@contextmanager
def shown(dataset: str) -> Iterator[None]:
    """Show the epochs that the block tells of in the Prefect UI, at most one per `SHOW_SECONDS`.

    The training itself may be on a worker, which has no connection to Prefect.
    """
    bar: artifacts.ProgressBar | None = None
    at, last = -math.inf, ""

    def show(step: Progress) -> None:
        nonlocal bar, at, last
        if step.unit != EPOCHS or not step.total:
            return
        bar = bar or artifacts.ProgressBar(artifacts.key("train", dataset), f"Training on {dataset}")
        last = f"Epoch {step.done:g} of {step.total:g}: {step.note}"
        if time.monotonic() - at >= SHOW_SECONDS:
            at = time.monotonic()
            bar.move(100 * step.done / step.total, last)

    with listening(show):
        yield
    if bar:
        bar.move(100.0, last)


class EpochDisplay:
    """Shows every epoch to a listener, and at most one per `SHOW_SECONDS` in the log."""

    def __init__(self, dataset: str, epochs: int) -> None:
        self._name, self._total = dataset, epochs
        self._shown = -math.inf

    def __call__(self, epoch: Epoch, is_last: bool) -> None:
        """Show a completed epoch."""
        words = f"loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.2%}"
        if epoch.validation_accuracy is not None:
            words += f"; held out {epoch.validation_loss:.4f}, {epoch.validation_accuracy:.2%}"
        advance(Progress("train", epoch.epoch, self._total, EPOCHS, words))
        now = time.monotonic()
        if is_last or now - self._shown >= SHOW_SECONDS:
            self._shown = now
            _log.info("%s: epoch %d of %d: %s", self._name, epoch.epoch, self._total, words)
