"""`idxflow tune`: search for better training parameters."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.commands.options import (
    AsJson,
    DatasetFile,
    InsecureWorkers,
    Quarantine,
    QuarantineLimit,
    Recipe,
    Settings,
    Source,
    StoreFolder,
    Workers,
    words,
)
from flows.settings import silence_prefect
from flows.terminal.output import print_json
from storage.workers.address import INSECURE_VARIABLE

if TYPE_CHECKING:
    from flows.tuning.request import StudyRequest


def tune(
    dataset: str = "digits",
    *,
    trials: Annotated[
        int, Parameter(help="Trials of the study, with those that it has already.", validator=Number(gte=1))
    ] = 30,
    timeout: Annotated[
        str | None, Parameter(help="Begin no trial after this time, such as `90s`, `15m` or `2h`. Default: no limit.")
    ] = None,
    at_once: Annotated[
        int | None,
        Parameter(
            help="Trials at a time, each in a process of its own. Default: 1, or as many as there are workers.",
            validator=Number(gte=1),
        ),
    ] = None,
    seeds: Annotated[
        int,
        Parameter(
            help="Train each trial so many times, with other seeds and held-out rows; their mean counts.",
            validator=Number(gte=1, lte=100),
        ),
    ] = 1,
    space: Annotated[
        str | None,
        Parameter(help="File (TOML) with the parameters to search, see docs/how-to/tune.md. Default: a broad space."),
    ] = None,
    sampler: Annotated[str, Parameter(help="What proposes the next trial: `tpe`, `random` or `grid`.")] = "tpe",
    pruner: Annotated[
        str, Parameter(help="What ends a trial that is not worth going on: `median`, `halving` or `none`.")
    ] = "median",
    by: Annotated[str, Parameter(help="What trials are compared by, on held-out rows: `accuracy` or `loss`.")] = "loss",
    seed: Annotated[
        int, Parameter(help="Of the sampler: with the same one, the same is proposed.", validator=Number(gte=0))
    ] = 1,
    profile: Recipe = "default",
    set_: Settings = None,
    quarantine: Quarantine = None,
    quarantine_limit: QuarantineLimit = None,
    source: Source = None,
    store: StoreFolder = None,
    workers: Workers = None,
    insecure_workers: InsecureWorkers = False,
    dataset_file: DatasetFile = None,
    as_json: AsJson = False,
) -> int:
    """Search for better training parameters, on held-out rows only.

    Tries one configuration after the other, each a training as `idxflow run` makes it, and keeps the best as the
    profile `tuned` of the data set. The test split is not read. What `--set` fixes is not searched.

    A study that was interrupted goes on when the command is repeated, and with more `--trials` it is extended.

    Examples: `idxflow tune mnist --trials 50 --at-once 2` · `idxflow tune digits --seeds 3 --set epochs=20` ·
    `idxflow tune --dataset-file mine.toml --space space.toml --sampler grid` · then `idxflow run mnist --profile tuned`

    Args:
        dataset: A data set of the catalog: see `idxflow datasets`.
    """
    import os

    from flows.run import Request
    from flows.tuning.request import StudyRequest, seconds

    request = StudyRequest(
        Request(
            dataset,
            dataset_file,
            profile,  # type: ignore[arg-type]
            settings=tuple(set_ or ()),
            source=source,
            store=store,
            quarantine=words(quarantine),
            quarantine_limit=quarantine_limit,
            workers=workers,
            insecure_workers=insecure_workers,
        ),
        trials,
        seconds(timeout) if timeout else None,
        at_once,
        seeds,
        space,
        sampler,
        pruner,
        by,
        seed,
    )
    if insecure_workers:
        os.environ[INSECURE_VARIABLE] = "1"
    return _carried_out(request, as_json)


def _carried_out(request: StudyRequest, as_json: bool) -> int:
    from flows.terminal.console import Console

    # Wrong usage is reported in milliseconds.
    request.resolve()
    started = time.perf_counter()
    # Must precede the import of Prefect, whose tasks are called as functions here.
    silence_prefect()
    with Console(as_json) as console:
        with console.waiting("importing libraries"):
            from flows.pipeline import Directly
            from flows.tuning import leaderboard
            from flows.tuning.course import Course
            from flows.tuning.study import carry_out
            from storage.records import Trial

        so_far: list[Course] = []

        def tell(course: Course, trial: Trial, is_new: bool) -> None:
            so_far[:] = [course]
            console.say(f"{leaderboard.line(course, trial)}{'' if is_new else '  (reused)'}")

        try:
            course = carry_out(request, Directly(), "command line", tell)
        except KeyboardInterrupt:
            for interrupted in so_far:
                console.table([*leaderboard.table(interrupted)])
                console.say(leaderboard.sentence(interrupted), "yellow")
            raise
        console.table([*leaderboard.table(course)])
        console.say(leaderboard.sentence(course), "bold green" if course.ranking else "yellow")
        if course.ranking:
            console.say(f"report {course.report}")
            console.say(f"to use it: {course.request.tuned_run().command('run')}")
    console.check_printed(f"the study itself: {leaderboard.sentence(course)}")
    if as_json:
        print_json(leaderboard.to_json_value(course, time.perf_counter() - started))
    return 0 if course.ranking else 1
