"""What the README promises of Prefect: deploy, run by a worker started anywhere, schedule, see it in the UI."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from storage.ledger import Ledger
from storage.store import Store
from tests.servers import BIN, ROOT, prefect_server, running

pytestmark = pytest.mark.flow

_NOW = datetime.now(UTC)
LAST_DAY = {"since": (_NOW - timedelta(days=1)).isoformat(), "until": (_NOW + timedelta(days=1)).isoformat()}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory):
    """A server with the deployments of `prefect.yaml`, and a worker that was started in another folder."""
    home = tmp_path_factory.mktemp("home")
    with prefect_server(home) as environment:
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        worker = {**environment, "IDXFLOW_STORE": str(home / "store"), "PREFECT_WORKER_QUERY_SECONDS": "2"}
        command = [str(BIN / "prefect"), "worker", "start", "--pool", "idxflow", "--type", "process"]
        prefect(environment, "work-pool", "create", "idxflow", "--type", "process")
        prefect(environment, "--no-prompt", "deploy", "--all")
        with running(command, worker, elsewhere, home / "worker.log"):
            yield environment


def prefect(environment: dict[str, str], *arguments: str, cwd: Path = ROOT) -> str:
    result = subprocess.run(
        [str(BIN / "prefect"), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def promoted_triggers_a_run(deployed: dict[str, str]) -> str:
    """An automation as a user makes it: when a champion is replaced, run a deployment. Returns its id."""
    # Not `digits`, which takes no second run while the one that promoted has still to end.
    inbox = {d["name"]: d["id"] for d in post(deployed, "deployments/filter", {})}["inbox"]
    trigger = {
        "type": "event",
        "posture": "Reactive",
        "expect": ["idxflow.model.promoted"],
        "match": {"prefect.resource.id": "idxflow.model.*"},
        "threshold": 1,
        "within": 0,
    }
    action = {"type": "run-deployment", "source": "selected", "deployment_id": inbox}
    return post(deployed, "automations/", {"name": "promoted", "trigger": trigger, "actions": [action]})["id"]


def until(look: Callable[[], Any], seconds: float = 240) -> Any:
    """Look again until there is something; what is there then, or a failed test."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(1)
    return found


def post(environment: dict[str, str], path: str, body: Any) -> Any:
    """Ask the API, again where it says 503, as Prefect's own client does: SQLite has one writer."""

    def tried() -> httpx.Response | None:
        answer = httpx.post(f"{environment['PREFECT_API_URL']}/{path}", json=body, timeout=60)
        return None if answer.status_code == 503 else answer

    answer = until(tried)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def test_a_deployment_run_says_what_was_decided(deployed: dict[str, str], promoted_triggers_a_run: str):
    output = prefect(deployed, "deployment", "run", "retrain/digits", "--watch", cwd=Path("/"))
    assert "finished successfully in 'Promoted'" in output
    finished = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    run = post(deployed, "flow_runs/filter", finished)[0]
    assert run["state"]["name"] == "Promoted"
    assert run["state"]["message"].startswith("promoted v1")
    assert run["name"].startswith("digits ")
    assert run["name"].endswith("promoted v1")
    decision = Ledger(Store(Path(deployed["HOME"]) / "store"), "digits").read("decisions")[0]
    assert run["state"]["message"] == decision["sentence"]
    assert decision["asked_by"] == "deployment retrain/digits"

    tasks = post(deployed, "task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    names = {task["name"] for task in tasks}
    assert {"fetch-train-images", "decode-train", "validate", "normalize", "train", "publish"} <= names
    assert {task["state"]["type"] for task in tasks} == {"COMPLETED"}

    logs = post(deployed, "logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200})
    lines = "\n".join(log["message"] for log in logs)
    for said in ("fetch train-images:", "decode train: 1,437 images of 8×8", "validate:", "train:", "report:"):
        assert said in lines

    artifacts = post(deployed, "artifacts/filter", {"limit": 50})
    kinds = {artifact["key"]: artifact["type"] for artifact in artifacts}
    assert kinds["report-digits"] == "markdown"
    assert kinds["checks-digits"] == "table"
    assert "progress" in kinds.values()
    assert kinds["decision-digits"] == "table"
    report = next(a["data"] for a in artifacts if a["key"] == "report-digits")
    assert "Promoted v1" in report
    assert "data:image/" in report
    assert len(report) < 300_000


def test_a_promotion_is_an_event_that_automations_act_on(deployed: dict[str, str]):
    wanted = {"filter": {"event": {"name": ["idxflow.model.promoted"]}, "occurred": LAST_DAY}}
    events = until(lambda: post(deployed, "events/filter", wanted)["events"])
    assert events[0]["resource"]["prefect.resource.id"] == "idxflow.model.digits"
    assert events[0]["payload"]["sentence"].startswith("promoted v1")
    assert events[0]["payload"]["rules"]

    def triggered() -> list[dict]:
        runs = post(deployed, "flow_runs/filter", {})
        return [run for run in runs if (run["created_by"] or {}).get("type") == "AUTOMATION"]

    # The run that was triggered finds nothing new, so it is no promotion that would trigger another.
    ended = until(lambda: [run for run in triggered() if run["state"]["type"] == "COMPLETED"])
    assert len(triggered()) == 1
    assert ended[0]["state"]["message"].startswith("unchanged since v1")


def test_mnist_is_on_a_weekly_schedule_in_a_time_zone(deployed: dict[str, str]):
    deployment = {d["name"]: d for d in post(deployed, "deployments/filter", {})}["mnist"]
    schedule = deployment["schedules"][0]["schedule"]
    assert (schedule["cron"], schedule["timezone"]) == ("0 3 * * 0", "Europe/Berlin")
    assert deployment["entrypoint"] == "flows.retrain.retrain"
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_scheduled_runs_are_really_created(deployed: dict[str, str]):
    mnist = {d["name"]: d["id"] for d in post(deployed, "deployments/filter", {})}["mnist"]
    wanted = {"deployments": {"id": {"any_": [mnist]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    runs = until(lambda: post(deployed, "flow_runs/filter", wanted))
    berlin = {datetime.fromisoformat(run["expected_start_time"]).astimezone(ZoneInfo("Europe/Berlin")) for run in runs}
    assert berlin
    assert {(start.isoweekday(), start.hour, start.minute) for start in berlin} == {(7, 3, 0)}


def test_parameters_have_bounds_and_descriptions(deployed: dict[str, str]):
    deployment = post(deployed, "deployments/filter", {})[0]
    schema = json.dumps(deployment["parameter_openapi_schema"])
    assert "Passes over the fitted rows, at most. At least 1, at most 10,000." in schema
    assert '"minimum": 1' in schema
    assert "Folder or URL (without credentials: these go into IDXFLOW_SOURCE, the default)" in schema


def test_deploying_again_changes_nothing(deployed: dict[str, str]):
    def known() -> dict[str, str]:
        return {d["name"]: d["id"] for d in post(deployed, "deployments/filter", {})}

    before = known()
    prefect(deployed, "--no-prompt", "deploy", "--all")
    assert known() == before
    assert set(before) == {"digits", "inbox", "mnist"}


def test_the_server_logs_no_error(deployed: dict[str, str]):
    # Services of the server that fail do so here, and nowhere that a user looks.
    log = (Path(deployed["HOME"]) / "server.log").read_text()
    assert "ERROR" not in log
    assert "Traceback" not in log


def test_the_server_sends_nothing_anywhere(deployed: dict[str, str]):
    settings = httpx.get(f"{deployed['PREFECT_API_URL']}/admin/settings", timeout=30).json()
    assert settings["server"]["analytics_enabled"] is False
