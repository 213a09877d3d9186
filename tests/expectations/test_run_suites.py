"""Running a suite: nothing passes unevaluated, and what is found is said in words."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expectations import engine, engine_process, findings, run_suites, suites, summary
from expectations.suites import Expectation, Suite
from storage.datasets import catalog
from storage.datasets.manifest import Limits
from storage.errors import IdxflowError
from storage.records import Check
from tests.support.tables import faulty

ROOT = Path(__file__).resolve().parents[2]
MEAN = Expectation("mean", "ExpectColumnMeanToBeBetween", {"column": "value", "min_value": 2}, "at least 2")


def single_check(expectation: Expectation, table: dict[str, Any], of: str = "row") -> Check:
    arrays = {"index": np.arange(len(next(iter(table.values())))), **{n: np.array(v) for n, v in table.items()}}
    (check,) = run_suites.run(Suite("test", of, (expectation,)), [arrays])
    return check


def named(name: str, **limits: float) -> Expectation:
    """Return an expectation that MNIST's test split is held to, under other limits."""
    dataset = replace(catalog.find("mnist"), limits=Limits(**limits))  # type: ignore[arg-type]
    (expectation,) = [e for e in suites.images(dataset, "test").expectations if e.name == name]
    return expectation


@pytest.mark.remedies("expectations.run_suites:look")
def test_an_empty_suite_never_passes():
    with pytest.raises(IdxflowError, match="empty and would pass any data"):
        run_suites.run(Suite("train", "row", ()), [{"index": np.arange(3)}])
    assert single_check(MEAN, {"value": [2.0]}).passed


@pytest.mark.remedies("expectations.run_suites:_together")
def test_no_part_of_a_table_never_passes():
    with pytest.raises(IdxflowError, match="at least one part of a table"):
        run_suites.run(Suite("test", "row", (MEAN,)), [])
    assert single_check(MEAN, {"value": [2.0]}).passed


@pytest.mark.remedies("expectations.run_suites:_finding")
def test_an_expectation_about_an_unknown_column_is_an_error_not_a_verdict():
    with pytest.raises(IdxflowError, match=r"test: expected 'mean' to be evaluated.*\"value\".*not of the data"):
        single_check(MEAN, {"other": [1.0]})
    # The suite is at fault: with the column that there is, it has a verdict.
    assert not single_check(replace(MEAN, arguments={**MEAN.arguments, "column": "other"}), {"other": [1.0]}).passed


def test_an_unknown_expectation_is_an_error():
    with pytest.raises(AttributeError, match="ExpectMiracle"):
        single_check(replace(MEAN, kind="ExpectMiracle"), {"value": [1.0]})


def test_an_unknown_argument_is_an_error():
    with pytest.raises(ValueError, match="minimum"):
        single_check(replace(MEAN, arguments={"column": "value", "minimum": 2}), {"value": [1.0]})


@pytest.mark.remedies("expectations.run_suites:_look")
def test_an_expectation_that_is_lost_on_the_way_is_an_error(monkeypatch: pytest.MonkeyPatch):
    evaluate = engine_process.evaluate
    monkeypatch.setattr(engine_process, "evaluate", lambda suite, table: dict(list(evaluate(suite, table).items())[:1]))
    with pytest.raises(IdxflowError, match="expected 2 expectations to be evaluated; 1 were"):
        run_suites.run(Suite("test", "row", (MEAN, MEAN)), [{"index": np.arange(2), "value": np.ones(2)}])
    monkeypatch.undo()
    run_suites.run(
        Suite("test", "row", (MEAN, replace(MEAN, name="other"))), [{"index": np.arange(2), "value": np.ones(2)}]
    )


def test_checks_come_in_the_order_of_the_suite():
    thresholds = tuple(
        replace(MEAN, name=f"at least {n}", arguments={"column": "value", "min_value": n}) for n in range(9, -1, -1)
    )
    mixed = (thresholds[0], named("no image is blank"), *thresholds[1:])
    table = {"index": np.arange(3), "value": np.full(3, 4.0), "blank": np.zeros(3, np.int64)}
    checks = run_suites.run(Suite("train", "row", mixed), [table])
    assert [c.name for c in checks] == [e.name for e in mixed]
    assert [c.passed for c in checks if c.column == "value"] == [n <= 4 for n in range(9, -1, -1)]


def test_severity_is_ours():
    assert single_check(replace(MEAN, severity="warning"), {"value": [1.0]}).severity == "warning"


