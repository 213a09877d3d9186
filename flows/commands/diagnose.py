"""`idxflow diagnose`: what went wrong in a training, and whether more data would help."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.commands.destination import destination, write
from flows.commands.options import AsJson, InsecureWorkers, StoreFolder, Workers
from flows.dataset_in_store import DatasetInStore
from flows.terminal.output import print_json, print_line, print_table, remark
from flows.terminal.streams import without_log_warnings
from storage.errors import ConfigError
from storage.records import Finding, to_json

if TYPE_CHECKING:
    from flows.trainings import Curve, Diagnosis

_SEEDS = 3


def diagnose(
    dataset: str,
    run: str | None = None,
    *,
    learning_curve: Annotated[
        bool,
        Parameter(
            negative="",
            help="Train on 10, 20, 40, 70 and 100% of the fitted rows, and say whether more data would help. Each "
            "takes about as long as the training of the run. Trainings are kept in the store, and reused.",
        ),
    ] = False,
    seeds: Annotated[
        int | None,
        Parameter(
            help="With --learning-curve: seeds to train with, from that of the run on. Default: 3.",
            validator=Number(gte=1, lte=100),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(
            help="With --learning-curve: the .html file for the charts. Default: `DATASET-learning-curve.html` in the "
            "current folder; with --json, none."
        ),
    ] = None,
    workers: Workers = None,
    insecure_workers: InsecureWorkers = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Say what went wrong in a training, and what to try.

    Rules look at the losses, the gradients, the units and the held-out rows of the training: docs/diagnosis.md has
    them, with their sources. Each finding comes with one command to try. The test split is not read.

    Examples: `idxflow diagnose mnist` · `idxflow diagnose mnist champion --json` ·
    `idxflow diagnose mnist --learning-curve --workers 2`

    Args:
        dataset: A data set of the store.
        run: A run's id or the beginning of one, `latest`, `champion`, or `v3`. Default: the newest run with a training.
    """
    from flows.trainings import diagnosed

    if not learning_curve:
        _check_unused({"--seeds": seeds, "--out": out, "--workers": workers})
    data = DatasetInStore.open(dataset, store)
    file = None
    if learning_curve and (out or not as_json):
        file = destination("--out", out or Path(f"{dataset}-learning-curve.html"), (".html",), data.store)
    with data.store.in_use(dataset), without_log_warnings():
        diagnosis = diagnosed(data, run)
    if not as_json:
        _print(data, diagnosis)
    curve = _curve(data, diagnosis, seeds or _SEEDS, (workers, insecure_workers)) if learning_curve else None
    if curve and file:
        from tasks.report.curve_page import page

        write(file, page(diagnosis.record, curve.points, curve.sentence, curve.finding).encode())
    if as_json:
        return print_json({"dataset": dataset, **_to_json(diagnosis, curve), "page": str(file) if file else None})
    if curve:
        _print_curve(curve)
        print_line(f"charts {file}")
    return 0


def _check_unused(options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(
            f"expected --learning-curve with {', '.join(given)}; found none, and without it nothing is trained; add "
            f"it, or leave {given[0]} out"
        )


def _curve(data: DatasetInStore, diagnosis: Diagnosis, seeds: int, workers: tuple[str | None, bool]) -> Curve:
    from flows.terminal.bars import shown
    from flows.trainings import learning_curve
    from storage.workers.opening import workers_for

    with shown():
        return learning_curve(data, diagnosis, seeds, workers_for(*workers), remark)


def _print(data: DatasetInStore, diagnosis: Diagnosis) -> None:
    model = diagnosis.model
    print_line(
        f"{data.name}, run {diagnosis.record.id}: {model.epochs_run:,} epochs, {model.train_accuracy:.2%} of the "
        "training rows right"
    )
    if not diagnosis.is_judged:
        print_line(
            "its history, its configuration or the shares of its classes cannot be read, so no rule could judge it"
        )
    elif not diagnosis.findings:
        print_line("no rule found a fault")
    _print_findings(diagnosis.findings)


def _print_findings(findings: Iterable[Finding]) -> None:
    for finding in findings:
        print_line(f"{finding.name}: {finding.sentence}")
        print_line(f"    the rule: {finding.source}")
        print_line("    to try:")
        print_line(f"        {finding.remedy}")


def _print_curve(curve: Curve) -> None:
    from tasks.diagnosing.learning_curve import instead, summaries

    print_table(
        (
            f"{point.share:>4.0%} of the rows  {point.rows:>9,} fitted",
            f"held-out loss {point.held_out_loss:.4f}, accuracy {point.held_out_accuracy:7.2%}",
            f"fitted loss {point.loss:.4f}, accuracy {point.accuracy:7.2%}",
        )
        for point in summaries(curve.points)
    )
    print_line(curve.sentence)
    if curve.finding:
        print_line(f"    to try where more rows are not to be had: {instead(curve.finding.settings)}")
        print_line(f"        {curve.finding.remedy}")


def _to_json(diagnosis: Diagnosis, curve: Curve | None) -> dict[str, object]:
    findings = (*diagnosis.findings, *((curve.finding,) if curve and curve.finding else ()))
    of_curve = curve and {
        "points": to_json(curve.points),
        "more_data_helps": curve.helps,
        "fall_by_doubling": curve.fall,
        "sentence": curve.sentence,
    }
    return {
        "run": diagnosis.record.id,
        "judged": diagnosis.is_judged,
        "findings": to_json(findings),
        "learning_curve": of_curve,
    }
