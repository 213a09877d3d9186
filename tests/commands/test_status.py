"""`idxflow status` and `idxflow doctor` without a server: fresh, stale, failing, damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import diagnosis, health
from flows.commands import status
from flows.commands.cli import run_command
from storage.drifts import Drifts
from storage.ledger import Ledger
from storage.registry import NO_RUN, Registry
from storage.store import Store
from tests.support.servers import free_port
from tests.support.stores import DATASET, decide, retrain


@pytest.fixture(autouse=True)
def no_server() -> Iterator[None]:
    """Not even that of the developer, at the usual port; this process may have read its variables before."""
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        yield


@pytest.fixture
def fresh(store: Store) -> Store:
    retrain(store, 1)
    retrain(store, 2, promoted=False)
    return store


def test_a_fresh_data_set_is_ok(fresh: Store, capsys: pytest.CaptureFixture):
    assert run_command(["status", "--store", str(fresh.root)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("tiny: ok\n")
    assert "champion  v1, 90.00% on test, since " in output
    assert "last run  " in output
    assert "kept v2" in output
    assert "the next runs are unknown: expected a Prefect server at" in output


def test_drift_is_shown_as_long_as_it_is_about_the_champion(fresh: Store, capsys: pytest.CaptureFixture):
    drifts, command = Drifts(fresh, DATASET), ["status", "--store", str(fresh.root)]
    drifts.note(1, True, {"sentence": "drifted: 400 images", "from": "/new"})
    assert run_command(command) == 0
    assert " (less than a minute ago), drifted: 400 images\n" in capsys.readouterr().out.split("  drift     ")[1]
    assert run_command([*command, "--json"]) == 0
    drift = json.loads(capsys.readouterr().out)["datasets"][0]["drift"]
    assert (drift["drifted"], drift["sentence"], drift["source"]) == (True, "drifted: 400 images", "/new")
    drifts.note(1, False, {"sentence": "within the limits: 400 images"})
    run_command(command)
    assert "within the limits: 400 images" in capsys.readouterr().out
    retrain(fresh, 3)
    run_command(command)
    assert "  drift  " not in capsys.readouterr().out


def test_a_finding_of_drift_that_is_damaged_needs_attention(fresh: Store, capsys: pytest.CaptureFixture):
    Drifts(fresh, DATASET).note(1, True, {"sentence": "drifted: 400 images"})
    (file,) = fresh.root.glob(f"{DATASET}/ledger/drifts/*.json")
    file.write_text("{}")
    assert run_command(["status", "--store", str(fresh.root)]) == 1
    assert "  problem   whether new images have drifted is unknown: " in capsys.readouterr().out


def test_an_error_budget_is_shown_when_little_is_left_and_needs_attention_when_nothing_is(
    fresh: Store, capsys: pytest.CaptureFixture
):
    registry, command = Registry(fresh, DATASET), ["status", "--store", str(fresh.root)]
    limits = {"alpha": 0.05, "alpha_budget": 0.1, "budget_decisions": 4.0}

    def spend(alpha: float) -> str:
        decide(registry, "kept", 1, limits=limits, spent=alpha, test_digest="rows")
        code = run_command(command)
        output = capsys.readouterr().out
        assert code == ("needs attention" in output)
        return output

    assert "budget" not in spend(0.05)
    assert "  budget    1 decision of the error budget of these test images left (0.075 of 0.1 spent)\n" in spend(0.025)
    # A person's decision has no budget.
    decide(registry, "forced", 2, NO_RUN)
    assert "  problem   the error budget of these test images is used up (0.1 of 0.1), so " in spend(0.025)
    assert run_command([*command, "--json"]) == 1
    budget = json.loads(capsys.readouterr().out)["datasets"][0]["budget"]
    assert (budget["left"], budget["is_low"]) == (0, True)


def test_a_name_of_the_catalog_is_taken_for_no_other(fresh: Store, capsys: pytest.CaptureFixture):
    assert run_command(["status", "mnist", "--store", str(fresh.root)]) == 2
    said = capsys.readouterr().err
    assert "found 'mnist'; run it first: `idxflow run mnist" in said
    assert run_command(["status", "mnits", "--store", str(fresh.root)]) == 2
    assert "found 'mnits' (did you mean mnist?)" in capsys.readouterr().err


def test_json_says_the_same(fresh: Store, capsys: pytest.CaptureFixture):
    assert run_command(["status", DATASET, "--json", "--store", str(fresh.root)]) == 0
    health = json.loads(capsys.readouterr().out)["datasets"][0]
    assert health["champion"]["version"] == 1
    assert [run["state"] for run in health["runs"]] == ["kept", "promoted"]
    assert health["problems"] == []


def test_a_data_set_without_a_good_run_for_too_long_is_stale(
    fresh: Store, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    class Later(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.now(zone) + timedelta(days=9)

    monkeypatch.setattr(status, "datetime", Later)
    assert run_command(["status", "--store", str(fresh.root)]) == 1
    output = capsys.readouterr().out
    assert "stale: the last successful run was 9 days ago; expected one at least every 8 days" in output
    assert run_command(["status", "--max-age", "30", "--store", str(fresh.root)]) == 0


@pytest.mark.parametrize("state", ["refused", "failed"])
def test_a_failing_data_set_needs_help(fresh: Store, state: str, capsys: pytest.CaptureFixture):
    record = {"state": state, "sentence": "tiny: label 10", "seconds": 0.1, "steps": {}, "report": None}
    Ledger(fresh, DATASET).append("runs", "run-3", record)
    assert run_command(["status", "--store", str(fresh.root)]) == 1
    ended = {"refused": "was refused", "failed": "failed"}[state]
    assert f"the last run {ended}: tiny: label 10" in capsys.readouterr().out


def test_no_champion_is_a_problem_and_no_data_set_wrong_usage(store: Store, capsys: pytest.CaptureFixture):
    retrain(store, 1, promoted=False)
    assert run_command(["status", "--store", str(store.root)]) == 1
    assert "no champion yet" in capsys.readouterr().out
    assert run_command(["status", "mnist", "--store", str(store.root)]) == 2


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (0, "less than a minute"),
        (1, "1 minute"),
        (90, "90 minutes"),
        (150, "2 hours"),
        (1440, "1 day"),
        (2000, "33 hours"),
        (10_000, "6 days"),
    ],
)
def test_spans_are_given_in_their_largest_unit(minutes: int, text: str):
    assert health.span_text(timedelta(minutes=minutes)) == text


def test_the_doctor_finds_nothing_wrong_without_a_server(fresh: Store, capsys: pytest.CaptureFixture):
    assert run_command(["doctor", "--json", "--store", str(fresh.root)]) == 0
    findings = {f["what"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert {name: f["verdict"] for name, f in findings.items() if f["verdict"] != "ok"} == {"server": "warning"}
    assert "idxflow up" in findings["server"]["remedy"]
    assert findings["store"]["found"].startswith("8 entries, 2 versions, 4 ledger records")


class Server:
    """What a client says of a server of another version, and of itself."""

    api_url = "http://127.0.0.1:4200/api"

    def __init__(self, theirs: str) -> None:
        self.theirs = theirs

    def client_version(self) -> str:
        return "3.8.8"

    def api_version(self) -> str:
        return self.theirs


@pytest.mark.remedies("flows.diagnosis:_same_version")
def test_the_doctor_compares_the_server_with_the_client():
    # One that is installed in the same version is taken.
    for theirs, verdict in (("3.9.1", "problem"), ("3.8.8", "ok"), ("3.8.1", "ok")):
        assert diagnosis._same_version(Server(theirs)).verdict == verdict


def test_times_are_utc(fresh: Store):
    run = Ledger(fresh, DATASET).last("runs")
    assert run
    assert datetime.fromisoformat(run["time"]).tzinfo == UTC
