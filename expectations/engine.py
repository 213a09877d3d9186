"""Great Expectations: evaluate the expectations of a suite on one table, in this process.

Nothing else imports the library. That takes seconds, so a run lets another process do it (`engine_process`).
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from expectations.findings import FINDINGS
from expectations.suites import Expectation, Suite
from expectations.summary import Table

LIBRARY = "great_expectations"

# Threads share one context, and importing Great Expectations from several threads at once fails. A suite takes a
# hundredth of a second, so threads take turns.
_turn = threading.Lock()


@dataclass(frozen=True)
class Result:
    """What Great Expectations says of one expectation."""

    success: bool
    details: Mapping[str, Any]
    """Its `result` as JSON; empty if the expectation could not be evaluated."""
    complaint: str
    """Why it could not be evaluated; otherwise `nothing`."""


def is_loaded() -> bool:
    """Return whether this process has imported Great Expectations."""
    return LIBRARY in sys.modules


def prepare() -> None:
    """Import Great Expectations in advance, because that takes seconds, and set it up."""
    with _turn:
        _whole_table()
        for name in FINDINGS:
            _kind(name)


def evaluate(suite: Suite, table: Table) -> dict[int, Result]:
    """Return the result of each expectation by its index in the suite, because results come back in another order."""
    with _turn:
        definition = _whole_table()
        import pandas as pd

        # Not a copy: Great Expectations keeps the frame until it is given the next one, and changes nothing in it.
        frame = pd.DataFrame(table, copy=False)
        batch = definition.get_batch(batch_parameters={"dataframe": frame})
        numbered = dict(enumerate(suite.expectations))
        results = _results(batch, suite.table, numbered, "BASIC")
        # To find the offending rows takes longer than to count them, and most expectations are met.
        broken = {number: numbered[number] for number, result in results.items() if _offenders(result)}
        return results | (_results(batch, suite.table, broken, "SUMMARY") if broken else {})


def _results(batch: Any, name: str, numbered: Mapping[int, Expectation], form: str) -> dict[int, Result]:
    """Return the results of numbered expectations in a result format of Great Expectations."""
    expectations = [
        _kind(e.kind)(**e.arguments, severity=e.severity, meta={"number": number}) for number, e in numbered.items()
    ]
    validation = batch.validate(
        _great_expectations().ExpectationSuite(name, expectations=expectations),
        result_format={"result_format": form, "unexpected_index_column_names": ["index"]},
    )
    return {result.expectation_config.meta["number"]: _result(result) for result in validation.results}


def _offenders(result: Result) -> int:
    return result.details.get("unexpected_count") or 0


def _result(result: Any) -> Result:
    return Result(bool(result.success), result.describe_dict()["result"], _complaint(result))


def _complaint(result: Any) -> str:
    info = result.exception_info
    messages = [info] if "exception_message" in info else list(info.values())
    return "; ".join(sorted({str(m["exception_message"]) for m in messages})) or "nothing"


@cache
def _kind(name: str) -> Any:
    """Return a class of Great Expectations, as one whose expectations make their configuration only once.

    A validation asks each expectation for it some 80 times, and it would be made again each time, from fields that do
    not change, which takes as long as everything else.
    """
    base = getattr(_great_expectations().expectations, name)
    from great_expectations.compatibility.pydantic import PrivateAttr

    def configuration(expectation: Any) -> Any:
        if expectation._made is None:
            expectation._made = base.configuration.fget(expectation)
        return expectation._made

    members = {"__module__": __name__, "_made": PrivateAttr(None), "configuration": property(configuration)}
    # Great Expectations looks up classes by their names, and keeps its own.
    return type(base)(f"{name}Once", (base,), members)


@cache
def _great_expectations() -> Any:
    log = logging.getLogger(LIBRARY)
    if log.level == logging.NOTSET:
        log.setLevel(logging.WARNING)
    # Its import warns about modules deprecated in Python, and redirects all warnings to the log.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations as gx
    return gx


@cache
def _whole_table() -> Any:
    """Return the batch definition for a table, in an in-memory context; cached because it takes longer than a suite."""
    gx = _great_expectations()
    from great_expectations.data_context.types import base

    context = gx.get_context(
        mode="ephemeral",
        cloud_mode=False,
        project_config=base.DataContextConfig(
            store_backend_defaults=base.InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            progress_bars=base.ProgressBarsConfig(globally=False),
        ),
    )
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
    return asset.add_batch_definition_whole_dataframe("whole")
