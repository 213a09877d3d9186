"""Report the progress of a training: every epoch to a listener, some of them to the log and the Prefect UI."""

from __future__ import annotations

import logging
import math
import time

from storage.records import Epoch
from tasks.ui import artifacts
from tasks.ui.progress import Progress, advance

SHOW_SECONDS = 1.0
"""Minimum time between two log lines about epochs."""

_log = logging.getLogger(__name__)


class EpochDisplay:
    """Shows every epoch to a listener, and at most one per `SHOW_SECONDS` in the log and the Prefect UI."""

    def __init__(self, dataset: str, epochs: int) -> None:
        self._name, self._total = dataset, epochs
        self._bar = artifacts.ProgressBar(artifacts.key("train", self._name), f"Training on {self._name}")
        self._shown = -math.inf

    def __call__(self, epoch: Epoch, is_last: bool) -> None:
        """Show a completed epoch."""
        words = f"loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.2%}"
        if epoch.validation_accuracy is not None:
            words += f"; held out {epoch.validation_loss:.4f}, {epoch.validation_accuracy:.2%}"
        advance(Progress("train", epoch.epoch, self._total, "epochs", words))
        now = time.monotonic()
        if is_last or now - self._shown >= SHOW_SECONDS:
            self._shown = now
            _log.info("%s: epoch %d of %d: %s", self._name, epoch.epoch, self._total, words)
            percentage = 100.0 if is_last else 100 * epoch.epoch / self._total
            self._bar.move(percentage, f"Epoch {epoch.epoch} of {self._total}: {words}")
