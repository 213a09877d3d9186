"""Studies: each trial is an entry and a training like any other, scored on held-out rows, and a study goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expectations import engine
from flows import pipeline, retrain
from flows.run import Request
from flows.tuning import leaderboard
from flows.tuning.course import Course
from flows.tuning.request import StudyRequest, seconds
from flows.tuning.study import carry_out
from storage.copying import copy
from storage.errors import ConfigError, DamagedEntry, TrainingFailed
from storage.ledger import Ledger
from storage.records import Trial
from storage.retention import collect
from storage.store import Store
from storage.verify import verify
from tests.conftest import TinyFactory
from tests.support import clusters
from tests.support.cloud_stores import Cloud
from tests.support.commands import Command, idxflow

FIXED = ("epochs=3", "batch_size=16", "hidden=[8]")
SPACE = """\
[learning_rate]
low = 0.001
high = 0.5
log = true

[activation]
choices = ["tanh", "relu"]
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.toml"
    path.write_text(SPACE, encoding="utf-8")
    return path


@pytest.fixture
def request_of(tiny: TinyFactory, store: Store, space: Path) -> Callable[..., StudyRequest]:
    """A request for a study of `tiny` in the store."""
    manifest = tiny().manifest

    def request(trials: int, where: Store = store, fixed: tuple[str, ...] = FIXED, **more: Any) -> StudyRequest:
        run = Request(dataset_file=str(manifest), settings=fixed, store=str(where.root))
        return StudyRequest(run, trials, **{"space": str(space), **more})

    return request


Requested = Callable[..., StudyRequest]


def nobody(_course: Course, _trial: Trial, _is_new: bool) -> None:
    """Tell nobody."""


def carried_out(request: StudyRequest, tell: Callable[[Course, Trial, bool], None] = nobody) -> Course:
    return carry_out(request, pipeline.Directly(), "a test", tell)


def found(course: Course) -> list[tuple[Any, ...]]:
    """What a study has found, without what depends on the time."""
    return [(t.number, t.state, t.values, t.accuracies, t.losses, t.curve) for t in course.ended]


def run_with(request: Request) -> dict[str, Any]:
    engine.prepare()
    state = retrain.carry_out(request, pipeline.to_decision, caller=pipeline.Directly())
    outcome: dict[str, Any] = state.data.to_json()
    return outcome


def test_a_study_needs_no_test_split_and_a_run_then_finds_the_training_of_its_winner(
    request_of: Requested, store: Store, tmp_path: Path
):
    request = request_of(6)
    of_test = [*(tmp_path / "tiny-source").glob("t10k-*")]
    assert len(of_test) == 2
    for path in of_test:
        path.rename(tmp_path / path.name)
    course = carried_out(request)
    winner = course.winner()
    assert winner["trial"] == course.ranking[0].number
    assert winner["values"].keys() == {"learning_rate", "activation"}
    assert winner["config"]["epochs"] == 3
    assert not [*store.dataset("tiny").glob("2-splits/*/test.parquet")]
    for path in of_test:
        (tmp_path / path.name).rename(path)
    outcome = run_with(request.tuned_run())
    assert outcome["state"] == "promoted"
    assert outcome["steps"]["train"]["reused"]
    assert outcome["study"] == course.study.entry.key
    record = Ledger(store, "tiny").last("runs")
    assert (record["profile"], record["study"]) == ("tuned", course.study.entry.key)
    assert record["config"] == {**winner["config"], "memory": "512MiB"}
    report = json.loads(Path(outcome["report"]).with_name("report.json").read_text())
    assert report["run"]["study"] == course.study.entry.key
    assert "--profile default --set 'hidden=[8]'" in report["lineage"]["command"]
    assert verify(store).findings == ()


def test_with_more_trials_a_study_goes_on_as_if_it_had_not_ended(request_of: Requested, tmp_path: Path):
    in_one_go, in_two = Store(tmp_path / "one"), Store(tmp_path / "two")
    expected = carried_out(request_of(12, in_one_go))
    carried_out(request_of(4, in_two))
    seen: list[tuple[int, bool]] = []
    course = carried_out(request_of(12, in_two), lambda _, trial, is_new: seen.append((trial.number, is_new)))
    assert found(course) == found(expected)
    assert seen == [(number, number >= 4) for number in range(12)]
    # The first is the configuration before the search, and what was fixed is in none.
    assert course.trials[0].values == {"learning_rate": 0.001, "activation": "tanh"}
    again = carried_out(request_of(12, in_two))
    assert found(again) == found(expected)
    assert [record["state"] for record in Ledger(in_two, "tiny").read("studies")] == ["begun", "ended", "ended"]


