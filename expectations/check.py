"""Run a suite on a table with Great Expectations, and say what came out in words."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from expectations.suites import Expectation, Suite, percent
from expectations.summary import Table
from storage.errors import IdxflowError
from storage.records import Check

ROWS_NAMED = 20
"""How many offending rows are named. Great Expectations itself keeps no more."""

_VALUES_NAMED = 5

# Great Expectations keeps the context it made last in a global, and importing its modules from several
# threads at once fails. A suite takes a few hundredths of a second, so they take turns.
_turn = threading.Lock()


def run(suite: Suite, table: Table) -> tuple[Check, ...]:
    """Evaluate every expectation of `suite` on `table`, in the order of the suite.

    Nothing is read from or written to disk or network. Safe to call from several threads.

    Raises:
        IdxflowError: the suite is empty, or an expectation could not be evaluated. That is no verdict on the data.
    """
    if not suite.expectations:
        raise IdxflowError(f"{suite.table}: expected a suite of expectations; it is empty and would pass any data")
    with _turn:
        results = _evaluate(suite, table)
    if sorted(results) != list(range(len(suite.expectations))):
        raise IdxflowError(
            f"{suite.table}: expected {len(suite.expectations)} expectations to be evaluated; {len(results)} were; "
            "this is a fault of the suite, not of the data"
        )
    return tuple(_check(suite, wanted, results[number], table) for number, wanted in enumerate(suite.expectations))


def _evaluate(suite: Suite, table: Table) -> dict[int, Any]:
    """Return the result of each expectation by its number in the suite: results come back in another order."""
    gx = _great_expectations()
    import pandas as pd

    batch = (
        _empty_context(gx)
        .data_sources.add_pandas("memory")
        .add_dataframe_asset("table")
        .add_batch_definition_whole_dataframe("whole")
        .get_batch(batch_parameters={"dataframe": pd.DataFrame(table)})
    )
    wanted = [
        getattr(gx.expectations, e.kind)(**e.arguments, severity=e.severity, meta={"number": number})
        for number, e in enumerate(suite.expectations)
    ]
    result = batch.validate(
        gx.ExpectationSuite(suite.table, expectations=wanted),
        result_format={"result_format": "SUMMARY", "unexpected_index_column_names": ["index"]},
    )
    return {one.expectation_config.meta["number"]: one for one in result.results}


@cache
def _great_expectations() -> Any:
    log = logging.getLogger("great_expectations")
    if log.level == logging.NOTSET:
        log.setLevel(logging.WARNING)
    # Its import warns of modules that Python has deprecated, and redirects all warnings to the log.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations as gx
    return gx


def _empty_context(gx: Any) -> Any:
    """Return a new context that lives in memory: a shared one confuses the tables of two threads."""
    from great_expectations.data_context.types import base

    return gx.get_context(
        mode="ephemeral",
        cloud_mode=False,
        project_config=base.DataContextConfig(
            store_backend_defaults=base.InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            progress_bars=base.ProgressBarsConfig(globally=False),
        ),
    )


def _check(suite: Suite, wanted: Expectation, result: Any, table: Table) -> Check:
    found = result.to_json_dict()["result"]
    if not found:
        raise IdxflowError(
            f"{suite.table}: expected {wanted.name!r} to be evaluated; Great Expectations says: {_complaint(result)}; "
            "this is a fault of the suite, not of the data"
        )
    offending = [int(place["index"]) for place in found.get("partial_unexpected_index_list") or ()]
    observed = _observed(suite, wanted, found)
    if suite.of == "class" and not result.success:
        observed += f" ({_list(_outside(wanted, table), 'class', 'classes')})"
    return Check(
        table=suite.table,
        name=wanted.name,
        expectation=result.expectation_config.type,
        column=wanted.column,
        limit=wanted.limit,
        observed=observed,
        severity=wanted.severity,
        passed=bool(result.success),
        rows=tuple(offending[:ROWS_NAMED]) if suite.of == "row" else (),
        setting=wanted.setting,
    )


def _observed(suite: Suite, wanted: Expectation, found: Mapping[str, Any]) -> str:
    if "unexpected_count" in found:
        return _offenders(suite, found)
    if "missing_count" in found:
        missing = found["partial_missing_list"]
        return f"{_list(missing, 'class', 'classes')} missing" if missing else "all"
    value = found.get("observed_value")
    if isinstance(value, list):
        return f"{len(value)} columns"
    if value is None:
        return "nothing"
    return percent(value) if wanted.percent else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _offenders(suite: Suite, found: Mapping[str, Any]) -> str:
    """Say how many rows break the expectation, and with which values."""
    of = {"row": "rows", "class": "classes", "split": "splits"}[suite.of]
    count, total = found["unexpected_count"], found["element_count"]
    if not count:
        return f"no exception in {total:,} {of}"
    values = {_text(value): None for value in found["partial_unexpected_list"]}
    shown = ", ".join(list(values)[:_VALUES_NAMED]) + (", …" if len(values) > _VALUES_NAMED else "")
    return f"{count:,} of {total:,} {of}, {percent(count / total)}" + ("" if set(values) == {"1"} else f": {shown}")


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " instead of ".join(_text(v) for v in value)
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}…"


def _outside(wanted: Expectation, table: Table) -> list[int]:
    """Return the classes whose value is outside of the bounds."""
    values = table[wanted.column]
    low, high = wanted.arguments.get("min_value", -np.inf), wanted.arguments.get("max_value", np.inf)
    return [int(label) for label in table["index"][(values < low) | (values > high)]]


def _list(items: list[Any], one: str, several: str) -> str:
    shown = ", ".join(str(item) for item in items[:ROWS_NAMED]) + (", …" if len(items) > ROWS_NAMED else "")
    return f"{one if len(items) == 1 else several} {shown}"


def _complaint(result: Any) -> str:
    info = result.exception_info
    messages = [info] if "exception_message" in info else list(info.values())
    return "; ".join(sorted({str(m["exception_message"]) for m in messages})) or "nothing"
