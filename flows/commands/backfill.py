"""`idxflow backfill`: a run for each day's data as it was."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from flows.commands.options import AsJson, DatasetFile, InsecureWorkers, Recipe, Settings, Source, StoreFolder, Workers
from flows.commands.several import carry_out
from flows.terminal.output import remark
from storage.words import counted


def backfill(
    dataset: str = "digits",
    *,
    from_: Annotated[str, Parameter(name="--from", help="The first day, such as 2026-11-01.")],
    to: Annotated[str, Parameter(help="The last day possible, such as 2026-11-30.")],
    every: Annotated[str, Parameter(help="Days between two runs, such as `1d` or `7d`.")] = "1d",
    profile: Recipe = "default",
    set_: Settings = None,
    source: Source = None,
    store: StoreFolder = None,
    workers: Workers = None,
    insecure_workers: InsecureWorkers = False,
    dataset_file: DatasetFile = None,
    as_json: AsJson = False,
) -> int:
    """Retrain once for each of many days, on the data as it was then.

    Each run uses the archives dated that day or earlier, of which the manifest's window selects the newest, as
    `idxflow run --as-of DAY` does. Runs go one after the other, from the first day to the last. A day that adds no
    archive has no run. Each run records its day, and a table at the end shows the results.

    Repeat the command to resume: finished work is reused.

    Example: `idxflow backfill --dataset-file letters/letters.toml --from 2026-11-01 --to 2026-11-30 --every 7d`

    Args:
        dataset: A data set of the catalog; `--dataset-file` names one of your own, whose archives have dates.
    """
    from flows.backfill import planned
    from flows.run import Request
    from flows.several import check_store
    from storage.datasets.chosen import day_of

    request = Request(
        dataset,
        dataset_file,
        profile,  # type: ignore[arg-type]
        settings=tuple(set_ or ()),
        source=source,
        store=store,
        workers=workers,
        insecure_workers=insecure_workers,
    )
    request.who_computes()
    check_store(request)
    first, last = day_of(from_, "--from"), day_of(to, "--to")
    plan = planned(request, first, last, every)
    if plan.same and not as_json:
        days = counted(len(plan.same), "day has", "days have")
        remark(f"note: {days} the data of an earlier one, and no run: first {next(iter(plan.same))}")
    again = request.command("backfill", "--from", first.isoformat(), "--to", last.isoformat(), "--every", every)
    return carry_out(plan.requests, 1, as_json, {"same": plan.same}, again)