def test_an_interrupted_study_keeps_what_there_is(request_of: Requested, store: Store):
    def stop(_course: Course, trial: Trial, _is_new: bool) -> None:
        if trial.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carried_out(request_of(9), stop)
    record = Ledger(store, "tiny").last("studies")
    assert (record["state"], record["trials"]["complete"]) == ("interrupted", 3)
    assert request_of(9).tuned_run().resolve()[1].learning_rate == record["winner"]["config"]["learning_rate"]


def test_a_killed_study_goes_on(request_of: Requested, store: Store):
    """What is killed is a command; each line that it has printed is a trial that counts."""
    request = request_of(500)
    words = shlex.split(request.command())[1:]
    with Command(*words, env=dict(os.environ)) as command:
        while command.output.count("\ntrial ") < 3:
            assert command.poll() is None, command.errors
            time.sleep(0.02)
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
        told = command.output.count("\ntrial ")
    new: list[int] = []
    course = carried_out(
        replace(request, trials=told + 2), lambda _, trial, is_new: new.append(trial.number) if is_new else None
    )
    assert [*course.trials] == [*range(told + 2)]
    assert new
    assert min(new) >= told
    collect(store, "tiny")
    assert verify(store).findings == ()


def test_the_mean_over_seeds_counts_and_each_has_held_out_rows_of_its_own(request_of: Requested, store: Store):
    course = carried_out(request_of(2, seeds=2))
    trial = course.ranking[0]
    assert (len(trial.accuracies), len(trial.losses), trial.epochs) == (2, 2, 6)
    assert len({normalization.entry.key for normalization in course.normalizations}) == 2
    assert f"{sum(trial.accuracies) / 2:.2%} ± " in leaderboard.result(trial)
    models = [store.made_from("tiny", "train", path.name) for path in store.dataset("tiny").glob("5-models/*")]
    assert sorted(model["parameters"]["seed"] for model in models) == [1, 1, 2, 2]


def test_a_trial_that_diverges_has_failed_and_a_grid_ends(request_of: Requested, store: Store, space: Path):
    space.write_text("[learning_rate]\nchoices = [0.1, 10.0]\n\n[weight_decay]\nchoices = [0.0, 1.0]\n")
    course = carried_out(request_of(9, fixed=("batch_size=1", "hidden=[8]", "epochs=2"), sampler="grid"))
    assert len(course.trials) == course.total == 5
    diverged = next(t for t in course.ended if t.values == {"learning_rate": 10.0, "weight_decay": 1.0})
    assert diverged.state == "failed"
    assert "expected a finite loss" in diverged.reason
    assert leaderboard.line(course, diverged).endswith(f"learning_rate=10 weight_decay=1  {diverged.reason}")
    assert course.ranking[0].values["learning_rate"] != 10.0
    assert {json.dumps(trial.values) for trial in course.ended[1:]} == {
        json.dumps({"learning_rate": rate, "weight_decay": decay}) for rate in (0.1, 10.0) for decay in (0.0, 1.0)
    }
    # Nothing is left of what did not end.
    assert not [*store.dataset("tiny").glob("5-models/.*")]
    assert verify(store).findings == ()


def test_the_default_space_has_a_page_although_optimizers_take_different_parameters(
    request_of: Requested, store: Store
):
    course = carried_out(request_of(8, space=None, fixed=("epochs=2",), sampler="random", pruner="none"))
    with_momentum = {"momentum" in trial.values for trial in course.ended}
    assert with_momentum == {True, False}
    assert course.report
    page = (store.root / course.report).read_text(encoding="utf-8")
    assert "momentum" in page
    assert "<svg" in page


def test_a_pruned_training_leaves_nothing_and_the_study_goes_on(request_of: Requested, store: Store, space: Path):
    space.write_text("[learning_rate]\nlow = 1e-9\nhigh = 1e-8\n")
    fixed = ("epochs=16", "batch_size=16", "hidden=[8]")
    # All but the first are worse than the first, which is not pruned.
    course = carried_out(request_of(6, fixed=fixed, pruner="halving", by="loss"))
    pruned = [trial for trial in course.ended if trial.state == "pruned"]
    assert pruned
    assert all(len(trial.curve) in (1, 4) and "among the worse ones" in trial.reason for trial in pruned)
    assert len([*store.dataset("tiny").glob("5-models/*")]) == len(course.ranking)
    assert not [*store.dataset("tiny").glob("5-models/.*")]


def test_two_processes_find_what_one_does(request_of: Requested, tmp_path: Path):
    other = Store(tmp_path / "other")
    how = {"sampler": "random", "pruner": "none"}
    expected = carried_out(request_of(4, other, **how))
    course = carried_out(request_of(4, at_once=2, **how))
    assert found(course) == found(expected)


