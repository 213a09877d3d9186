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


def with_new(result: Done[R], parts: int, new: int, seconds: float, part: str = "part") -> Done[R]:
    """Return a result that was put together from parts, with how many of them are new in the line about it.

    Args:
        parts: how many there are.
        new: those that were not found in the store.
        seconds: that all of them took.
        part: what one of them is called.
    """
    step = replace(result.step, seconds=seconds)
    if new:
        # The result itself may be there, if only a part of it was damaged.
        reason = counted(new, f"new {part}") if new < parts or step.reused else step.reason
        step = replace(step, summary=f"{step.summary}, {new:,} new", reused=False, reason=reason)
    return Done(result.record, step)
