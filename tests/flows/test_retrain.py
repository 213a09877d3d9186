"""The flow itself, called as a function: what ends how, and what is left behind."""

from __future__ import annotations

import contextvars
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.flow_runs import resume_flow_run

from flows import pipeline
from flows.retrain import parameters_of, retrain, retrain_arrival, validate_dataset
from flows.run import RunFailed
from storage.datasets.training import TrainingOverrides
from storage.ledger import Ledger
from storage.outcomes import Outcome
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tests.conftest import TinyFactory
from tests.support.operated import LAST_DAY, post, until
from tests.support.runs import message_of
from tests.support.servers import BIN

pytestmark = pytest.mark.flow

QUICK = {"epochs": 4, "learning_rate": 0.1, "hidden": [8], "batch_size": 16}


@pytest.fixture
def run(results: Path, store: Store, tiny: TinyFactory):
    """Run the flow on a tiny data set; returns Prefect's state and the outcome."""

    def call(manifest: Path, force: bool = False, **training: Any) -> tuple[Any, dict[str, Any]]:
        where = {"dataset_file": str(manifest), "store": str(store.root)}
        state = retrain(**where, training=QUICK | training, force=force, return_state=True)
        return state, outcome_of(state)

    return call


def outcome_of(state: Any) -> dict[str, Any]:
    result = state.result(raise_on_failure=False)
    ended = result.outcome if isinstance(result, RunFailed) else result
    # Parameters that Prefect refuses end in an error of its own.
    return ended.to_json() if isinstance(ended, Outcome) else ended


def test_first_run_again_and_another_seed(run: Any, store: Store, tiny: TinyFactory, server: dict[str, str]):
    manifest = tiny().manifest
    state, first = run(manifest)
    assert (state.type.value, state.name) == ("COMPLETED", "Completed")
    assert state.message == first["sentence"] == "promoted v1: the first model above the floors"
    assert Registry(store, "tiny").champion().number == 1
    assert names_and_tags(first) == (f"tiny {first['run']} promoted v1", {"promoted"})

    state, second = run(manifest)
    assert (state.type.value, state.name) == ("COMPLETED", "Completed")
    assert second["state"] == "unchanged"
    assert second["sentence"].startswith("unchanged since v1")
    assert second["report"] == first["report"]
    assert all(step["reused"] for step in second["steps"].values())

    _, third = run(manifest, seed=2)
    assert third["state"] in ("promoted", "kept")
    assert third["version"] == 2
    assert third["steps"]["train"]["reason"] == "seed 1 → 2, new normalization"
    ledger = Ledger(store, "tiny")
    assert [r["state"] for r in ledger.read("runs")] == ["promoted", "unchanged", third["state"]]
    _, again = run(manifest)
    assert (again["state"], again["version"], again["report"]) == ("unchanged", 1, first["report"])
    Path(first["report"]).unlink()
    _, mended = run(manifest)
    assert mended["state"] == "unchanged"
    assert Path(mended["report"]).is_file()
    assert [d["outcome"] for d in ledger.read("decisions")] == ["promoted", third["state"]]
    runs = {outcome["run"] for outcome in (first, second, third, again)}
    events = until(lambda: found if len(found := emitted(server, runs)) > 1 else None)
    assert sorted(events) == sorted([("model.promoted", first["run"]), (f"model.{third['state']}", third["run"])])


def names_and_tags(outcome: dict[str, Any]) -> tuple[str, set[str]]:
    """Return the name and the tags of a run, as the server has them."""
    with get_client(sync_client=True) as client:
        flow_run = next(r for r in client.read_flow_runs() if outcome["run"] in r.name)
    return flow_run.name, {*flow_run.tags}


def emitted(server: dict[str, str], runs: set[str]) -> list[tuple[str, str]]:
    """Return the events of idxflow's that the server has of these runs."""
    EventsWorker.drain_all()
    resource = {"id": ["idxflow.model.tiny"]}
    response = post(server, "events/filter", {"filter": {"resource": resource, "occurred": LAST_DAY}, "limit": 50})
    about = [(event["event"].removeprefix("idxflow."), event["payload"]["run"]) for event in response["events"]]
    return [(name, run) for name, run in about if run in runs]


def test_null_leaves_out_what_the_data_set_has(run: Any, store: Store, tiny: TinyFactory):
    manifest = tiny(manifest="[training]\nvalidation_fraction = 0.2\npatience = 3\n").manifest
    _, outcome = run(manifest, patience=None)
    record = Ledger(store, "tiny").find("runs", outcome["run"])
    assert record
    assert record["config"]["patience"] is None


def test_a_field_that_was_left_alone_in_a_form_leaves_out_nothing():
    sent = TrainingOverrides(patience=None, epochs=3)
    assert parameters_of(sent) == {"patience": None, "epochs": 3}
    with FlowRunContext.model_construct(flow_run=FlowRun.model_construct(deployment_id=uuid4())):
        assert parameters_of(sent) == {"epochs": 3}
    assert parameters_of(None) == {}


