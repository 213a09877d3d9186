"""Records survive their JSON form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.records import Check, Evaluation, FolderEntry, RunRecord, Split, Step, Validation, from_json, to_json

STEP = Step("decode", "ab", "60,000 images", 0.5, False, "first run", "train")
SPLIT = Split(FolderEntry(Path("/store/a")), "train", 3, (28, 28), 10, "d1", {"train-images": "aa"})
CHECK = Check("train", "labels in range", "expect_x", "label", "0..9", "37", "critical", False, (4211,))
VALIDATION = Validation(FolderEntry(Path("/store/b")), False, "d2", (CHECK,), {"train": (1, 2)})


@pytest.mark.parametrize("record", [STEP, SPLIT, VALIDATION], ids=lambda r: type(r).__name__)
def test_a_record_comes_back_equal(record: object):
    values = json.loads(json.dumps(to_json(record)))
    assert "entry" not in values
    assert from_json(type(record), values, getattr(record, "entry", None)) == record


def test_nested_records_and_missing_ones_come_back():
    run = RunRecord("r", "mnist", "2026-01-01T00:00:00+00:00", "command line", "default", {"epochs": 1}, (STEP,))
    assert from_json(RunRecord, json.loads(json.dumps(to_json(run)))) == run


def test_failures_and_warnings_are_told_apart():
    warning = Check("train", "balance", "expect_y", "label", "2", "3", "warning", False)
    validation = Validation(FolderEntry(Path()), False, "d", (CHECK, warning), {})
    assert validation.failures == (CHECK,)
    assert validation.warnings == (warning,)


@pytest.mark.parametrize("change", [{"surprise": 1}, {"rows": ...}])
def test_another_shape_of_record_is_refused(change: dict):
    values = to_json(SPLIT) | change
    if change.get("rows") is ...:
        del values["rows"]
    with pytest.raises(TypeError):
        from_json(Split, values, Path())


def test_confusion_is_a_tuple_of_tuples_again():
    evaluation = Evaluation(FolderEntry(Path()), "w", "s", 2, 1, 0.5, 0.1, 0.9, 1.0, (), ((1, 0), (1, 0)), ())
    assert from_json(Evaluation, json.loads(json.dumps(to_json(evaluation))), FolderEntry(Path())) == evaluation
