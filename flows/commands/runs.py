"""`idxflow runs`: the runs of a data set, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from flows.commands.destination import PICTURES, destination, write_picture
from flows.commands.options import AsJson, Limit, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.endings import settle
from flows.terminal.output import print_json, print_line, print_table, remark, remark_older
from flows.terminal.streams import without_log_warnings
from flows.terminal.text import clock, percent
from storage.words import brief, counted

if TYPE_CHECKING:
    from storage.records import RunRecord

SHOWN = 10
"""How many flipped images of each kind are listed; JSON has all."""
_FLIPPED = {"right_to_wrong": "right→wrong", "wrong_to_right": "wrong→right"}

app = App(name="runs", help="List the runs of a data set, or compare two of them.")


@app.command(name="list")
def list_runs(dataset: str, *, limit: Limit = 20, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """List the runs of a data set, newest first.

    Each line has the time, id, outcome, version, test accuracy and duration of a run, and who asked for it.

    Example: `idxflow runs list mnist --limit 5`

    Args:
        dataset: A data set of the store.
    """
    data = DatasetInStore.open(dataset, store)
    settle(data.store, dataset)
    runs = [_values(record) for record in islice(data.ledger.newest("runs"), limit)]
    if as_json:
        return print_json(runs)
    print_table(map(_cells, runs))
    if not runs:
        print_line(f"{dataset}: no run yet")
    remark_older("runs", len(runs), len(data.ledger.names("runs")))
    return 0


@app.command
def diff(
    dataset: str,
    a: str,
    b: str,
    *,
    figure: Annotated[Path | None, Parameter(help="Draw up to 25 flipped images to a .png or .svg file.")] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Show what differs between two runs.

    Compares inputs, scores, and predictions. If both used the same test images, the predictions are compared
    image by image (McNemar test, B against A).

    Example: `idxflow runs diff mnist champion latest --figure flipped.png`

    Args:
        dataset: A data set of the store.
        a: A run's id or the beginning of one, `latest`, `champion`, or a version such as `v3`.
        b: The run to compare with.
    """
    from tasks.report.comparison import compare
    from tasks.report.past_runs import run_record

    data = DatasetInStore.open(dataset, store)
    first, second = data.run(a), data.run(b)
    file = destination("--figure", figure, PICTURES, data.store) if figure else None
    with data.store.in_use(dataset), without_log_warnings():
        records = run_record(data.store, first), run_record(data.store, second)
        comparison = compare(data.store, *records)
        drawn = _draw(file, records, comparison["flips"]) if file else False
    if as_json:
        return print_json(comparison)
    _print(comparison)
    if file:
        print_line(f"picture        {figure}" if drawn else "picture        none: no flipped images known")
    return 0


def _values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": values.get("run"),
        "time": values.get("started") or values.get("time"),
        "state": values.get("state"),
        "version": values.get("version"),
        "test_accuracy": values.get("test_accuracy"),
        "train_accuracy": values.get("train_accuracy"),
        "seconds": values.get("seconds"),
        "asked_by": values.get("asked_by"),
        "profile": values.get("profile"),
        "as_of": values.get("as_of"),
        "sentence": values.get("sentence"),
    }


def _cells(run: Mapping[str, Any]) -> tuple[str, str]:
    version = f"v{run['version']}" if run["version"] else "–"
    accuracy, seconds = run["test_accuracy"], run["seconds"]
    return (
        f"{clock(run['time'])}  {run['run']!s:20}  {run['state']!s:11}",
        f"{version:4}  {f'{accuracy:.2%}' if isinstance(accuracy, float) else '–':>7}  "
        f"{f'{seconds:,.1f} s' if isinstance(seconds, float) else '–':>10}  {run['asked_by'] or 'unknown'}"
        + (f", as of {run['as_of']}" if run["as_of"] else ""),
    )


def _draw(file: Path, records: tuple[RunRecord, RunRecord], flips: dict[str, Any] | None) -> bool:
    """Draw the flipped images, if there are any; return whether there were."""
    from tasks.report.comparison import images, pictured

    shown = pictured(flips) if flips else []
    if shown:
        captions = [
            [f"row {flip['row']:,}", f"labelled {flip['label']}", f"{flip['a']} → {flip['b']}"] for flip in shown
        ]
        write_picture(file, images(*records, [flip["row"] for flip in shown]), captions)
    return bool(shown)


def _print(comparison: Mapping[str, Any]) -> None:
    rows = [*_differing(comparison)]
    print_table(rows)
    lines = [*_compared(comparison)]
    for line in lines:
        print_line(line)
    if not rows and not lines:
        limits = " in what is left" if comparison["missing"] else ""
        print_line(f"runs {comparison['a']} and {comparison['b']} do not differ{limits}")
    for sentence in comparison["missing"]:
        remark(sentence)


def _differing(comparison: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for difference in comparison["differences"]:
        yield f"{difference['part']:14} {difference['name']:32}", f"{brief(difference['a'])} → {brief(difference['b'])}"
    for name, change in comparison["accuracy"].items():
        yield f"{'accuracy':14} {name:32}", f"{percent(change['a'])} → {percent(change['b'])}"
    for score in comparison["classes"] or ():
        name = f"{score['class'][:20]} ({score['rows']:,} images)"
        yield f"{'recall':14} {name:32}", f"{percent(score['a'])} → {percent(score['b'])}"
    for share in comparison["behaviour"] or ():
        yield f"{'behaviour':14} {share['name']:32}", f"{percent(share['a'])} → {percent(share['b'])}"


def _compared(comparison: Mapping[str, Any]) -> Iterator[str]:
    paired, flips = comparison["paired"], comparison["flips"]
    if not paired or not paired["differing"]:
        return
    yield (
        f"{'paired test':14} of {counted(paired['rows'], 'test image')}, {paired['only_a']:,} only the first run gets "
        f"right, {paired['only_b']:,} only the second (two-sided p {paired['p_value']:.2g}); the second is "
        f"{100 * paired['low']:+.2f} to {100 * paired['high']:+.2f} points better ({paired['confidence']:.0%} interval)"
    )
    for kind, name in _FLIPPED.items():
        rows = flips[kind]["rows"]
        yield f"{name:14} {counted(flips[kind]['count'], 'image')}"
        for flip in rows[:SHOWN]:
            yield f"{'':14} row {flip['row']:,}: {flip['label']}, predicted {flip['a']} → {flip['b']}"
        if len(rows) > SHOWN:
            yield f"{'':14} and {len(rows) - SHOWN:,} more, which --json lists"
