"""Labels that are likely wrong, and test images that are almost in the training split; what to do about them."""

from __future__ import annotations

from typing import Any

from storage.records import Audit, RunRecord
from tasks.auditing.tables import NearDuplicates, Suspects
from tasks.report.evidence import Evidence
from tasks.report.phrases import class_name, counted

MOST_SUSPECTS = 25
MOST_PAIRS = 12
"""Maximum numbers of pictures."""


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
        "shown": _suspects(run, suspects),
        "test_rows": record.test_rows,
        "compared": record.compared_rows,
        "equal": record.equal_rows,
        "near": record.near_rows,
        "distance": record.near,
        "pairs": _pairs(run, near),
        "command": f"idxflow suspects {run.dataset} --csv suspects.csv",
    }


def _suspects(run: RunRecord, table: Suspects) -> list[dict[str, Any]]:
    columns = (values[:MOST_SUSPECTS].tolist() for values in table.columns().values())
    return [
        {
            "row": row,
            "label": label,
            "name": class_name(run, label),
            "suggested": suggested,
            "suggested_name": class_name(run, suggested),
            "probability": probability,
            "suggested_probability": suggested_probability,
            "flagged": flagged,
        }
        for row, label, suggested, probability, suggested_probability, flagged in zip(*columns, strict=True)
    ]


def _pairs(run: RunRecord, table: NearDuplicates) -> list[dict[str, Any]]:
    """Return the nearest pairs that are not equal: the data checks show those that are."""
    first = int((table.distance == 0).sum())
    columns = (values[first : first + MOST_PAIRS].tolist() for values in table.columns().values())
    return [
        {
            "test_row": test_row,
            "train_row": train_row,
            "distance": distance,
            "test_name": class_name(run, test_label),
            "train_name": class_name(run, train_label),
        }
        for test_row, train_row, distance, test_label, train_label in zip(*columns, strict=True)
    ]


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
