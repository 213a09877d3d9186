"""Publish the report of a run: one HTML page, the same as JSON, and the artifacts in the Prefect UI.

The page needs nothing but itself: no script, no other file, no network. `report` says what is in it and
documents the JSON, `rendering` gives it its looks; this module reads the evidence and has the pictures drawn.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import parquet
from storage.catalog import Dataset
from storage.ledger import Kind, Ledger
from storage.records import Done, Epoch, Report, RunRecord, Split
from storage.registry import Registry
from storage.store import Plan, Store
from tasks import artifacts, figures, report, sharing
from tasks.figures import Chart, Line
from tasks.history import read_history
from tasks.rendering import Pictures, duration, html, markdown, metrics, number, percent
from tasks.report import Evidence
from tasks.steps import log_step

_MAX_EXAMPLES = 64
_MAX_CHECK_SHEETS = 12
_STEPS = ("fetch", "decode", "validate", "normalize", "train", "evaluate", "decide")

S = TypeVar("S")
T = TypeVar("T")

_log = logging.getLogger(__name__)


@task(task_run_name="publish", cache_policy=NO_CACHE)
def publish(store: Store, dataset: Dataset, run: RunRecord) -> Done[Report]:
    """Write the report of `run`, however far it came, and show it in the Prefect UI.

    Evidence that cannot be read any more is left out: a run that failed gets its report too. The first report of a
    run stays; artifacts are shown each time.

    Raises:
        StoreError: the report cannot be written.
    """
    plan = Plan(dataset.name, "publish", name=run.id, parameters={"run": run.id})
    place = f"{dataset.name}/{store.entries(dataset.name, 'publish').name}/{run.id}/report.html"
    values, pictures = compose(store, dataset, run)
    done = store.once(plan, Report, lambda folder: write_report(folder, values, pictures), lambda _: place)
    _show(dataset.name, values, pictures, place)
    log_step(_log, done.step)
    return done


def compose(store: Store, dataset: Dataset, run: RunRecord) -> tuple[dict[str, Any], Pictures]:
    """Return what the report of `run` says and shows, see `report.content`."""
    evidence = _evidence(store, dataset, run)
    roots = {str(store.root): "store", str(dataset.manifest.parent): "…", os.path.expanduser("~"): "~"}  # noqa: PTH111
    shown = sharing.shareable(run, roots)
    named = sharing.presentable_dataset(dataset)
    values = report.content(named, shown, evidence, report.environment(_STEPS))
    return values, _pictures(run, values)


def write_report(folder: Path, values: dict[str, Any], pictures: Pictures) -> Report:
    """Write `report.html` and `report.json` into `folder`."""
    made = Report(folder)
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    made.json.write_text(text + "\n", encoding="utf-8")
    made.html.write_text(html(values, pictures), encoding="utf-8")
    return made


def _show(dataset: str, values: dict[str, Any], pictures: Pictures, place: str) -> None:
    identity, verdict = values["run"], values["verdict"]
    description = f"{identity['id']}: {verdict['headline']}"
    artifacts.show_markdown(artifacts.key("report", dataset), markdown(values, pictures, place), description)
    if rows := metrics(values):
        artifacts.show_table(artifacts.key("metrics", dataset), rows, f"{identity['id']}: test results per class")


def _evidence(store: Store, dataset: Dataset, run: RunRecord) -> Evidence:
    splits = [split for split in (run.train, run.test) if split]
    labels: dict[str, np.ndarray] = {
        split.name: found for split in splits if (found := _readable(parquet.labels, split.file)) is not None
    }
    history = _readable(_history, run.model.history) if run.model else None
    probability = _readable(_probability, run.evaluation.file) if run.evaluation else None
    kind: Kind = "runs"
    past = _readable(Ledger(store, dataset.name).read, kind)
    by_hand = _readable(lambda name: by_hand_since_last_report(store, name), dataset.name)
    return Evidence(history or (), labels, probability, tuple(past or ()), by_hand or ())


def by_hand_since_last_report(store: Store, dataset: str) -> tuple[str, ...]:
    """Return what was done to the champion by hand after the last run that published a report, oldest first."""
    reported = [run["time"] for run in Ledger(store, dataset).read("runs") if run.get("state") != "unchanged"]
    since = datetime.fromisoformat(reported[-1]) if reported else datetime.min.replace(tzinfo=UTC)
    turns = Registry(store, dataset).history()
    return tuple(
        f"{turn.time:%Y-%m-%d %H:%M} UTC: {turn.sentence}"
        for turn in turns
        if turn.by_hand and turn.took_effect and turn.time > since
    )


def _readable(read: Callable[[S], T], source: S) -> T | None:
    """Return what `read` finds, or None: nothing that is damaged or gone keeps a report from being written."""
    try:
        return read(source)
    except Exception as error:
        _log.warning("report: left out %s: %s", source, error)
        return None


def _history(path: Path) -> tuple[Epoch, ...]:
    epochs = read_history(path)
    return tuple(epoch for epoch in epochs if all(v is None or math.isfinite(v) for v in vars(epoch).values()))


def _probability(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays["probability"])


def _pictures(run: RunRecord, values: Mapping[str, Any]) -> Pictures:
    examples = [c["example"] for c in values["data"]["classes"] if c["example"] is not None] if values["data"] else []
    mistakes = [mistake["row"] for mistake in values["test"]["mistakes"]] if values["test"] else []
    offending = _offending(values["checks"])
    wanted: dict[str, list[int]] = {"train": examples[:_MAX_EXAMPLES], "test": list(mistakes)}
    for table, rows in offending.values():
        wanted[table] = wanted[table] + rows
    images: dict[str, dict[int, np.ndarray]] = {
        split.name: _images(split, wanted[split.name]) for split in (run.train, run.test) if split
    }
    checks = {index: _together(images.get(table), rows) for index, (table, rows) in offending.items()}
    return Pictures(
        examples=_together(images.get("train"), examples[:_MAX_EXAMPLES]),
        mistakes=_together(images.get("test"), mistakes),
        checks={index: found for index, found in checks.items() if found is not None},
        charts=_charts(values),
    )


def _offending(checks: Mapping[str, Any] | None) -> dict[int, tuple[str, list[int]]]:
    """Return table and rows of the failed checks that name rows, by position."""
    failed = enumerate(checks["checks"] if checks else [])
    named = [
        (index, (check["table"], check["rows"]))
        for index, check in failed
        if not check["passed"] and check["rows"] and check["table"] in ("train", "test")
    ]
    return dict(named[:_MAX_CHECK_SHEETS])


def _images(split: Split, wanted: list[int]) -> dict[int, np.ndarray]:
    """Return the images of the rows that are there, all from one pass over the file."""
    there = sorted({row for row in wanted if 0 <= row < split.rows})
    found = _readable(lambda path: parquet.rows(path, there), split.file) if there else None
    return {} if found is None else dict(zip(there, found, strict=True))


def _together(images: Mapping[int, np.ndarray] | None, rows: Sequence[int]) -> np.ndarray | None:
    """Return the images of `rows`; nothing unless all are there, so that their places agree."""
    if not images or not rows or any(row not in images for row in rows):
        return None
    return np.stack([images[row] for row in rows])


def _charts(values: Mapping[str, Any]) -> dict[str, str]:
    charts = _training_charts(values["training"]) if values["training"] else []
    if values["past"]:
        charts.append(_past_chart(values["past"]))
    return {chart.name: figures.chart(chart) for chart in charts}


def _training_charts(training: Mapping[str, Any]) -> list[Chart]:
    epochs = training["epochs"]
    if not epochs:
        return []
    x, chosen = [e["epoch"] for e in epochs], training["chosen_epoch"]
    held_out = any(e["validation_loss"] is not None for e in epochs)
    last = epochs[-1]

    def column(key: str, name: str, is_held_out: bool = False) -> Line:
        return Line(name, [e[key] for e in epochs], is_held_out)

    def pair(key: str) -> list[Line]:
        return [column(key, "fitted rows"), *([column(f"validation_{key}", "held-out rows", True)] if held_out else [])]

    kept = f"epoch {chosen}, kept"
    loss = f"Loss by epoch; on the fitted rows it ends at {number(last['loss'])}"
    accuracy = f"Accuracy by epoch; on the fitted rows it ends at {percent(last['accuracy'])}"
    rate = f"Learning rate by epoch, from {number(epochs[0]['learning_rate'])} to {number(last['learning_rate'])}"
    seconds = f"Seconds per epoch, {duration(sum(e['seconds'] for e in epochs))} in all"
    return [
        Chart("loss", x, "epoch", pair("loss"), loss, chosen, kept),
        Chart("accuracy", x, "epoch", pair("accuracy"), accuracy, chosen, kept, percent=True),
        Chart("rate", x, "epoch", [column("learning_rate", "learning rate")], rate, from_zero=True),
        Chart("seconds", x, "epoch", [column("seconds", "seconds")], seconds, from_zero=True),
    ]


def _past_chart(past: Sequence[Mapping[str, Any]]) -> Chart:
    accuracy = [values["accuracy"] for values in past]
    line = Line("test accuracy", accuracy)
    description = f"Test accuracy of the last {len(past)} runs, this one last at {percent(accuracy[-1])}"
    return Chart("past", range(1, len(past) + 1), "run, this one last", [line], description, percent=True)
