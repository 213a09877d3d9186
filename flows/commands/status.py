"""`idxflow status`: how each data set is doing."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import live
from flows.commands.options import AsJson, StoreFolder
from flows.health import MAX_AGE_DAYS, SHOWN, Health, Overview, ago, overview, span_text, time_of
from flows.terminal.output import print_json, print_line
from flows.terminal.text import minute
from storage.opening import open_store
from storage.store import Store


def status(
    dataset: str | None = None,
    *,
    max_age: Annotated[
        float, Parameter(help="Days without a successful run after which a data set is stale.", validator=Number(gt=0))
    ] = MAX_AGE_DAYS,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Show champion, last runs and next run of each data set.

    Exit code 1 if any data set needs attention: if no run has succeeded for --max-age days, if the last run failed, was
    refused or was cut off, if a run is late because no worker takes it, if there is no champion, if the error budget of
    its test images is used up, or if the last successful run has a time in the future, so that its age is unknown; or
    if an alert could not be delivered.

    Examples: `idxflow status` · `idxflow status mnist --max-age 30`

    Args:
        dataset: Show only this data set.
    """
    from flows.alerts.delivery import troubles

    opened, now = open_store(store), datetime.now(UTC)
    summary = overview(opened, dataset, timedelta(days=max_age), now)
    failing = troubles(opened)
    if as_json:
        healths = [
            {**asdict(health), "live": live.values(health.dataset, health.live) if health.live else None}
            for health in summary.healths
        ]
        alerts = [{"name": name, "problem": problem} for name, problem in failing]
        values = {"schedule": summary.schedule_unknown, "datasets": healths, "alerts": alerts}
        print_json({"store": opened.address, **values})
    else:
        _print(opened, summary, now)
        for name, problem in failing:
            print_line(f"alert {name}: {problem}")
    return 1 if failing or any(health.problems for health in summary.healths) else 0


def _print(store: Store, summary: Overview, now: datetime) -> None:
    for health in summary.healths:
        print_line(f"{health.dataset}: {'needs attention' if health.problems else 'ok'}")
        for label, text in _lines(health, now):
            print_line(f"  {label:<9} {text}")
    if not summary.healths:
        print_line(f"nothing in {store.address} yet; start with `{store.command('run')}`")
    if summary.schedule_unknown:
        print_line(f"the next runs are unknown: {summary.schedule_unknown}")


def _lines(health: Health, now: datetime) -> list[tuple[str, str]]:
    lines = [("problem", problem) for problem in health.problems]
    champion = health.champion
    if champion:
        since = datetime.fromisoformat(champion.since)
        text = f"v{champion.version}, {champion.test_accuracy:.2%} on test, since {minute(since)} ({ago(now - since)})"
        lines.append(("champion", text))
    if health.live:
        lines.append(("live", health.live.sentence))
    if health.drift:
        seen = datetime.fromisoformat(health.drift["time"])
        lines.append(("drift", f"{minute(seen)} ({ago(now - seen)}), {health.drift['sentence']}"))
    if health.budget and health.budget.left and health.budget.is_low:
        lines.append(("budget", health.budget.sentence))
    for label, run in zip(("last run", *[""] * SHOWN), health.runs, strict=False):
        when = time_of(run)
        took = f"{run.seconds:.1f} s" if run.seconds is not None else run.state
        lines.append((label, f"{minute(when)} ({ago(now - when)}), {took}, {run.sentence}"))
    if not health.runs:
        lines.append(("last run", "none yet"))
    if health.next_run:
        due = datetime.fromisoformat(health.next_run)
        lines.append(("next run", f"{minute(due)} ({'late' if due < now else 'in ' + span_text(due - now)})"))
    return lines