def test_gc_keeps_a_study_with_its_models_until_newer_ones_take_its_place(request_of: Requested, store: Store):
    first = carried_out(request_of(2, seed=1))
    models = {path.name for path in store.dataset("tiny").glob("5-models/*")}
    collected = collect(store, "tiny", keep_last=1)
    assert collected.entries == ()
    second = carried_out(request_of(2, seed=2))
    collected = collect(store, "tiny", keep_last=1)
    gone = {entry.name.key for entry in collected.entries}
    assert {key for key in gone if key.startswith(first.study.entry.key)} == {
        first.study.entry.key,
        *(trial.entry.key for trial in first.ended),
        f"{first.study.entry.key}-report-000002",
    }
    # The first trial of both is the same training.
    assert len(gone & models) == 1
    assert found(carried_out(request_of(2, seed=2))) == found(second)
    # What was carried out last is the profile, also if it was found in the store.
    third = carried_out(request_of(2, seed=3))
    for course in (second, third):
        carried_out(course.request)
        assert request_of(2).tuned_run().resolve_all()[2] == course.study.entry.key
    assert verify(store).findings == ()


def test_a_copy_has_the_study_and_its_profile(request_of: Requested, store: Store, tmp_path: Path):
    course = carried_out(request_of(3))
    target = Store(tmp_path / "copy")
    copy(store, target, "tiny")
    assert verify(target).findings == ()
    assert found(carried_out(request_of(3, target))) == found(course)
    _, config = request_of(3, target).tuned_run().resolve()
    assert config.learning_rate == course.winner()["config"]["learning_rate"]


def test_a_damaged_trial_is_carried_out_again(request_of: Requested, store: Store, caplog: pytest.LogCaptureFixture):
    course = carried_out(request_of(3))
    entry = course.trials[1].entry.path("entry.json")
    entry.chmod(0o644)
    entry.write_text("{}")
    assert found(carried_out(request_of(3))) == found(course)
    assert "carrying out this trial again" in caplog.text
    assert verify(store).findings == ()


@pytest.mark.remedies("storage.studies:tuned")
def test_the_profile_tuned_needs_a_study(request_of: Requested):
    request = request_of(1)
    with pytest.raises(ConfigError, match="expected a study of tiny in the store .*; make one first: `idxflow tune "):
        request.tuned_run().resolve()
    carried_out(request)
    assert request.tuned_run().resolve()[1].epochs == 3


def test_no_trial_begins_when_the_time_is_up(request_of: Requested, caplog: pytest.LogCaptureFixture):
    course = carried_out(request_of(3, timeout=1e-9))
    assert course.trials == {}
    assert "the time is up after 0 of 3 trials" in caplog.text
    assert leaderboard.to_json_value(course, 1.0)["state"] == "unfinished"


def test_the_command_prints_lines_a_table_and_json(request_of: Requested, tmp_path: Path):
    words = shlex.split(request_of(3).command())[1:]
    environment = dict(os.environ)
    printed = idxflow(*words, env=environment)
    assert printed.returncode == 0, printed.stderr
    assert [line[:8] for line in printed.stdout.splitlines() if line.startswith("trial")] == [
        *("trial 0 ", "trial 1 ", "trial 2 ")
    ]
    assert "tiny: trial " in printed.stdout
    assert f"to use it: {request_of(3).tuned_run().command('run')}" in printed.stdout
    asked = idxflow(*words, "--json", env=environment)
    value = json.loads(asked.stdout)
    assert (value["state"], value["error"], value["counts"]["complete"]) == ("complete", None, 3)
    assert [trial["number"] for trial in value["trials"]] == [0, 1, 2]
    # As they were tried, although the store sorts names.
    assert {tuple(trial["values"]) for trial in value["trials"]} == {("learning_rate", "activation")}
    assert value["winner"]["command"].startswith("idxflow run --dataset-file")
    wrong = idxflow(*words, "--sampler", "tpee", env=environment)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "idxflow: --sampler: expected one of tpe, random, grid; found 'tpee' (did you mean tpe?); correct it\n",
    )


def test_a_study_in_object_storage(tiny: TinyFactory, request_of: Requested, tmp_path: Path):
    from flows.run import prepare
    from flows.tuning import study

    cloud = Cloud(tmp_path / "cloud")
    request = request_of(2)
    try:
        job = replace(prepare(request.run, "a test"), store=cloud.machine())
        job.store.prepare()
        with job.store.in_use("tiny"):
            course = study._begun(request, job, request.resolve()[2], pipeline.Directly())
            study._carry_out(course, nobody)
            other = study._begun(
                request, replace(job, store=cloud.machine("there")), course.search, pipeline.Directly()
            )
        assert found(other) == found(course)
        assert len(course.trials) == 2
        assert verify(job.store).findings == ()
    finally:
        cloud.close()


