"""`idxflow share mlflow` against MLflow itself: its server, its databases, and its way to load a model."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flows.commands.cli import run_command
from flows.dataset_in_store import DatasetInStore
from flows.sharing import mlflow_runs
from flows.sharing.mlflow_place import Place
from flows.sharing.mlflow_runs import Request
from storage.errors import ConfigError
from storage.ledger import Ledger
from storage.records import RunRecord
from storage.store import Store
from tasks.serving.export import TOLERANCE, probe_images
from tasks.serving.predict import load_champion
from tests.conftest import write_tiny
from tests.support.commands import Command
from tests.support.mlflow_servers import front_of, mlflow_server
from tests.support.runs import carried_out
from tests.support.servers import clean_environment

MANIFEST = "[floors]\naccuracy = 0.0\nclass_recall = 0.0\n"
# MLflow and the packages that it imports.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[RunRecord]]:
    """A weak first champion, and its successor."""
    folder = tmp_path_factory.mktemp("runs")
    store = Store(folder / "store")
    manifest = write_tiny(folder, test=90, manifest=MANIFEST).manifest
    return store, [carried_out(store, manifest, learning_rate=1e-6), carried_out(store, manifest)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(autouse=True)
def _variables(runs: tuple[Store, list[RunRecord]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDXFLOW_STORE", str(runs[0].root))
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)


def share(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    code = run_command(["share", "mlflow", "tiny", *words, "--json"])
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out
    return json.loads(printed.out) | {"code": code, "said": printed.err}


def client_of(address: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=address, registry_uri=address)


def state(address: str, name: str) -> dict[str, Any]:
    """What MLflow has of an experiment and a model, without its own ids and times of writing."""
    client = client_of(address)
    experiment = client.get_experiment_by_name(name)
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        series = {
            key: [(each.step, each.timestamp, each.value) for each in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        assert run.data.tags["idxflow.run"] not in found
        found[run.data.tags["idxflow.run"]] = {
            "about": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
            "parameters": run.data.params,
            "tags": run.data.tags,
            "series": series,
            "files": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
            "inputs": sorted((one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs),
            "models": len(run.outputs.model_outputs),
        }
    model = client.get_registered_model(name)
    versions = client.search_model_versions(f"name='{name}'")
    return {
        "runs": found,
        "versions": sorted((one.version, one.tags["idxflow.version"], one.description) for one in versions),
        "aliases": model.aliases,
    }


@pytest.fixture(scope="module")
def sent(runs: tuple[Store, list[RunRecord]], server: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDXFLOW_STORE", str(runs[0].root))
        assert run_command(["share", "mlflow", "tiny", "--at", server]) == 0
    return state(server, "tiny")


def test_a_run_there_has_all_that_the_store_knows(runs: tuple[Store, list[RunRecord]], sent: dict[str, Any]):
    store, (first, second) = runs
    ledger = Ledger(store, "tiny")
    assert [*sent["runs"]] == [second.id, first.id]
    sent_run, record = sent["runs"][second.id], ledger.find("runs", second.id)
    assert record
    assert sent_run["about"][:2] == (second.id, "FINISHED")
    assert sent_run["about"][3] - sent_run["about"][2] == pytest.approx(record["seconds"] * 1000, abs=2)
    assert {name: json.loads(sent_run["parameters"][name]) for name in ("epochs", "hidden", "seed")} == {
        name: record["config"][name] for name in ("epochs", "hidden", "seed")
    }
    assert sent_run["parameters"].keys() == record["config"].keys()
    assert second.model
    assert second.evaluation
    assert second.train
    assert second.test
    for name, value in {
        "version": "2",
        "state": "promoted",
        "weights": second.model.weights_digest,
        "test_split": second.test.digest,
        "asked_by": "test",
        "sent": "1",
    }.items():
        assert sent_run["tags"][f"idxflow.{name}"] == value
    series = sent_run["series"]
    assert [step for step, _, _ in series["train/loss"]] == [1, 2]
    times = [time for _, time, _ in series["validation/accuracy"]]
    assert sent_run["about"][2] < times[0] < times[1]
    assert {"learning_rate", "train/accuracy", "validation/loss", "gradient_norm/hidden_1"} <= series.keys()
    assert [value for _, _, value in series["test/accuracy"]] == [second.evaluation.accuracy]
    assert [value for _, _, value in series["test/accuracy_low"]] == [second.evaluation.accuracy_low]
    for score in second.evaluation.per_class:
        assert series[f"test/recall/{score.name}"][0][2] == score.recall
        assert series[f"test/precision/{score.name}"][0][2] == score.precision
    assert sent_run["files"] == ["README.md", "report.html", "report.json"]
    assert sent_run["inputs"] == [("tiny test", second.test.digest[:36]), ("tiny train", second.train.digest[:36])]
    assert sent_run["models"] == 1
    assert [(str(number), ours) for number, ours, _ in sent["versions"]] == [("1", "1"), ("2", "2")]
    assert {alias: str(number) for alias, number in sent["aliases"].items()} == {"champion": "2"}


@pytest.mark.usefixtures("sent")
def test_mlflow_loads_the_champion_and_it_predicts_from_raw_pixels_what_idxflow_does(
    runs: tuple[Store, list[RunRecord]], server: str, monkeypatch: pytest.MonkeyPatch
):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_tracking_uri(server)
    model = load_champion("tiny", runs[0])
    images = probe_images(model)
    loaded = mlflow.pyfunc.load_model("models:/tiny@champion")
    answer = loaded.predict(images.astype(np.float32))
    np.testing.assert_allclose(answer, model.predict(images).probabilities, atol=TOLERANCE)
    assert loaded.metadata.metadata["classes"] == list(model.classes)


def test_a_second_call_changes_nothing_and_after_promote_and_rollback_it_moves_the_alias(
    runs: tuple[Store, list[RunRecord]], sent: dict[str, Any], server: str, capsys: pytest.CaptureFixture[str]
):
    ids = [run.id for run in runs[1]]
    again = share(capsys, "--at", server)
    assert (again["code"], again["sent"], again["present"], again["alias_moved"]) == (0, [], ids, False)
    assert again["versions"] == [{"version": 1, "registered": "1"}, {"version": 2, "registered": "2"}]
    assert state(server, "tiny") == sent
    assert run_command(["promote", "tiny", "1", "--force", "--reason", "a try"]) == 0
    capsys.readouterr()
    moved = share(capsys, "latest", "--at", server)
    assert (moved["champion"], moved["alias_moved"]) == (1, True)
    client = client_of(server)
    assert client.get_model_version_by_alias("tiny", "champion").tags["idxflow.version"] == "1"
    assert run_command(["share", "card", "tiny"]) == 0
    assert re.search(r"^- By hand, \S+ \S+ UTC: forced v2→v1: a try$", capsys.readouterr().out, re.MULTILINE)
    assert run_command(["rollback", "tiny", "--reason", "back"]) == 0
    capsys.readouterr()
    assert share(capsys, "latest", "--at", server)["champion"] == 2
    assert state(server, "tiny") == sent


def test_what_somebody_has_deleted_there_stays_deleted(
    runs: tuple[Store, list[RunRecord]], server: str, capsys: pytest.CaptureFixture[str]
):
    first = runs[1][0].id
    assert share(capsys, first, "--at", server, "--name", "some")["sent"] == [run.id for run in runs[1]]
    client = client_of(server)
    (found,) = client.search_runs(
        [client.get_experiment_by_name("some").experiment_id], f"tags.`idxflow.run` = '{first}'"
    )
    client.delete_run(found.info.run_id)
    again = share(capsys, "--at", server, "--name", "some")
    assert (again["sent"], again["deleted"], again["champion"]) == ([], [first], 2)
    # A tag that somebody else has set, too.
    client.set_model_version_tag("some", "1", "idxflow.version", "the old one")
    assert [each["version"] for each in share(capsys, "--at", server, "--name", "some")["versions"]] == [2]
    client.delete_model_version("some", "2")
    assert run_command(["share", "mlflow", "tiny", "--at", server, "--name", "some"]) == 0
    assert "; the champion v2 is not there, so no version has the alias; at http" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["/runs/log-batch", "/artifacts/", "/model-versions/create"])
def test_a_call_that_was_killed_is_completed_by_the_next_one(
    sent: dict[str, Any], server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
):
    name = f"killed {place.strip('/').replace('/', '-')}"
    environment = clean_environment(tmp_path, IDXFLOW_STORE=os.environ["IDXFLOW_STORE"])
    with (
        front_of(server) as front,
        Command("share", "mlflow", "tiny", "--at", front.address, "--name", name, env=environment) as command,
    ):

        def kill(method: str, path: str) -> int | None:
            # The second one, so that something of this kind has been done.
            if place in path and sum(place in asked for asked in front.asked) == 2:
                os.kill(command.pid, signal.SIGKILL)
            return None

        front.before = kill
        command.communicate(240)
        assert command.wait() != 0
    completed = share(capsys, "--at", server, "--name", name)
    assert completed["code"] == 0
    assert completed["sent"]
    whole = state(server, name)
    assert whole["runs"] == sent["runs"]
    assert [version[1:] for version in whole["versions"]] == [version[1:] for version in sent["versions"]]


@pytest.mark.remedies("flows.sharing.mlflow_place:_of_mlflow", "flows.sharing.mlflow_place:_of_mlflow:3")
def test_a_server_that_refuses_is_told_in_a_sentence_and_credentials_come_from_mlflows_variables(
    server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with front_of(server) as front:
        front.user = "ann:open sesame"
        refused = share(capsys, "latest", "--at", front.address)
        assert refused["code"] == 1
        assert "expected to be allowed to write at http://127.0.0.1:" in refused["said"]
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open sesame")
        front.before = lambda method, path: 400 if "experiments" in path else None
        refused = share(capsys, "latest", "--at", front.address)
        assert "it answered: INVALID_PARAMETER_VALUE: not today; correct that" in refused["said"]
        assert refused["said"].count("\n") == 1
        front.before = lambda method, path: None
        assert share(capsys, "latest", "--at", front.address)["code"] == 0


@pytest.mark.remedies("flows.sharing.mlflow_place:_unreachable")
def test_a_server_that_is_gone_is_told_in_a_sentence(
    server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # MLflow waits between its tries.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with front_of(server) as front:
        pass
    gone = share(capsys, "latest", "--at", front.address)
    assert gone["code"] == 1
    assert f"expected an MLflow server at {front.address}; it cannot be reached (Connection refused)" in gone["said"]
    assert gone["said"].count("\n") == 1
    assert share(capsys, "latest", "--at", server)["code"] == 0


@pytest.mark.remedies("flows.sharing.mlflow_runs:_experiment")
def test_a_deleted_experiment_is_not_written_to(server: str, capsys: pytest.CaptureFixture[str]):
    client = client_of(server)
    experiment = client.create_experiment("gone")
    client.delete_experiment(experiment)
    refused = share(capsys, "latest", "--at", server, "--name", "gone")
    assert refused["code"] == 2
    assert f"`mlflow experiments restore --experiment-id {experiment}`" in refused["said"]
    client.restore_experiment(experiment)
    assert share(capsys, "latest", "--at", server, "--name", "gone")["code"] == 0


@pytest.mark.remedies(
    "flows.sharing.mlflow_place:_of_mlflow:2",
    "flows.sharing.mlflow_place:_failures",
    "flows.sharing.mlflow_runs:_experiment:2",
    "tasks.serving.mlflow_model:save",
)
def test_a_database_gets_the_same_and_its_files_lie_beside_it(
    runs: tuple[Store, list[RunRecord]],
    sent: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    import sqlalchemy
    from mlflow import pyfunc

    missing = share(capsys, "latest", "--at", "postgresql://127.0.0.1/mlflow")
    assert "expected the package psycopg2-binary to reach postgresql://127.0.0.1/mlflow" in missing["said"]
    database = f"sqlite:///{tmp_path}/mlflow.db"
    with monkeypatch.context() as patch:
        wrong = SimpleNamespace(predict=lambda images: np.zeros((len(images), 3)))
        patch.setattr(pyfunc, "load_model", lambda path: wrong)
        refused = share(capsys, "--at", database)
        assert "expected MLflow to load v1 of tiny with the model's own probabilities" in refused["said"]
    assert share(capsys, "--at", database)["sent"] == [run.id for run in runs[1]]
    assert state(database, "tiny")["runs"] == sent["runs"]
    assert {file.name for file in tmp_path.iterdir()} == {"mlflow.db", "mlartifacts"}
    request = Request(DatasetInStore(runs[0], "tiny"), Place("postgresql://127.0.0.1/mlflow"), "elsewhere")
    with pytest.raises(ConfigError, match="expected --files, where the files of runs go; found none"):
        mlflow_runs._experiment(client_of(database), request)
    assert mlflow_runs._experiment(client_of(database), replace(request, files=str(tmp_path / "files"))) == "2"
    engine = sqlalchemy.create_engine(database)
    with engine.begin() as connection:
        (revision,) = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).one()
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'f5a4f2784254'"))
    # MLflow keeps the stores of a process.
    from mlflow.tracking._tracking_service import utils

    utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()
    refused = share(capsys, "latest", "--at", database)
    assert "found those of another version; make a copy of the database and upgrade it (`" in refused["said"]
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = :it"), {"it": revision})
    engine.dispose()
    assert share(capsys, "latest", "--at", database)["code"] == 0


@pytest.mark.remedies(
    "flows.sharing.mlflow_place:place",
    "flows.sharing.mlflow_place:place:2",
    "flows.sharing.mlflow_place:place:3",
    "flows.commands.share:_name",
    "flows.sharing.extras:check_installed",
)
def test_a_wrong_place_is_told_before_anything_is_imported(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for at, said in {
        "mlruns": "found mlruns; give one (MLflow no longer writes to plain folders)",
        "file:///mlruns": "such as http://127.0.0.1:5000 or sqlite:///mlflow.db; found file:///mlruns",
        "https://ann:secret@127.0.0.1": "expected --at without user, password and query",
        # Passwords are often not escaped.
        "http://ann:se/secret@127.0.0.1": "found one in the address of http://127.0.0.1; put the whole address into",
        "postgresql://ann:se@secret@host/db": "found one in the address of postgresql://host/db; put",
        "postgresql://host/db?password=secret": "found one in the address of postgresql://host/db; put",
        "http://[::1": "found http://[::1; give one",
        "sqlite://": "write it as sqlite:///mlflow.db",
        # What is sent there would be gone.
        "sqlite:///:memory:": "expected a file in the address of a database of SQLite; found sqlite:///:memory:",
    }.items():
        refused = share(capsys, "latest", "--at", at)
        assert refused["code"] == 2
        assert said in refused["said"]
        assert "secret" not in refused["said"]
    assert "found none; give one" in share(capsys, "latest")["said"]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:se/secret@127.0.0.1:1")
    refused = share(capsys, "latest")
    assert (
        "expected http://127.0.0.1:1 to take the runs; it answered: Invalid url: http://127.0.0.1:1" in refused["said"]
    )
    assert "secret" not in refused["said"]
    (tmp_path / "text.db").write_text("This is no database of SQLite. " * 40)
    refused = share(capsys, "latest", "--at", f"sqlite:///{tmp_path}/text.db")
    assert "it cannot be reached (file is not a database)" in refused["said"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert "expected --name to have letters" in share(capsys, "latest", "--name", "it's")["said"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mlflow", None)
        refused = share(capsys, "latest")
        assert "install the extra `mlflow`" in refused["said"]
    assert share(capsys, "latest", "--name", "its")["code"] == 0
    assert os.environ["MLFLOW_TRACKING_URI"] == server
