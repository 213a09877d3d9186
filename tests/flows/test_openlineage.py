"""`idxflow lineage --openlineage`: what a server of OpenLineage events gets, and what becomes of one that fails."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from openlineage.client import event_v2

from flows.commands.cli import run_command
from flows.lineage import sending
from storage.files import sha256_of
from storage.ledger import Ledger
from storage.registry import Registry
from storage.store import Store
from tests.conftest import repeated, write_tiny
from tests.support.faultserver import Answer, FaultServer, endless, raw, redirect, silent, slow_head, status
from tests.support.old_stores import unpacked
from tests.support.runs import carried_out
from tests.support.tampering import writable_copy

TAKES = "/api/v1/lineage"
IMPATIENT = 0.5
Call = Callable[..., str]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of a run that was audited and has set rows aside."""
    folder = tmp_path_factory.mktemp("openlineage")
    manifest = write_tiny(
        folder, arrays=repeated(), manifest='[quarantine]\nchecks = ["duplicate", "suspect"]\n'
    ).manifest
    carried_out(Store(folder / "store"), manifest, audit=True)
    return folder


@pytest.fixture
def store(first: Path, tmp_path: Path) -> Store:
    return writable_copy(first / "store", tmp_path)


@pytest.fixture
def receiver() -> Iterator[FaultServer]:
    with FaultServer({TAKES: status(201)}) as server:
        yield server


