"""The checks of the data: what was expected, what was found, which rows failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.records import Check, RunRecord, to_json
from tasks.report.evidence import Evidence
from tasks.report.phrases import class_name, counted


def checks(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return every check with the labels of its rows, failed and critical ones first; None if there are no checks."""
    validation = run.validation
    if not validation:
        return None
    ordered = sorted(validation.checks, key=lambda check: (check.passed, check.severity != "critical"))
    return {
        "sentence": _sentence(validation.checks),
        "passed": validation.passed,
        "checks": [{**to_json(check), "labels": _labels(run, check, evidence)} for check in ordered],
    }


def _labels(run: RunRecord, check: Check, evidence: Evidence) -> list[str]:
    """Return the labels of the offending rows; empty unless all are known."""
    labels = evidence.labels.get(check.table)
    if labels is None or not labels.some.keys() >= {*check.rows}:
        return []
    return [class_name(run, labels.some[row]) for row in check.rows]


def _sentence(run_checks: Sequence[Check]) -> str:
    failed = [check for check in run_checks if not check.passed]
    critical = sum(check.severity == "critical" for check in failed)
    warnings = len(failed) - critical
    remark = f"look at {counted(warnings, 'warning')}" if warnings else ""
    if critical:
        sentence = f"{critical} of {counted(len(run_checks), 'check')} failed, so no model was trained on this data"
        return f"{sentence}; {remark}." if remark else f"{sentence}."
    if remark:
        return f"No critical check failed; {remark} ({len(run_checks)} checks in all)."
    return f"All {len(run_checks)} checks passed."
