"""`idxflow runs`: the runs of a data set, and what differs between two of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from flows.commands.figures import PICTURES, draw_to
from flows.commands.options import AsJson, Limit, StoreFolder
from flows.commands.output import destination, remark, say, say_json, say_table
from flows.commands.registry import Place, open_place, remark_older
from flows.endings import settle
from storage.errors import ConfigError
from storage.ledger import run_of
from storage.words import meant, written

if TYPE_CHECKING:
    from storage.records import RunRecord

LATEST = 5
"""Runs that are named where another was asked for."""
SHOWN = 10
"""Flipped images of each kind that are listed; JSON has all."""
_FLIPPED = {"right_to_wrong": "right→wrong", "wrong_to_right": "wrong→right"}

app = App(name="runs", help="List the runs of a data set, or compare two of them.")


@app.command(name="list")
def list_runs(
    dataset: str,
    *,
    limit: Limit = 20,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """List the runs of a data set, newest first: time, id, outcome, version, test accuracy, duration, who asked.

    Args:
        dataset: A data set of the store.
    """
    place = open_place(dataset, store)
    settle(place.store, dataset)
    told = [_told(values) for values in islice(place.ledger.newest("runs"), limit)]
    if as_json:
        return say_json(told)
    say_table(map(_cells, told))
    if not told:
        say(f"{dataset}: no run yet")
    remark_older("runs", len(told), len(place.ledger.names("runs")))
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
    """Show the differences between two runs: inputs, scores, and test images whose answer flipped.

    If both used the same test images, their answers are also compared image by image (McNemar test, B against A).

    Args:
        dataset: A data set of the store.
        a: A run's id or the beginning of one, `latest` or `champion`.
        b: The run to compare with.
    """
    from tasks.report.comparison import compare
    from tasks.report.past_runs import run_record

    place = open_place(dataset, store)
    first, second = find_run(place, a), find_run(place, b)
    file = destination("--figure", figure, PICTURES, place.store) if figure else None
    with place.store.in_use(dataset), quiet():
        records = run_record(place.store, first), run_record(place.store, second)
        found = compare(place.store, *records)
        drawn = _draw(file, records, found["flips"]) if file else False
    if as_json:
        return say_json(found)
    _show(found)
    if file:
        say(f"picture        {figure}" if drawn else "picture        none: no image is known to have flipped")
    return 0


def find_run(place: Place, text: str) -> dict[str, Any]:
    """Return what the ledger has of the run that an id, the beginning of one, `latest` or `champion` names.

    Raises:
        ConfigError: there is no such run, or there are several.
    """
    settle(place.store, place.dataset)
    runs = [run_of(name) for name in place.ledger.names("runs")]
    if not runs:
        raise ConfigError(f"expected a run of {place.dataset} in the ledger; found none yet; run it: {place.remedy}")
    wanted = runs[-1] if text == "latest" else _champions(place) if text == "champion" else text
    matching = (
        [wanted] if wanted in runs else [*dict.fromkeys(run for run in runs if wanted and run.startswith(wanted))]
    )
    found = place.ledger.find("runs", matching[0]) if len(matching) == 1 else None
    if found:
        return found
    latest = ", ".join(runs[: -LATEST - 1 : -1])
    if matching:
        raise ConfigError(
            f"expected the beginning of one run's id; {wanted[:40]!r} begins {len(matching)} of {place.dataset}: "
            f"{', '.join(matching[: -LATEST - 1 : -1])}; type more of it"
        )
    raise ConfigError(
        f"expected a run of {place.dataset}, by its id, the beginning of one, `latest` or `champion`; "
        f"found {wanted[:40]!r}{_meant(wanted, runs)}; give one of these, the latest: {latest}"
    )


def _meant(text: str, runs: Sequence[str]) -> str:
    # The ids of a day are alike themselves.
    return meant(text, ("latest", "champion")) or meant(text, {run[: len(text)] for run in runs}, alike=0.85)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings about what cannot be read from the terminal: the commands say it themselves, in one line."""
    logger, handler = logging.getLogger("tasks"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _champions(place: Place) -> str:
    champion = place.registry.champion()
    if champion is None:
        raise ConfigError(f"expected a champion of {place.dataset}; found none yet; run it: {place.remedy}")
    return champion.run


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
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
        "sentence": values.get("sentence"),
    }


def _cells(run: Mapping[str, Any]) -> tuple[str, str]:
    version = f"v{run['version']}" if run["version"] else "–"
    accuracy, seconds = run["test_accuracy"], run["seconds"]
    return (
        f"{_clock(run['time'])}  {run['run']!s:20}  {run['state']!s:11}",
        f"{version:4}  {f'{accuracy:.2%}' if isinstance(accuracy, float) else '–':>7}  "
        f"{f'{seconds:,.1f} s' if isinstance(seconds, float) else '–':>10}  {run['asked_by'] or 'unknown'}",
    )


def _clock(text: Any) -> str:
    try:
        return f"{datetime.fromisoformat(str(text)).astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return f"{'unknown':19}"


def _draw(file: Path, records: tuple[RunRecord, RunRecord], flips: dict[str, Any] | None) -> bool:
    """Draw the flipped images, if there are any; returns whether there were."""
    from tasks.report.comparison import images, pictured

    shown = pictured(flips) if flips else []
    if shown:
        captions = [[f"row {one['row']:,}", f"labelled {one['label']}", f"{one['a']} → {one['b']}"] for one in shown]
        draw_to(file, images(*records, [one["row"] for one in shown]), captions)
    return bool(shown)


def _show(found: Mapping[str, Any]) -> None:
    rows = [*_differing(found)]
    say_table(rows)
    lines = [*_compared(found)]
    for line in lines:
        say(line)
    if not rows and not lines:
        say(f"runs {found['a']} and {found['b']} do not differ" + (" in what is left" if found["missing"] else ""))
    for sentence in found["missing"]:
        remark(sentence)


def _differing(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for one in found["differences"]:
        yield f"{one['part']:14} {one['name']:32}", f"{_brief(one['a'])} → {_brief(one['b'])}"
    for name, change in found["accuracy"].items():
        yield f"{'accuracy':14} {name:32}", f"{_percent(change['a'])} → {_percent(change['b'])}"
    for score in found["classes"] or ():
        name = f"{score['class'][:20]} ({score['rows']:,} images)"
        yield f"{'recall':14} {name:32}", f"{_percent(score['a'])} → {_percent(score['b'])}"


def _compared(found: Mapping[str, Any]) -> Iterator[str]:
    from tasks.report.phrases import counted

    paired, flips = found["paired"], found["flips"]
    if not paired or not paired["differing"]:
        return
    yield (
        f"{'paired test':14} of {counted(paired['rows'], 'test image')}, only A gets {paired['only_a']:,} right, "
        f"only B {paired['only_b']:,}: p {paired['p_value']:.2g} (two-sided); B is {100 * paired['low']:+.2f} to "
        f"{100 * paired['high']:+.2f} points better ({paired['confidence']:.0%} interval)"
    )
    for kind, name in _FLIPPED.items():
        rows = flips[kind]["rows"]
        yield f"{name:14} {counted(flips[kind]['count'], 'image')}"
        for one in rows[:SHOWN]:
            yield f"{'':14} row {one['row']:,}: {one['label']}, answered {one['a']} → {one['b']}"
        if len(rows) > SHOWN:
            yield f"{'':14} and {len(rows) - SHOWN:,} more, which --json lists"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.2%}"


def _brief(value: Any) -> str:
    text = written(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{16,}", text) else text if len(text) <= 60 else f"{text[:59]}…"
