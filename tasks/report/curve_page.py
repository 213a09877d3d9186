"""The page of a learning curve: one file that loads nothing, in the style of the report."""

from __future__ import annotations

from collections.abc import Sequence

from storage.records import Finding, RunRecord, to_json
from storage.words import counted
from tasks.diagnosing.learning_curve import Point, Summary, instead, summaries
from tasks.report import figures, rendering, sanitize
from tasks.report.diagnosis import to_try
from tasks.report.figures import Chart, Line


def page(run: RunRecord, points: Sequence[Point], sentence: str, finding: Finding | None) -> str:
    """Return the page as HTML.

    Args:
        run: whose configuration was trained with.
        points: the trainings.
        sentence: whether more data would help.
        finding: that it would, if it would.
    """
    by_share = summaries(points)
    values = {
        "title": sanitize.presentable(run.facts.title if run.facts else run.dataset),
        "run": run.id,
        "sentence": sentence,
        # Without the store's place, as in a report: the page may be passed on.
        "finding": {**to_json(finding), "remedy": to_try(run, finding.settings), "instead": instead(finding.settings)}
        if finding
        else None,
        "points": to_json(by_share),
        "seeds": counted(len({point.seed for point in points}), "seed"),
    }
    return rendering.learning_curve(values, figures.charts(_charts(by_share)))


def _charts(points: Sequence[Summary]) -> list[Chart]:
    x, last = [point.rows for point in points], points[-1]
    loss = [
        Line("fitted rows", [point.loss for point in points]),
        Line(
            "held-out rows",
            [point.held_out_loss for point in points],
            held_out=True,
            intervals=[(point.lowest, point.highest) for point in points],
        ),
    ]
    accuracy = [
        Line("fitted rows", [point.accuracy for point in points]),
        Line("held-out rows", [point.held_out_accuracy for point in points], held_out=True),
    ]
    of_loss = f"Loss by number of fitted rows; on the held-out rows it ends at {rendering.number(last.held_out_loss)}"
    ends = rendering.percent(last.held_out_accuracy)
    of_accuracy = f"Accuracy by number of fitted rows; on the held-out rows it ends at {ends}"
    return [
        Chart("loss", x, "fitted rows", loss, of_loss),
        Chart("accuracy", x, "fitted rows", accuracy, of_accuracy, percent=True),
    ]
