"""Log one line for each step, which the command line also prints."""

from __future__ import annotations

import logging

from storage.records import Step


def log_step(log: logging.Logger, step: Step) -> None:
    """Log the line of a step, with the `Step` itself as `record.step` for listeners that need more."""
    how = "reused" if step.reused else f"ran: {step.reason}"
    log.info("%s: %s (%.2f s, %s)", step.name, step.summary, step.seconds, how, extra={"step": step})
