"""Ask a person in the Prefect UI whether a candidate may replace the champion."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
from prefect import pause_flow_run, runtime
from prefect.exceptions import PrefectException
from prefect.flow_runs import resume_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.service import temporary
from storage.files import WAITING
from storage.records import Answer

NO_ANSWER = "no answer in time"
_GRACE_SECONDS = 600
_AGAIN_SECONDS = 2

_log = logging.getLogger(__name__)


class Approval(RunInput):
    """The fields of the form in the Prefect UI."""

    promote: bool = Field(False, description="Replace the champion by the candidate.")
    reason: str = Field("", max_length=500, description="Reason, recorded in the ledger and shown in the report.")


def ask(dataset: str, question: str, hours: float) -> Answer | None:
    """Pause the flow run until somebody answers in the Prefect UI; return None if nobody does within `hours`.

    Nobody can answer on a temporary server: return None at once.
    """
    if temporary.in_use():
        _log.warning(
            "%s: no one can answer: this run has a temporary Prefect server; set PREFECT_API_URL to a permanent one",
            dataset,
        )
        return None
    text = f"**{dataset}**: {question}\n\nWithout an answer, the champion stays."
    form = Approval.with_initial_data(description=text)
    message = "%s: waiting up to %g hours for an answer in the Prefect UI: %s"
    _log.info(message, dataset, hours, question, extra=WAITING)
    seconds = hours * 3600
    is_over = threading.Event()
    timer = threading.Timer(seconds, _in_this_context(_give_up, runtime.flow_run.id, is_over))
    timer.daemon = True
    timer.start()
    try:
        answer = pause_flow_run(wait_for_input=form, timeout=int(seconds) + _GRACE_SECONDS, poll_interval=2)
    finally:
        is_over.set()
        timer.cancel()
    if answer.reason == NO_ANSWER:
        _log.warning("%s: no answer within %g hours", dataset, hours)
        return None
    return Answer(answer.promote, answer.reason)


def _give_up(run: str, is_over: threading.Event) -> None:
    """Answer on the person's behalf: a pause that times out fails the whole run.

    Try until the pause is over: it may not have begun yet, or the server may be away for a while.
    """
    while not is_over.is_set():
        try:
            # Prefect: no-answer.
            resume_flow_run(UUID(run), run_input={"promote": False, "reason": NO_ANSWER})
            return
        except (PrefectException, httpx.HTTPError, RuntimeError) as error:
            _log.debug("the answer for nobody is not accepted yet: %s", error)
            is_over.wait(_AGAIN_SECONDS)


def _in_this_context(call: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Bind a call to this context: Prefect keeps its settings in a context variable, which a new thread lacks."""
    # Prefect: settings-in-threads.
    context = contextvars.copy_context()
    return lambda: context.run(call, *arguments)
