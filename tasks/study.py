"""Publish the report of a study: one HTML page, and the same content as JSON.

A study that is extended gets another report, `8-studies/<key>-report-<trials>`. The page is self-contained, as that of
a run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage.records import HTML, Done, FolderEntry, Report, Study, Trial
from storage.store import Plan, Store
from tasks.report import figures, rendering, trial_pictures
from tasks.report.figures import Chart, Line
from tasks.report.phrases import duration
from tasks.report.trial_pictures import Axis
from tasks.tuning.optuna_study import By, importance, is_better, ranked, score
from tasks.tuning.space import parsed
from tasks.ui import artifacts
from tasks.ui.steps import log_step

SCHEMA = 1
"""Schema version of `report.json` of a study."""
CURVES = 10
"""Trials whose learning curves are shown."""
_AXES = 12
"""Parameters of the parallel coordinates, the most important ones."""

_log = logging.getLogger(__name__)


@task(task_run_name="publish study", cache_policy=NO_CACHE)
def publish_study(
    store: Store, dataset: str, study: Study, trials: Sequence[Trial], summary: Mapping[str, Any]
) -> Done[Report]:
    """Write the report of a study as far as it has come, or find it, and show it in the Prefect UI.

    Args:
        trials: in the order of their numbers; at least one is complete.
        summary: what `--json` prints of the study, without what depends on the place of the store.
    """
    count = len(trials)
    name = f"{study.entry.key}-report-{count:06d}"
    parameters = {"study": study.entry.key, "trials": count}
    plan = Plan(dataset, "tune", "report", parameters=parameters, name=name)
    place = f"{store.entry_key(dataset, 'tune', name)}/{HTML}"
    values = content(study, trials, summary)

    def make(folder: Path) -> Report:
        report = Report(FolderEntry(folder))
        report.json.write_text(json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1), encoding="utf-8")
        report.html.write_text(rendering.study_html(values, pictures(values, trials)), encoding="utf-8")
        return report

    result = store.get_or_make(plan, Report, make, lambda _: place)
    rows = [{"trial": t["number"], "score": f"{t['score']:.4f}", **_texts(t["values"])} for t in values["best"]]
    artifacts.show_table(artifacts.key("study", dataset), rows, values["sentence"])
    log_step(_log, result.step)
    return result


def content(study: Study, trials: Sequence[Trial], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the report as plain values (docs/how-to/tune.md)."""
    by: By = "accuracy" if study.by == "accuracy" else "loss"
    space = parsed(study.space, "the space of the study")
    best = {trial.number: place for place, trial in enumerate(ranked(trials, by), 1)}
    by_number = {each["number"]: each for each in summary["trials"]}
    return {
        "schema": SCHEMA,
        **summary,
        "space": study.space,
        "config": study.config,
        "how": {name: getattr(study, name) for name in ("sampler", "pruner", "by", "seed", "seeds")},
        "rows": {"fitted": study.fitted_rows, "held_out": study.held_out_rows},
        "importance": importance(trials, space, by),
        "best": [{"place": place, **by_number[number]} for number, place in best.items()][:CURVES],
        "cost": round(sum(trial.seconds for trial in trials), 3),
        "curves": {str(number): list(_trial(trials, number).curve) for number in [*best][:CURVES]},
    }


def pictures(values: Mapping[str, Any], trials: Sequence[Trial]) -> dict[str, str]:
    """Return the pictures of the page as SVG, by name: `history`, `seconds`, `coordinates`, `curves`."""
    by: By = values["by"]
    ranking = ranked(trials, by)
    drawn = {
        "history": figures.chart(_history(trials, by)),
        "seconds": figures.chart(_seconds(trials)),
        "coordinates": trial_pictures.coordinates(
            _axes(values, ranking, by), f"The values of {len(ranking)} complete trials; the best is drawn thickest"
        ),
    }
    lines = [trial.curve for trial in ranking[:CURVES] if trial.curve]
    if lines:
        description = f"Held-out {by} of the best {len(lines)} trials by epoch"
        drawn["curves"] = trial_pictures.curves(lines, f"held-out {by}", by == "accuracy", description)
    return drawn


def _trial(trials: Sequence[Trial], number: int) -> Trial:
    return next(trial for trial in trials if trial.number == number)


def _history(trials: Sequence[Trial], by: By) -> Chart:
    scores = [score(trial, by) if trial.state == "complete" else None for trial in trials]
    so_far: list[float | None] = []
    for value in scores:
        last = so_far[-1] if so_far else None
        so_far.append(value if last is None or (value is not None and is_better(value, last, by)) else last)
    lines = [Line("trials", scores, joined=False), Line("best so far", so_far, held_out=True, points=False)]
    end = rendering.percent(so_far[-1]) if by == "accuracy" else rendering.number(so_far[-1])
    numbers = [trial.number for trial in trials]
    return Chart(
        "history", numbers, "trial", lines, f"Score of each trial; the best is {end}", percent=by == "accuracy"
    )


def _seconds(trials: Sequence[Trial]) -> Chart:
    seconds = [trial.seconds for trial in trials]
    description = f"Seconds of each trial, {duration(sum(seconds))} in total"
    return Chart(
        "seconds",
        [trial.number for trial in trials],
        "trial",
        [Line("seconds", seconds, joined=False)],
        description,
        from_zero=True,
    )


def _axes(values: Mapping[str, Any], ranking: Sequence[Trial], by: By) -> list[Axis]:
    text = "{:.2%}" if by == "accuracy" else "{:.3g}"
    axes = [trial_pictures.of_numbers(by, [score(trial, by) for trial in ranking], text=text)]
    searched = dict.fromkeys([*values["importance"], *values["space"]])
    for name in [name for name in searched if any(name in trial.values for trial in ranking)][:_AXES]:
        # Another optimizer may not take it.
        found, table = [trial.values.get(name) for trial in ranking], values["space"][name]
        known = [value for value in found if value is not None]
        if "choices" in table or not all(isinstance(value, int | float) for value in known):
            axes.append(trial_pictures.of_choices(name, found, table.get("choices", ())))
        else:
            log = bool(table.get("log")) and min(known) > 0
            axes.append(trial_pictures.of_numbers(name, found, log))
    return axes


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: rendering.number(value) for name, value in values.items()}