@pytest.fixture
def lineage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Call the command; return what it writes to standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sending, "SECONDS", IMPATIENT)
    monkeypatch.setattr(sending, "_TRIES", 0)

    def call(store: Store, *words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert run_command(["lineage", *words, "--store", str(store.root)]) == code
        return capsys.readouterr().err

    return call


def received(receiver: FaultServer) -> list[dict[str, Any]]:
    """Return the events that a server got, each checked by the classes that the specification generates."""
    events = [json.loads(request.body) for request in receiver.requests]
    for event in events:
        check(event)
    return events


def check(event: dict[str, Any]) -> None:
    run, job = event_v2.Run(**event["run"]), event_v2.Job(**event["job"])
    inputs = [event_v2.InputDataset(**dataset) for dataset in event["inputs"]]
    outputs = [event_v2.OutputDataset(**dataset) for dataset in event["outputs"]]
    values = {name: event[name] for name in ("eventTime", "producer")}
    kind = event_v2.RunState[event["eventType"]]
    again = event_v2.RunEvent(**values, eventType=kind, run=run, job=job, inputs=inputs, outputs=outputs)
    assert again.schemaURL == event["schemaURL"]
    facets = [*run.facets.values(), *job.facets.values()]
    for dataset in (*inputs, *outputs):
        facets += dataset.facets.values()
        facets += getattr(dataset, "inputFacets", None) or getattr(dataset, "outputFacets", None) or {}
    assert all(facet["_producer"] and facet["_schemaURL"] for facet in facets if isinstance(facet, dict))


def of_job(events: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the last event of a job."""
    return [event for event in events if event["job"]["name"] == name][-1]


def names(datasets: list[dict[str, Any]], store: Store) -> list[str]:
    return [dataset["name"].removeprefix(f"{store.root}/") for dataset in datasets]


def version(dataset: dict[str, Any]) -> str:
    return str(dataset["facets"]["version"]["datasetVersion"])


def test_a_server_gets_the_run_and_its_steps_each_from_start_to_end(store: Store, receiver: FaultServer, lineage: Call):
    said = lineage(store, "tiny", "--openlineage", receiver.url())
    events = received(receiver)
    assert said == f"idxflow: {len(events)} OpenLineage events to {receiver.url()}\n"
    (record,) = Ledger(store, "tiny").read("runs")
    jobs = [
        "tiny",
        *(f"tiny.{' '.join(filter(None, (s['step'], s['subject']))).replace(' ', '.')}" for s in record["steps"]),
    ]
    by_run: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_run.setdefault(event["run"]["runId"], []).append(event)
    assert [of[0]["job"]["name"] for of in by_run.values()] == jobs
    for begins, ends in by_run.values():
        assert (begins["eventType"], ends["eventType"]) == ("START", "COMPLETE")
        times = [datetime.fromisoformat(text) for text in (record["started"], begins["eventTime"], ends["eventTime"])]
        assert sorted(times) == times
    whole = next(iter(by_run))
    for event in events:
        if event["job"]["name"] != "tiny":
            assert event["run"]["facets"]["parent"]["run"]["runId"] == whole
            assert event["run"]["facets"]["parent"]["job"] == {"namespace": "idxflow", "name": "tiny", "facets": {}}


def test_datasets_join_the_steps_and_their_versions_are_digests(
    store: Store, first: Path, receiver: FaultServer, lineage: Call
):
    lineage(store, "tiny", "--openlineage", receiver.url())
    events = received(receiver)
    registered = Registry(store, "tiny").version(1)
    archive = first / "tiny-source" / "train-images-idx3-ubyte.gz"
    fetched = of_job(events, "tiny.fetch.train-images")
    assert [(d["namespace"], d["name"]) for d in fetched["inputs"]] == [("file", str(archive))]
    assert names(fetched["outputs"], store) == ["tiny/archives/train-images-idx3-ubyte.gz"]
    assert version(fetched["outputs"][0]) == sha256_of(archive)
    statistics = fetched["outputs"][0]["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["size"]) == (120, archive.stat().st_size)
    decoded = of_job(events, "tiny.decode.train")
    assert decoded["inputs"][0]["name"] == fetched["outputs"][0]["name"]
    columns = decoded["outputs"][0]["facets"]["schema"]["fields"]
    assert [(column["name"], column["type"]) for column in columns] == [
        ("image", "fixed_size_binary[63]"),
        ("label", "uint8"),
    ]
    assert names(of_job(events, "tiny.quarantine")["inputs"], store) == ["tiny/train", "tiny/test", "tiny/audit"]
    trained = of_job(events, "tiny.train")
    assert names(trained["inputs"], store) == ["tiny/quarantine", "tiny/normalization"]
    assert trained["outputs"][0]["facets"]["datasetType"]["datasetType"] == "MODEL"
    assert version(trained["outputs"][0]) == registered.weights_digest
    assert trained["run"]["facets"]["idxflow_step"]["libraries"]["keras"]
    (champion,) = of_job(events, "tiny.decide")["outputs"]
    assert (names([champion], store), version(champion)) == (["tiny/champion"], "v1")
    assert version(of_job(events, "tiny")["outputs"][0]) == registered.weights_digest


def test_people_see_what_was_set_aside_and_audited_between_the_splits_and_the_model(
    store: Store, capsys: pytest.CaptureFixture[str]
):
    assert run_command(["lineage", "tiny", "--store", str(store.root)]) == 0
    told = [line.strip().partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    model = told[told.index("model") : told.index("normalization")]
    roles = ["train-images", "train-labels"], ["test-images", "test-labels"]
    assert model[-8:] == ["quarantine", "train split", *roles[0], "test split", *roles[1], "audit"]


def test_checks_and_parameters_are_facets_of_the_specification(store: Store, receiver: FaultServer, lineage: Call):
    lineage(store, "tiny", "--openlineage", receiver.url())
    events = received(receiver)
    (checked,) = of_job(events, "tiny.validate")["inputs"]
    assertions = checked["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert {"assertion", "success", "severity", "name", "expected", "actual"} <= assertions[0].keys()
    assert all(assertion["success"] for assertion in assertions if assertion["severity"] == "error")
    parameters = of_job(events, "tiny")["run"]["facets"]["executionParameters"]["parameters"]
    assert {"key": "epochs", "value": "2"} in parameters


def test_the_same_events_are_exported_again_and_to_a_file(
    store: Store, receiver: FaultServer, lineage: Call, tmp_path: Path
):
    for _ in range(2):
        lineage(store, "tiny", "--openlineage", receiver.url())
    events = received(receiver)
    half = len(events) // 2
    assert events[:half] == events[half:]
    # Over itself, too.
    for _ in range(2):
        said = lineage(store, "tiny", "--openlineage", "events.jsonl")
    assert said.endswith(f"{half} OpenLineage events to {tmp_path / 'events.jsonl'}\n")
    assert [json.loads(line) for line in Path("events.jsonl").read_text().splitlines()] == events[:half]


def test_json_says_what_was_exported(store: Store, receiver: FaultServer, capsys: pytest.CaptureFixture[str]):
    assert run_command(["lineage", "tiny", "--openlineage", receiver.url(), "--json", "--store", str(store.root)]) == 0
    out, errors = capsys.readouterr()
    assert json.loads(out)["exported"] == {"to": receiver.url(), "events": len(receiver.requests)}
    assert errors == ""


def test_an_archive_exports_every_run_that_used_it_also_one_that_failed(
    receiver: FaultServer, lineage: Call, tmp_path: Path
):
    old = unpacked(2, tmp_path)
    lineage(old, "tiny", "train-images", "--openlineage", receiver.url())
    events = received(receiver)
    ends = [event for event in events if event["job"]["name"] == "tiny" and event["eventType"] != "START"]
    states = ["FAIL" if record["error"] else "COMPLETE" for record in Ledger(old, "tiny").read("runs")]
    assert [event["eventType"] for event in ends] == states
    (failed,) = [event for event in ends if event["eventType"] == "FAIL"]
    assert failed["run"]["facets"]["errorMessage"]["message"]
    # What people have decided about the models is there, too.
    assert {"tiny.promote", "tiny.rollback"} <= {event["job"]["name"] for event in events}
    assert version(of_job(events, "tiny.rollback")["outputs"][0]) == "v2"


def test_a_name_that_is_not_utf_8_is_sent_in_escapes(
    first: Path, tmp_path: Path, receiver: FaultServer, lineage: Call, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "caf\udce9"
    shutil.copytree(first / "store", folder)
    lineage(Store(folder), "tiny", "--openlineage", receiver.url())
    assert received(receiver)[-1]["outputs"][0]["name"].startswith(f"{tmp_path}/caf\\udce9/tiny/")


def test_the_key_and_the_namespace_are_those_of_the_environment(
    store: Store, receiver: FaultServer, lineage: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    # Its password is not for this server.
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password hidden\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "vision")
    lineage(store, "tiny", "--openlineage", receiver.url())
    assert {request.headers.get("authorization") for request in receiver.requests} == {None}
    assert received(receiver)[0]["job"]["namespace"] == "vision"
    receiver.requests.clear()
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "s3cret")
    said = lineage(store, "tiny", "--openlineage", f"{receiver.url()}/")
    assert {request.headers["authorization"] for request in receiver.requests} == {"Bearer s3cret"}
    assert "s3cret" not in said
    assert b"s3cret" not in b"".join(request.body for request in receiver.requests)


@pytest.mark.remedies("flows.lineage.sending:_send")
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (status(500), "it answered 500 after 0"),
        (status(401), "it answered 401 (no or a wrong key) after 0"),
        (redirect("/elsewhere"), "it answered 302, a redirect, which is not followed after 0"),
        (silent, f"no answer within {IMPATIENT:g} s after 0"),
        (slow_head(), f"no answer within {IMPATIENT:g} s after 0"),
        (raw(b"SSH-2.0-OpenSSH\r\n"), "there was no connection after 0"),
    ],
    ids=["500", "401", "redirect", "silent", "a byte now and then", "no HTTP"],
)
def test_a_server_that_does_not_take_them_is_one_sentence_and_1(
    store: Store, lineage: Call, answer: Answer, problem: str
):
    with FaultServer({TAKES: answer}) as server:
        said = lineage(store, "tiny", "--openlineage", server.url(), code=1)
        assert said.startswith(f"idxflow: expected {server.url()} to take ")
        assert problem in said
        assert said.count("\n") == 1
        server.answers[TAKES] = status(200)
        lineage(store, "tiny", "--openlineage", server.url())


def test_an_answer_without_end_is_not_read(store: Store, lineage: Call):
    with FaultServer({TAKES: endless()}) as server:
        assert "OpenLineage events to" in lineage(store, "tiny", "--openlineage", server.url())


def test_nobody_at_the_address_is_one_sentence_and_1(store: Store, lineage: Call):
    with FaultServer({}) as gone:
        pass
    assert "there was no connection" in lineage(store, "tiny", "--openlineage", gone.url(), code=1)


REFUSED = {
    "ftp://here/events": "to be a file or an http(s) address",
    "http://": "to be a file or an http(s) address",
    "http://me:hidden@127.0.0.1:1": "found one of them after http://127.0.0.1:1; put the key of the server into",
    "http://127.0.0.1:1/?key=hidden": "found one of them after http://127.0.0.1:1/; put the key of the server into",
    "http://marquez.example": "found http://marquez.example; give an https:// address, or unset the variable",
}


@pytest.mark.remedies(
    "flows.lineage.sending:server", "flows.lineage.sending:server:2", "flows.lineage.sending:server:3"
)
def test_an_address_that_holds_or_gives_away_a_secret_is_refused(
    store: Store, receiver: FaultServer, lineage: Call, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "s3cret")
    for place, problem in REFUSED.items():
        said = lineage(store, "tiny", "--openlineage", place, code=2)
        assert problem in said
        assert "hidden" not in said
        assert "s3cret" not in said
    lineage(store, "tiny", "--openlineage", receiver.url())


def test_a_file_of_something_else_stays(store: Store, lineage: Call):
    Path("mine.jsonl").write_text("my notes")
    assert "holds something else" in lineage(store, "tiny", "--openlineage", "mine.jsonl", code=2)
    assert Path("mine.jsonl").read_text() == "my notes"


@pytest.mark.remedies("flows.lineage.events:check_installed")
def test_without_the_library_the_extra_is_named(store: Store, lineage: Call, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda name: None)
        said = lineage(store, "tiny", "--openlineage", "events.jsonl", code=2)
    assert "install the extra `lineage` (`" in said
    assert "-m pip install 'idxflow[lineage]'`)" in said
    # Without the option, nothing of it is needed; with the library, it works.
    lineage(store, "tiny")
    lineage(store, "tiny", "--openlineage", "events.jsonl")
