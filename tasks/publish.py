"""Publish the report of a run: one HTML page, the same content as JSON, and the artifacts in the Prefect UI.

The page is self-contained: no script, no other file, no network. `tasks.report.document` builds it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from urllib.parse import quote

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.datasets.catalog import Dataset
from storage.records import HTML, Done, Finding, FolderEntry, Report, RunRecord, from_json
from storage.registry import Registry
from storage.store import FOLDERS, Plan
from tasks.report import past_runs, rendering
from tasks.report.document import Document, build
from tasks.ui import artifacts
from tasks.ui.markdown import escaped
from tasks.ui.steps import log_step

_log = logging.getLogger(__name__)


@task(task_run_name="publish", cache_policy=NO_CACHE)
def publish(registry: Registry, dataset: Dataset, run: RunRecord) -> Done[Report]:
    """Write the report of `run`, even if the run failed, and show it in the Prefect UI.

    Evidence that can no longer be read is left out. The first report of a run is kept; artifacts are published
    each time.

    Raises:
        StoreError: the report cannot be written.
    """
    store = registry.store
    plan = Plan(dataset.name, "publish", name=run.id, parameters={"run": run.id})
    place = f"{store.entry_key(dataset.name, 'publish', run.id)}/{HTML}"
    document = compose(registry, dataset, run)
    result = store.get_or_make(plan, Report, lambda folder: write_report(folder, document), lambda _: place)
    _show(document, place)
    log_step(_log, result.step)
    return result


def point_to_report(name: str, sentence: str, version: str, report: Report) -> None:
    """Show in the Prefect UI, for a run that found nothing new, where the existing report of `version` is."""
    place = f"{name}/{FOLDERS['publish']}/{report.entry.key}/{HTML}"
    text = f"# Nothing new\n\n{escaped(sentence)}\n\nThe report of {version}, in the store: {escaped(place)}\n"
    artifacts.show_markdown(artifacts.key("report", name), text, f"Nothing new; see the report of {version}")
    _show_link(name, report.entry.key)


def compose(registry: Registry, dataset: Dataset, run: RunRecord) -> Document:
    """Return the report of a run of `dataset`, adding facts on the data set and the environment that the run lacks."""
    facts, environment = run.facts or past_runs.facts(dataset), run.environment or past_runs.environment()
    run = dataclasses.replace(run, facts=facts, environment=environment)
    return build(registry, run, {str(dataset.manifest.parent): "…"})


def write_report(folder: Path, document: Document) -> Report:
    """Write `report.html` and `report.json` into `folder`."""
    training = document.values["training"] or {"findings": ()}
    found = tuple(from_json(Finding, values) for values in training["findings"])
    report = Report(FolderEntry(folder), found)
    report.json.write_text(document.json(), encoding="utf-8")
    report.html.write_text(document.html(), encoding="utf-8")
    return report


def _show(document: Document, place: str) -> None:
    identity, verdict = document.values["run"], document.values["verdict"]
    name, description = identity["dataset"], f"{verdict['headline']}; run {identity['id']}"
    artifacts.show_markdown(artifacts.key("report", name), document.markdown(place), description)
    _show_link(name, identity["id"])
    if rows := document.metrics():
        artifacts.show_table(artifacts.key("metrics", name), rows, f"Test results per class; run {identity['id']}")


def _show_link(dataset: str, run: str) -> None:
    """Link to the report of a run in the pages, if it is known where they are."""
    if site := rendering.link(os.environ.get(artifacts.SITE_VARIABLE, "")):
        url = f"{site.rstrip('/')}/{quote(dataset, safe='')}/runs/{quote(run, safe='')}"
        artifacts.show_link(artifacts.key("page", dataset), url, f"Report of run {run}", "The report, and all else")
