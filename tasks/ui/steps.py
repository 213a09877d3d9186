"""How each task says what it did: one line in the log, which is also what the command line prints."""

from __future__ import annotations

import logging

from storage.records import Step


def log_step(log: logging.Logger, step: Step) -> None:
    """Log the line of a step. The `Step` itself goes along as `record.step`, for listeners that want more."""
    how = "reused" if step.reused else f"ran: {step.reason}"
    log.info("%s: %s (%.2f s, %s)", step.name, step.summary, step.seconds, how, extra={"step": step})