def test_force_trains_and_decides_again_where_nothing_is_new(run: Any, store: Store, tiny: TinyFactory):
    manifest = tiny().manifest
    _, first = run(manifest)
    state, forced = run(manifest, force=True)
    assert (state.type.value, state.name) == ("COMPLETED", "Completed")
    steps = forced["steps"]
    assert {name for name, step in steps.items() if not step["reused"]} >= {"train", "publish"}
    assert steps["decode train"]["reused"]
    assert (forced["version"], forced["champion"]) == (2, 1)
    assert "the same answers" in forced["sentence"]
    assert forced["report"] != first["report"]
    versions = Registry(store, "tiny").versions()
    assert versions[0].weights_digest == versions[1].weights_digest, "the same training gives the same weights"
    assert verify(store).findings == ()


def test_refusals_say_what_was_refused_and_set_off_what_waits_for_failed_runs(
    run: Any, tiny: TinyFactory, server: dict[str, str]
):
    """Automations as the UI makes them, "flow run enters Failed", and by the tag."""
    cases: dict[str, dict[str, Any]] = {
        "data refused": {"arrays": {"test-labels": np.full(30, 9, np.uint8)}},
        "model refused": {"manifest": "[floors]\naccuracy = 1.0\nclass_recall = 1.0"},
    }
    runs: dict[str, str] = {}
    with failures_noted() as noted:
        for words, case in cases.items():
            state, outcome = run(tiny(**case).manifest, epochs=1, learning_rate=1e-6)
            assert (state.type.value, state.name) == ("FAILED", "Failed")
            assert words in state.message
            assert names_and_tags(outcome) == (f"tiny {outcome['run']} {words}", {"refused"})
            runs[outcome["run"]] = words
        state, _ = run(tiny().manifest, validation_fraction=0.999)
        assert (state.type.value, state.name) == ("FAILED", "Failed")
        state, _ = run(tiny().manifest)
        assert (state.type.value, state.name) == ("COMPLETED", "Completed")
        until(lambda: noted() >= 3)
        assert noted() == 3
    events = until(lambda: found if len(found := emitted(server, {*runs})) > 1 else None)
    assert {run: name.replace(".", " ") for name, run in events} == runs


@contextmanager
def failures_noted() -> Iterator[Callable[[], int]]:
    """Have an automation wait for failed runs, as the UI makes it; yield what counts how often it was set off."""
    trigger = {
        "type": "event",
        "posture": "Reactive",
        "expect": ["prefect.flow-run.Failed"],
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": 0,
    }
    name = f"flow run enters Failed {uuid4()}"
    query = {"filter": {"event": {"name": ["prefect.automation.triggered"]}, "occurred": LAST_DAY}}
    with get_client(sync_client=True) as client:
        body = {"name": name, "trigger": trigger, "actions": [{"type": "do-nothing"}]}
        automation = client.request("POST", "/automations/", json=body).json()["id"]

        def count() -> int:
            events = client.request("POST", "/events/filter", json=query).json()["events"]
            return sum(event["resource"]["prefect.resource.name"] == name for event in events)

        try:
            yield count
        finally:
            client.request("DELETE", "/automations/{id}", path_params={"id": automation})


def test_a_rollback_stands_and_the_next_report_names_it(run: Any, store: Store, tiny: TinyFactory):
    manifest = tiny(manifest='[gate]\npolicy = "not_worse"\nmargin = 1.0\nmax_class_loss = 1.0').manifest
    run(manifest, epochs=1, learning_rate=0.001)
    _, second = run(manifest)
    assert second["champion"] == 2
    command = [str(BIN / "idxflow"), "rollback", "tiny", "--reason", "class 1 <worse>", "--store", str(store.root)]
    subprocess.run(command, check=True, capture_output=True)
    _, again = run(manifest)
    assert (again["state"], again["champion"]) == ("unchanged", 1)
    _, other = run(manifest, seed=3)
    page = Path(other["report"]).read_text()
    assert "Manual changes of the champion before this run" in page
    assert "class 1 &lt;worse&gt;" in page


def answer(promote: bool, reason: str) -> threading.Thread:
    """Answer the first flow run that pauses, as the form in the Prefect UI does."""

    def look() -> None:
        paused = FlowRunFilter(state={"type": {"any_": ["PAUSED"]}})
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            with get_client(sync_client=True) as client:
                runs = client.read_flow_runs(flow_run_filter=paused)
            if runs:
                resume_flow_run(runs[0].id, run_input={"promote": promote, "reason": reason})
                return
            time.sleep(0.3)

    # Prefect keeps its settings in a context variable, which a new thread does not have.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(look,))
    thread.start()
    return thread


