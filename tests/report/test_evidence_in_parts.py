"""A report of splits in parts has the evidence of the same rows in one file."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest

from storage.records import Evaluation, FolderEntry, RunRecord
from storage.registry import Registry
from storage.store import Store
from tasks.quarantine import quarantine
from tasks.report import evidence
from tasks.report.quarantine import numbered_as_archives
from tasks.validate import validate
from tests.conftest import TinyFactory, bars
from tests.support.split_in_parts import in_one_file, in_parts

SIZES = {"train": (50, 30, 40), "test": (7, 23)}
MANIFEST = '[quarantine]\nchecks = ["blank"]\nmax_share = 0.5\n[limits]\nmax_leaked = 0.5\n'


@pytest.fixture
def gathered(store: Store, tiny: TinyFactory) -> dict[bool, tuple[RunRecord, evidence.Evidence]]:
    """The record of a run, as far as validation, and what a report reads for it: in one file, and in parts."""
    arrays = bars(120, 30, 3, (9, 7))
    arrays["train-images"][[3, 60, 90]] = 0
    arrays["test-images"][[5, 20]] = arrays["train-images"][[1, 100]]
    dataset = tiny(arrays=arrays, manifest=MANIFEST)
    found = {}
    for cut in (False, True):
        splits = [
            in_parts(store, dataset, name, arrays[f"{name}-images"], arrays[f"{name}-labels"], SIZES[name])
            if cut
            else in_one_file(store, dataset, name, arrays[f"{name}-images"], arrays[f"{name}-labels"])
            for name in ("train", "test")
        ]
        bad = quarantine.fn(store, dataset, *splits).record
        train, test = (bad.rest(split) for split in splits)
        checked = validate.fn(store, dataset, train, test).record
        score = Evaluation(FolderEntry(store.root / "none"), "", "", 30, 0, 0.0, 0.0, 0.0, 0.0, (), (), ())
        run = RunRecord("run", "tiny", datetime.now(UTC).isoformat(), "a test", "", {})
        run = dataclasses.replace(run, train=train, test=test, quarantine=bad, validation=checked, evaluation=score)
        found[cut] = run, evidence.gather(Registry(store, "tiny"), run)
    return found


def test_what_the_checks_have_found_is_read_from_all_parts(
    gathered: dict[bool, tuple[RunRecord, evidence.Evidence]],
):
    (whole, expected), (run, actual) = gathered[False], gathered[True]
    assert run.validation
    assert whole.validation
    assert (run.validation.parts, whole.validation.parts) == (5, 0)
    assert actual.leaked is not None
    (leaked,) = actual.leaked.blocks()
    assert np.flatnonzero(leaked).tolist() == [5, 20]
    assert leaked.dtype == bool
    assert actual.measures
    assert expected.measures
    for first, second in zip(actual.measures.ink.blocks(), expected.measures.ink.blocks(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert actual.means.keys() == expected.means.keys() == {0, 1, 2}
    assert all((actual.means[label] == expected.means[label]).all() for label in range(3))
    assert actual.set_aside == expected.set_aside
    assert [row.row for row, _ in actual.set_aside] == [3, 60, 90]


def test_rows_have_their_numbers_in_the_archives(gathered: dict[bool, tuple[RunRecord, evidence.Evidence]]):
    checks = {"checks": [{"table": "train", "rows": [2, 3, 58, 59, 89, 116]}]}
    others = {"mistakes": None, "behaviour": None, "drift": None}
    values = [numbered_as_archives({"checks": checks, **others}, gathered[cut][0]) for cut in (False, True)]
    assert values[0] == values[1]
    assert values[1]["checks"]["checks"][0]["rows"] == [2, 4, 59, 61, 92, 119]
