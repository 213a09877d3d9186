"""The flow `tune`: what `idxflow tune` does, as a run in Prefect that can be deployed and scheduled."""

from __future__ import annotations

import logging
import time
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from flows.pipeline import ByPrefect, Caller
from flows.retrain import Share, Source, StorePlace, WorkersName, describe_run, parameters_of, who_asked
from flows.run import Request
from flows.schedule import SUPERSEDED, CatchUp, superseded
from flows.settings import LOGGERS, relax_garbage_collection
from flows.tuning import leaderboard
from flows.tuning.course import Course
from flows.tuning.request import MOST_AT_ONCE, MOST_TRIALS, TRIALS, StudyRequest
from flows.tuning.study import carry_out
from storage.datasets.catalog import BadRow
from storage.datasets.training import Profile, TrainingOverrides
from storage.errors import IdxflowError
from storage.records import Trial, to_json
from tasks.tuning.optuna_study import By, Pruner, Sampler
from tasks.ui import artifacts

_log = logging.getLogger(__name__)


@flow(name="tune", flow_run_name="{dataset}")
def tune(
    dataset: str = "digits",
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = TRIALS,
    timeout_seconds: Annotated[float, Field(gt=0)] | None = None,
    at_once: Annotated[int, Field(ge=1, le=MOST_AT_ONCE)] | None = None,
    seeds: Annotated[int, Field(ge=1, le=100)] = 1,
    space: str | None = None,
    sampler: Sampler = "tpe",
    pruner: Pruner = "median",
    by: By = "loss",
    seed: Annotated[int, Field(ge=0)] = 1,
    profile: Profile = "default",
    training: TrainingOverrides | None = None,
    source: Source = None,
    store: StorePlace = None,
    dataset_file: str | None = None,
    catch_up: CatchUp = "latest",
    quarantine: list[BadRow] | None = None,
    quarantine_limit: Share | None = None,
    workers: WorkersName = None,
) -> State[dict[str, Any]]:
    """Search for better training parameters of one data set, on held-out rows only.

    The best is the profile `tuned` of the data set: a run of `retrain` with it makes a candidate for the gate. A study
    goes on where it was interrupted, and with more trials it is extended.

    Args:
        dataset: Name of a data set of the catalog: digits (embedded), mnist, kmnist, emnist-letters, …
        trials: How many trials the study has in the end, with those that it has already.
        timeout_seconds: Begin no trial after so many seconds. Default: no limit.
        at_once: How many trials at a time, each in a process of its own. Default: 1, or as many as there are workers.
        seeds: Train each trial so many times, with other seeds and held-out rows; their mean counts.
        space: File (TOML), where the run is, with the parameters to search and their ranges. Default: a broad space.
        sampler: What proposes the next trial: tpe (learns from the trials so far), random, or grid (all combinations).
        pruner: What ends poor trials early: median (worse than half of them), halving (keeps the best quarter), none.
        by: What trials are compared by, on held-out rows: loss or accuracy.
        seed: Random seed of the sampler: the same seed proposes the same trials, one at a time.
        profile: Training recipe before the search: default, tutorial, fast, conv, best, or tuned by an earlier study.
        training: Training parameters with these values in all trials; they are not searched.
        source: Folder or URL (without credentials: these go into IDXFLOW_SOURCE, the default), before the mirrors.
        store: Folder or address of the store. Default: IDXFLOW_STORE, otherwise `store` next to the source code.
        dataset_file: Manifest (TOML) of your own data set; replaces `dataset`.
        catch_up: Runs for scheduled times that were missed: latest (one run makes up for all) or all.
        quarantine: Bad rows to set aside instead of stopping. Default: those that the manifest names.
        quarantine_limit: Largest share of a split's rows to set aside. Default: that of the manifest.
        workers: Who carries out the trials: a number of processes, or the address of a Dask cluster.
    """
    run = Request(
        dataset,
        dataset_file,
        profile,
        parameters_of(training),
        source=source,
        store=store,
        quarantine=None if quarantine is None else tuple(quarantine),
        quarantine_limit=quarantine_limit,
        workers=workers,
    )
    if missed := superseded(catch_up):
        describe_run(f"{dataset} {SUPERSEDED}", SUPERSEDED)
        return Completed(message=missed, data={"state": SUPERSEDED, "sentence": missed})
    request = StudyRequest(run, trials, timeout_seconds, at_once, seeds, space, sampler, pruner, by, seed)
    return studied(request, ByPrefect())


def studied(request: StudyRequest, caller: Caller) -> State[dict[str, Any]]:
    """Carry out a study, and return what it has found as a Prefect state, with what `--json` prints as its data."""
    relax_garbage_collection()
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    started, what = time.perf_counter(), request.run.dataset_file or request.run.dataset
    try:
        course = carry_out(request, caller, who_asked(), _Shown(what))
    except IdxflowError as error:
        _log.error("%s: %s", what, error)
        describe_run(f"{what} failed", "failed")
        return Failed(message=str(error), data={"state": "failed", "error": to_json(error.failure)})
    values = leaderboard.to_json_value(course, time.perf_counter() - started)
    _log.info(values["sentence"])
    ended = Completed if course.ranking else Failed
    describe_run(f"{course.job.dataset.name} {len(course.trials)} trials", values["state"])
    return ended(message=values["sentence"], data=values)


class _Shown:
    """Logs each trial, and moves a bar in the Prefect UI."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._bar: artifacts.ProgressBar | None = None

    def __call__(self, course: Course, trial: Trial, is_new: bool) -> None:
        line = leaderboard.line(course, trial)
        _log.info("%s%s", line, "" if is_new else "  (reused)")
        self._bar = self._bar or artifacts.ProgressBar(
            artifacts.key("trials", course.job.dataset.name), f"Trials of {course.job.dataset.name}"
        )
        done = len(course.trials)
        self._bar.move(100 * done / course.total, f"{done} of {course.total} trials; {leaderboard.sentence(course)}")