@pytest.mark.parametrize(("promote", "reason"), [(True, "promoted by a person"), (False, "declined by a person")])
def test_a_person_decides_where_the_policy_is_ask(
    run: Any, store: Store, tiny: TinyFactory, promote: bool, reason: str
):
    manifest = tiny(manifest='[gate]\npolicy = "ask"\nask_hours = 0.2').manifest
    thread = answer(promote, "looked at it")
    _, outcome = run(manifest)
    thread.join()
    assert outcome["state"] == ("promoted" if promote else "kept")
    assert f"{reason}: looked at it" in outcome["sentence"]
    assert (Registry(store, "tiny").champion() is not None) == promote


def test_no_answer_in_time_keeps_the_champion(run: Any, store: Store, tiny: TinyFactory):
    # Over before Prefect has paused the run, which takes long if its server is busy.
    manifest = tiny(manifest='[gate]\npolicy = "ask"\nask_hours = 0.0000001').manifest
    _, outcome = run(manifest)
    assert outcome["state"] == "kept"
    assert "no person approved it" in outcome["sentence"]
    assert Registry(store, "tiny").champion() is None


def test_refused_data_fails_the_run_before_training_with_a_report(run: Any, store: Store, tiny: TinyFactory):
    labels = (np.arange(120) % 3).astype(np.uint8)
    labels[7] = 200
    state, outcome = run(tiny(arrays={"train-labels": labels}).manifest)
    assert state.type.value == "FAILED"
    assert state.message == message_of(outcome)
    assert (outcome["state"], outcome["error"]["exit_code"]) == ("refused", 3)
    assert not list(store.entries("tiny", "train").glob("*"))
    report = json.loads(Path(outcome["report"]).with_name("report.json").read_text())
    assert report["verdict"]["outcome"] == "refused"


@pytest.mark.remedies("flows.run:refuse_if_below_floor")
def test_a_model_below_the_floor_is_never_champion(run: Any, store: Store, tiny: TinyFactory):
    good = tiny()
    run(good.manifest)
    strict = good.manifest.read_text() + "[floors]\naccuracy = 1.0\n"
    good.manifest.write_text(strict)
    state, outcome = run(good.manifest, epochs=1, learning_rate=1e-6)
    assert state.type.value == "FAILED"
    assert (outcome["state"], outcome["error"]["exit_code"], outcome["champion"]) == ("refused", 5, 1)
    assert Registry(store, "tiny").champion().number == 1
    # With lower floors it is compared with the champion.
    good.manifest.write_text(strict.replace("1.0", "0.0") + "class_recall = 0.0\n")
    _, outcome = run(good.manifest, epochs=1, learning_rate=1e-6)
    assert (outcome["state"], outcome["error"]) == ("kept", None)


@pytest.mark.parametrize("broken", ["normalize", "train", "evaluate", "decide", "publish"])
def test_a_bug_in_a_task_is_a_failed_run_not_a_completed_one(
    run: Any, tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, broken: str
):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(pipeline, broken, fails)
    state, outcome = run(tiny().manifest)
    assert state.type.value == "FAILED"
    assert outcome["state"] == "failed"
    assert outcome["error"] == {"kind": "RuntimeError", "sentence": "unexpected RuntimeError: a bug", "exit_code": 1}
    # The report tells what the run found out up to there.
    assert bool(outcome["report"]) == (broken != "publish")


def test_a_report_that_cannot_be_shown_does_not_hide_why_the_run_failed(
    run: Any, tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(pipeline, "publish", fails)
    labels = np.full(120, 200, np.uint8)
    _, outcome = run(tiny(arrays={"train-labels": labels}).manifest)
    assert outcome["error"]["kind"] == "ValidationFailed"


def test_a_wrong_manifest_is_a_failed_run_with_the_sentence(results: Path, tmp_path: Path):
    state = retrain(dataset_file=str(tmp_path / "none.toml"), return_state=True)
    assert state.type.value == "FAILED"
    assert "expected a manifest in TOML" in state.message
    assert outcome_of(state)["error"]["exit_code"] == 2


def test_a_set_that_the_store_does_not_have_is_refused(results: Path, store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IDXFLOW_STORE", str(store.root))
    state = retrain_arrival("digits", "20260101-000000-00000000", return_state=True)
    assert state.type.value == "FAILED"
    assert state.message == (
        f"expected the set 20260101-000000-00000000 of digits in the ledger of {store.root}, the store of this "
        "run; found none; start `idxflow watch` and the worker (`idxflow up`) with the same --store or "
        "IDXFLOW_STORE"
    )


def test_validation_alone_stops_before_training(results: Path, store: Store, tiny: TinyFactory):
    state = validate_dataset(dataset_file=str(tiny().manifest), store=str(store.root), return_state=True)
    assert outcome_of(state)["state"] == "valid"
    assert not store.entries("tiny", "normalize").exists()