@pytest.mark.parametrize(
    ("expectation", "table", "passed", "observed", "rows"),
    [
        (MEAN, {"value": [1.0, 2.0, 1.0]}, False, "1.333", ()),
        (replace(MEAN, percent=True), {"value": [3.0]}, True, "300%", ()),
        (named("no image is blank"), {"blank": [0, 0]}, True, "no exception in 2 rows", ()),
        (named("no image is blank"), {"blank": [0, 1, 0, 1]}, False, "2 of 4 rows, 50%", (1, 3)),
        (named("no image is blank", max_blank=0.5), {"blank": [0, 1, 0, 1]}, True, "2 of 4 rows, 50%", (1, 3)),
        (named("rows are as declared"), {"label": [0, 0]}, False, "2", ()),
        (named("no label is missing"), {"label": [1.0, np.nan]}, False, "1 of 2 rows, 50%: None", (1,)),
        (named("labels are classes"), {"label": [9, 10, 255]}, False, "2 of 3 rows, 66.67%: 10, 255", (1, 2)),
        (named("every class is present"), {"label": [*range(1, 9), 77]}, False, "classes 0, 9 missing", ()),
        (named("every class is present"), {"label": range(10)}, True, "all", ()),
    ],
)
def test_what_is_found_is_said_in_words(
    expectation: Expectation, table: dict[str, Any], passed: bool, observed: str, rows: tuple[int, ...]
):
    check = single_check(expectation, table)
    assert (check.passed, check.observed, check.rows) == (passed, observed, rows)


def test_classes_out_of_bounds_are_named():
    table = summary.class_table(np.array([0] * 50 + [1] * 49 + [2]), 4)
    checks = run_suites.run(suites.classes(replace(catalog.find("mnist"), classes=tuple("abcd")), "test"), [table])
    assert [(c.passed, c.observed, c.rows) for c in checks] == [
        (False, "0% (classes 2, 3)", ()),
        (True, "50%", ()),
        (False, "inf (classes 2, 3)", ()),
    ]


def test_what_was_not_declared_is_no_difference():
    dataset = catalog.find("mnist")
    equal = next(e for e in suites.archives(dataset).expectations if e.name == "rows are as declared")
    both = {"rows_found": np.array([5, 7], object), "rows_declared": np.array([None, 7], object)}
    assert single_check(equal, both, "split").passed
    both["rows_declared"][0] = 6
    check = single_check(equal, both, "split")
    assert not check.passed
    assert check.observed == "1 of 2 splits, 50%: 5 instead of 6"


def test_twenty_offending_rows_are_named():
    check = single_check(named("no image is blank"), {"blank": np.arange(200) % 2})
    assert check.rows == tuple(range(1, 41, 2))
    assert check.observed == "100 of 200 rows, 50%"


@pytest.mark.parametrize("share", [0.001, 0.007, 0.059, 0.07, 0.3, 0.9])
def test_a_limit_that_is_just_reached_passes_and_one_row_more_does_not(share: float):
    rows, reached = 1000, round(1000 * share)
    for count, passed in ((reached, True), (reached + 1, False)):
        assert (
            single_check(named("no image is blank", max_blank=share), {"blank": np.arange(rows) < count}).passed
            is passed
        )


def test_an_empty_table_does_not_pass():
    dataset = replace(catalog.find("mnist"), rows={})
    table = {name: np.empty(0, kind) for name, kind in summary.IMAGE_COLUMNS.items()}
    failed = {c.name for c in run_suites.run(suites.images(dataset, "test"), [table]) if not c.passed}
    assert {"enough rows for every class", "every class is present"} <= failed


def cut(table: summary.Table, places: list[int]) -> list[summary.Table]:
    edges = [0, *places, len(table["index"])]
    return [{name: values[a:b] for name, values in table.items()} for a, b in pairwise(edges)]


FIRST_ROW_ALONE, EMPTY_PARTS, UNEVEN_PARTS = [1], [0, 60, 60, 120], [1, 2, 50, 119]


@pytest.mark.parametrize(("classes", "seed"), [(10, 1), (60, 3)])
def test_the_verdict_on_parts_is_that_on_the_whole(classes: int, seed: int):
    table = faulty(120, classes, seed)
    table["label"] = np.append(table["label"][:-1], classes - 1)  # the last part alone has this class
    share = float(table["centroid_hit"].mean())
    exact = {"max_blank": float(table["blank"].mean()), "max_leaked": float(table["leaked"].mean()) - 1 / 120}
    seen = set()
    just_met = {"min_centroid_hit": share, "max_pixel_min": int(table["pixel_min"].min()), **exact}
    just_missed = {
        "min_centroid_hit": float(np.nextafter(share, 1)),
        "max_pixel_mean": float(table["mean"].mean()) - 1e-9,
    }
    for limits in (just_met, just_missed):
        dataset = replace(
            catalog.find("mnist"), rows={}, classes=tuple(map(str, range(classes))), limits=Limits(**limits)
        )
        suite = suites.images(dataset, "test")
        whole = run_suites.run(suite, [table])
        for places in (FIRST_ROW_ALONE, EMPTY_PARTS, UNEVEN_PARTS):
            assert run_suites.run(suite, cut(table, places)) == whole
        seen |= {(c.column, c.passed) for c in whole if c.column in ("centroid_hit", "blank", "pixel_max", "mean")}
    assert seen >= {(name, passed) for name in ("centroid_hit", "blank") for passed in (True, False)}