@pytest.mark.remedies("flows.tuning.processes:carry_out")
def test_a_process_that_dies_is_named(request_of: Requested, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as broken:
        broken.setattr("flows.tuning.processes.sys.executable", "/bin/false")
        with pytest.raises(TrainingFailed, match=r"the process of trial . to finish; it ended with exit code 1; "):
            carried_out(request_of(2, at_once=2))
    assert len(carried_out(request_of(2)).trials) == 2


@pytest.mark.remedies(
    "flows.tuning.request:resolve",
    "flows.tuning.request:resolve:2",
    "flows.tuning.request:resolve:3",
    "flows.tuning.request:_check_word",
    "flows.tuning.request:seconds",
)
def test_a_wrong_request_is_refused_before_anything_starts(request_of: Requested):
    def refusal(call: Callable[[], object]) -> str:
        with pytest.raises(ConfigError) as refused:
            call()
        return str(refused.value)

    good = request_of(2)
    wrong = [
        (replace(good, trials=100_001), "--trials: expected at most 100,000; found 100,001; give fewer"),
        (replace(good, at_once=513), "--at-once: expected at most 512; found 513; give fewer"),
        (replace(good, by="loss_"), "--by: expected one of accuracy, loss; found 'loss_' (did you mean loss?); "),
        (request_of(2, fixed=("validation_fraction=0",)), "found a validation_fraction of 0; raise it"),
        (request_of(2, fixed=(f"seed={2**32 - 1}",), seeds=2), "found 4,294,967,295 and more; choose a lower seed"),
    ]
    for request, sentence in wrong:
        assert sentence in refusal(request.resolve)
    deep = Path(good.space or "")
    deep.write_text("[conv]\nchoices = [[4], [4, 4, 4]]\n", encoding="utf-8")
    # The images have 9 × 7 pixels.
    assert "tiny: expected conv to be at most 2 numbers for images of 9 × 7" in refusal(good.resolve)
    deep.write_text("[conv]\nchoices = [[4], [4, 4]]\n", encoding="utf-8")
    good.resolve()
    assert (
        refusal(lambda: seconds("2 days"))
        == "--timeout: expected a time such as 90s, 15m or 2h; found '2 days'; correct it"
    )
    assert [seconds(text) for text in ("90", "90s", "15m", "2h")] == [90, 90, 900, 7200]


@pytest.mark.remedies("storage.studies:newest")
def test_a_record_without_the_parameters_is_named_until_there_is_a_newer_one(request_of: Requested, store: Store):
    Ledger(store, "tiny").append("studies", "0" * 32, {"winner": {"trial": 1}})
    with pytest.raises(DamagedEntry, match="the winner of the study 0+ in the ledger; KeyError: 'config'; run"):
        request_of(1).tuned_run().resolve()
    carried_out(request_of(1))
    assert request_of(1).tuned_run().resolve()[1].epochs == 3


def test_trials_go_to_the_workers_of_a_cluster(request_of: Requested, store: Store, tmp_path: Path):
    expected = carried_out(request_of(3, Store(tmp_path / "other")))
    with clusters.scheduler(tmp_path) as (address, _), clusters.worker(tmp_path, address):
        request = request_of(3)
        course = carried_out(replace(request, run=replace(request.run, workers=address)))
    assert found(course) == found(expected)
    assert len([*store.dataset("tiny").glob(f"8-studies/{course.study.entry.key}-00000?")]) == 3


@pytest.mark.flow
def test_the_flow_shows_a_study_in_prefect(results: Path, request_of: Requested, store: Store):
    from flows.tuning.flow import tune

    request = request_of(2)
    where = {"dataset_file": request.run.dataset_file, "store": str(store.root), "space": request.space}
    training = {"epochs": 3, "batch_size": 16, "hidden": [8]}
    state = tune(**where, trials=2, training=training, return_state=True)
    value = state.result()
    assert (state.type.value, value["state"], len(value["trials"])) == ("COMPLETED", "complete", 2)
    assert state.message == value["sentence"]
    page = Path(value["report"])
    assert json.loads(page.with_name("report.json").read_text())["sentence"] == value["sentence"]
    assert page.read_text().count("<svg") == 4
    # It is the study that the command would carry out.
    assert [trial["number"] for trial in value["trials"]] == [*carried_out(request).trials]
    refused = tune(**where | {"space": "/no/such.toml"}, return_state=True)
    assert refused.type.value == "FAILED"
    assert refused.message.startswith("/no/such.toml: expected the space of a study in TOML; found nothing")
