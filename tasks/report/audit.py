"""Labels that are likely wrong, and test images that are almost in the training split; what to do about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.records import Audit, RunRecord
from tasks.report.evidence import Evidence
from tasks.report.phrases import class_name, counted


def audit(run: RunRecord, evidence: Evidence) -> dict[str, Any] | None:
    """Return what the audit of a run found; None if none was asked for, or its tables cannot be read."""
    record, suspects, near = run.audit, evidence.suspects, evidence.near_duplicates
    if record is None or suspects is None or near is None:
        return None
    return {
        "sentence": f"{_sentence(record)} {_after(run)}",
        "rows": record.rows,
        "left_out": record.left_out,
        "suspects": record.suspect_rows,
        "flagged": record.flagged_rows,
        "shown": [_suspect(run, row) for row in suspects],
        "test_rows": record.test_rows,
        "compared": record.compared_rows,
        "equal": record.equal_rows,
        "near": record.near_rows,
        "distance": record.near,
        "pairs": [_pair(run, row) for row in near],
        "command": f"idxflow suspects {run.dataset} --csv suspects.csv",
    }


def _suspect(run: RunRecord, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "row": row["row"],
        "label": row["label"],
        "name": class_name(run, row["label"]),
        "suggested": row["suggested"],
        "suggested_name": class_name(run, row["suggested"]),
        "probability": row["probability"],
        "suggested_probability": row["suggested_probability"],
        "flagged": row["flagged"],
    }


def _pair(run: RunRecord, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "test_row": row["test_row"],
        "train_row": row["train_row"],
        "distance": row["distance"],
        "test_name": class_name(run, row["test_label"]),
        "train_name": class_name(run, row["train_label"]),
    }


def _after(run: RunRecord) -> str:
    """Return what happened to the suspects, in a sentence."""
    if run.quarantine and "suspect" in run.quarantine.checks:
        return "Flagged rows were set aside, as the quarantine below says."
    return "Nothing was removed."


def _sentence(audit: Audit) -> str:
    judged = f"{counted(audit.flagged_rows, 'label')} of {counted(audit.rows, 'training row')}"
    words = f"{judged} {'looks' if audit.flagged_rows == 1 else 'look'} wrong"
    if audit.left_out:
        words += f"; {counted(audit.left_out, 'row')} could not be judged"
    compared = "" if audit.compared_rows == audit.test_rows else f" (of {audit.compared_rows:,} compared)"
    near = counted(audit.near_rows, "test image")
    words += f". {near} {'is' if audit.near_rows == 1 else 'are'} almost the same as a training image{compared}"
    return f"{words}; {audit.equal_rows:,} {'is' if audit.equal_rows == 1 else 'are'} equal to one."