def test_what_great_expectations_says_of_one_part_is_what_is_said():
    """Its own classes, asked for everything at once, find the same."""
    import great_expectations as gx
    import pandas as pd

    table = faulty(120, 10, 4)
    table["mean"][3] = np.nan
    suite = suites.images(replace(catalog.find("mnist"), rows={}), "test")
    batch = engine._whole_table().get_batch(batch_parameters={"dataframe": pd.DataFrame(table)})
    detail = {"result_format": "SUMMARY", "unexpected_index_column_names": ["index"]}
    checks, seen = run_suites.run(suite, [table]), run_suites.look(suite, [table])
    for expectation, check, one in zip(suite.expectations, checks, seen, strict=True):
        arguments = expectation.arguments
        theirs = batch.validate(getattr(gx.expectations, expectation.kind)(**arguments), result_format=detail)
        assert check.passed == theirs.success
        found = findings.FINDINGS[expectation.kind].of(theirs.to_json_dict()["result"], arguments, table)
        assert repr(one.finding) == repr(found)


@pytest.mark.remedies("expectations.run_suites:_finding:2")
def test_another_judgement_than_that_of_great_expectations_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(findings.Mean, "holds", lambda self, arguments: True)
    with pytest.raises(IdxflowError, match=r"the verdict of Great Expectations on 'mean'; it is failed.*suite"):
        single_check(MEAN, {"value": [1.0]})
    monkeypatch.undo()
    assert not single_check(MEAN, {"value": [1.0]}).passed


def test_more_missing_classes_than_great_expectations_names_are_all_known():
    dataset = replace(catalog.find("mnist"), classes=tuple(map(str, range(60))), rows={})
    (present,) = [e for e in suites.images(dataset, "test").expectations if e.name == "every class is present"]
    labels = [np.arange(30), np.arange(30, 59)]
    parts = [{"index": np.arange(len(part)), "label": part} for part in labels]
    (check,) = run_suites.run(Suite("test", "row", (present,)), parts)
    assert (check.passed, check.observed) == (False, "class 59 missing")


def test_a_column_that_one_part_lacks_is_lacking():
    columns = Expectation("columns", "ExpectTableColumnsToMatchSet", {"column_set": ["index", "a"]}, "2 columns")
    both = {"index": np.arange(2), "a": np.arange(2)}
    for parts in ([both, {"index": np.arange(2)}], [{"index": np.arange(2)}, both]):
        (check,) = run_suites.run(Suite("test", "row", (columns,)), parts)
        assert (check.passed, check.observed) == (False, "1 columns")
    assert run_suites.run(Suite("test", "row", (columns,)), [both, both])[0].passed


def test_no_part_never_passes():
    with pytest.raises(IdxflowError, match="expected at least one part"):
        run_suites.run(Suite("test", "row", (MEAN,)), [])


def test_sixteen_threads_get_their_own_results():
    rows = Expectation("rows", "ExpectTableRowCountToBeBetween", {"min_value": 1}, "at least 1")
    suite = Suite("test", "row", (rows, MEAN, named("no image is blank")))

    def job(number: int) -> list[str]:
        blank = np.zeros(number + 1, np.int64)
        blank[number] = 1
        table = {"index": np.arange(number + 1), "value": np.full(number + 1, float(number)), "blank": blank}
        counted, averaged, spotted = run_suites.run(suite, [table])
        return [counted.observed, averaged.observed, str(spotted.rows)]

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(job, range(32)))
    assert results == [[str(n + 1), str(n), f"({n},)"] for n in range(32)]


def test_a_level_that_the_user_gave_its_log_is_kept():
    log = logging.getLogger("great_expectations")
    before = log.level
    engine._great_expectations.cache_clear()
    log.setLevel(logging.ERROR)
    try:
        engine._great_expectations()
        assert log.level == logging.ERROR
    finally:
        log.setLevel(before)


FIRST_USE = """
import logging, threading
logging.basicConfig(level=logging.INFO)
import numpy as np
from expectations import run_suites
from expectations.suites import Expectation, Suite
suite = Suite("test", "row", (Expectation("n", "ExpectTableRowCountToEqual", {"value": 3}, "3"),))
found = []
run = lambda: found.extend(run_suites.run(suite, [{"index": np.arange(3)}]))
threads = [threading.Thread(target=run) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print(sum(c.passed for c in found))
"""


def test_first_use_from_eight_threads_is_silent_and_leaves_nothing(tmp_path: Path):
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", FIRST_USE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (process.stdout, process.stderr, process.returncode) == ("8\n", "", 0)
    assert list(tmp_path.iterdir()) == []
