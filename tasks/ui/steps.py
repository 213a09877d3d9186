"""Log one line for each step, which the command line also prints."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TypeVar

from storage.records import Done, Step
from storage.words import counted

R = TypeVar("R")


def log_step(log: logging.Logger, step: Step) -> None:
    """Log the line of a step, with the `Step` itself as `record.step` for listeners that need more."""
    how = "reused" if step.reused else f"ran: {step.reason}"
    log.info("%s: %s (%.2f s, %s)", step.name, step.summary, step.seconds, how, extra={"step": step})


def with_parts(result: Done[R], parts: int, new: int, seconds: float) -> Done[R]:
    """Return a result that was put together from parts, with how many of them are new in the line about it.

    Args:
        parts: how many there are.
        new: those that were not found in the store.
        seconds: that all of them took.
    """
    step = replace(result.step, summary=f"{result.step.summary}, in {counted(parts, 'part')}", seconds=seconds)
    if new:
        # The result itself may be there, if only a part of it was damaged.
        reason = counted(new, "new part") if step.reused else step.reason
        step = replace(step, summary=f"{step.summary}, {new:,} new", reused=False, reason=reason)
    return Done(result.record, step)
