"""`idxflow up`: one command from nothing to scheduled retraining, and what it does when things die."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_HOME, temporary_settings

from flows import diagnosis
from flows.service import deployments, server
from flows.service.memory import Memory
from flows.service.supervisor import Supervisor, UpOptions
from storage.drifts import Drifts
from storage.errors import PrefectFailed
from storage.ledger import Ledger
from storage.store import Store
from storage.verify import verify
from tests.conftest import write_tiny
from tests.support.commands import Command, idxflow, prefect
from tests.support.faultserver import FaultServer, good
from tests.support.held_archives import held_archives
from tests.support.operated import WATCH, fork_deploys, fork_flow_runs, until
from tests.support.postgres import postgres
from tests.support.servers import HTTP, ROOT, clean_environment, free_port
from tests.support.up import Service, command, configured, going

pytestmark = pytest.mark.flow

QUICK = "[training]\nepochs = 4\nlearning_rate = 0.1\nhidden = [8]\nbatch_size = 16\n"
PASSWORD = f"canary-{uuid.uuid4().hex}"
"""Looked for in all processes of the machine, where other tests may run, too."""


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a new user, with the server's address."""
    home = tmp_path_factory.mktemp("home")
    port = free_port()
    return clean_environment(
        home,
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        IDXFLOW_STORE=str(home / "store"),
        IDXFLOW_ZOMBIE_SECONDS="60",
        PREFECT_WORKER_QUERY_SECONDS="2",
    )


@pytest.fixture(scope="module")
def manifest(place: dict[str, str]) -> Path:
    """The manifest of a small data set, which lies beside it."""
    return write_tiny(Path(place["HOME"]), manifest=QUICK).manifest


@pytest.fixture(scope="module")
def watcher(place: dict[str, str], manifest: Path) -> Iterator[Command]:
    """`idxflow watch` of a folder in which there is a set, started before anything else."""
    words = ("watch", str(manifest.with_name("tiny-source")), "--dataset-file", str(manifest), "--every", "1")
    with Command(*words, env=place) as watcher:
        # Before `up` listens: its port takes questions that it cannot answer yet.
        until(lambda: "idxflow: expected a Prefect server at" in watcher.errors or watcher.poll() is not None)
        yield watcher


@pytest.fixture(scope="module")
def service(place: dict[str, str], watcher: Command) -> Iterator[Service]:
    with going(place, Path(place["HOME"]) / "up.log", "--site-port", "0", forked=True) as service:
        yield service


@pytest.fixture(scope="module")
def lost_run(service: Service) -> str:
    """A run that holds its deployment's only slot, gave one sign of life, and whose machine then lost power."""
    # Not scheduled, so that the worker does not take it.
    body = {"state": {"type": "FAILED"}, "parameters": {"dataset": "mnist"}}
    run = service.post(f"deployments/{service.deployment('mnist')['id']}/create_flow_run", body)["id"]
    for state in ("PENDING", "RUNNING"):
        service.post(f"flow_runs/{run}/set_state", {"state": {"type": state}})
    heartbeat = {
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "occurred": datetime.now(UTC).isoformat(),
        "id": str(uuid.uuid4()),
        "payload": {},
        "related": [],
    }
    service.post("events", [heartbeat])
    assert service.slots("mnist") == 1
    return run


@pytest.mark.remedies("flows.diagnosis:_server:2")
def test_the_doctor_names_the_command_where_there_is_no_server(
    place: dict[str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    # Nor one of the developer.
    monkeypatch.setattr(server, "DEFAULT_PORT", free_port())
    store = Store(Path(place["IDXFLOW_STORE"]))
    with temporary_settings({PREFECT_HOME: Path(place["PREFECT_HOME"])}):
        _, finding = diagnosis._server(store)
        assert (finding.verdict, finding.what) == ("warning", "server")
        assert finding.remedy == f"{store.command('up')}: needed for schedules, deployments and the UI"
        request.getfixturevalue("service")
        findings = {finding.what: finding for finding in diagnosis._server(store)}
    assert findings["server"].verdict == "ok"
    assert f" at {place['PREFECT_API_URL']}" in findings["server"].found


# Its server waits for that run's next sign of life while the other tests do their work.
@pytest.mark.usefixtures("lost_run")
def test_a_set_that_arrived_before_the_server_was_there_is_retrained(service: Service, watcher: Command):
    until(lambda: "promoted v1" in watcher.output or watcher.poll() is not None)
    assert watcher.poll() is None, watcher.errors
    assert "idxflow: expected a Prefect server at" in watcher.errors
    assert len(Ledger(Store(Path(service.environment["IDXFLOW_STORE"])), "tiny").read("runs")) == 1
    watcher.kill()


def test_its_site_shows_what_its_runs_did_and_their_artifacts_link_there(service: Service):
    place = re.search(r"starting the site at (\S+), process (\d+), log (\S+)", service.output)
    assert place, service.output
    url, process, _ = place.groups()
    (page,) = service.post("artifacts/latest/filter", {"artifacts": {"key": {"any_": ["page-tiny"]}}})
    link = re.fullmatch(r"\[Report of run \S+\]\((\S+)\)", page["data"])
    assert link, page
    assert link[1].startswith(f"{url}/tiny/runs/")
    report = until(lambda: _answered(link[1]))
    assert "Version 1 is the new champion" in report.text
    os.kill(int(process), signal.SIGKILL)
    until(lambda: "site started again, process" in service.output)
    assert "promoted v1" in until(lambda: _answered(f"{url}/tiny/")).text


def _answered(url: str) -> httpx.Response | None:
    """The answer of a site, once it answers."""
    try:
        return httpx.get(url, headers={"accept": "text/html"}).raise_for_status()
    except httpx.HTTPError:
        return None


def test_it_says_where_the_ui_is_and_what_to_try(service: Service):
    address = service.environment["PREFECT_API_URL"].removesuffix("/api")
    # No line moves where nobody looks.
    assert "\x1b" not in service.output
    assert f"the UI is at {address}" in service.output
    assert "<html" in HTTP.get(address, follow_redirects=True).text


def test_the_server_is_closed(service: Service):
    settings = service.get("admin/settings")["server"]
    assert settings["api"]["host"] == "127.0.0.1"
    assert settings["analytics_enabled"] is False
    assert settings["ui"]["show_promotional_content"] is False
    assert set(settings["services"]["db_vacuum"]["enabled"]) == {"events", "flow_runs"}
    api = service.environment["PREFECT_API_URL"]
    foreign = HTTP.get(f"{api}/health", headers={"Origin": "https://example.com"})
    assert foreign.status_code == 403
    assert HTTP.get(f"{api}/flow_runs/filter").status_code == 401
    home = Path(service.environment["PREFECT_HOME"])
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_second_one_says_what_runs_and_starts_nothing(service: Service):
    second = command(service.environment)
    assert second.returncode == 0, second.stderr
    assert f"is already running, process {service.process.pid}" in second.stdout
    assert "worker polling the pool idxflow" in second.stdout


@pytest.mark.remedies("flows.service.supervisor:_refuse_shared_database")
def test_a_second_server_on_the_same_database_is_refused(service: Service, tmp_path: Path):
    words = ("up", "--port", str(free_port()))
    refused = idxflow(*words, env=service.environment)
    assert refused.returncode == 1
    address = service.environment["PREFECT_API_URL"]
    assert (
        f"found that of `idxflow up` at {address}; stop that one first, or choose another PREFECT_HOME"
        in refused.stderr
    )
    with Command(*words, env={**service.environment, "PREFECT_HOME": str(tmp_path)}) as other:
        until(lambda: "starting a Prefect server at " in other.output or other.poll() is not None)
        other.send_signal(signal.SIGTERM)
        assert other.wait(240) == 0, other.errors


def test_a_killed_worker_is_replaced_and_its_run_blocks_nothing(service: Service):
    with service.waiting_run() as run:
        assert service.slots("digits") == 1
        worker = service.pid("worker")
        for pid in (worker, int(service.get(f"flow_runs/{run}")["infrastructure_pid"])):
            os.kill(pid, signal.SIGKILL)
    message = until(lambda: service.has_state(run, "CRASHED"))
    assert "its worker ended" in message
    assert service.slots("digits") == 0
    until(lambda: service.pid("worker") != worker)
    assert re.search("the worker was killed by SIGKILL; .*; starting it again in 1 s", service.output)
    again = "idxflow prefect deployment run retrain/digits"
    sentence = until(lambda: recorded(service, "digits", "crashed"))
    assert sentence.endswith(f"; run it again to resume: {again}")


def recorded(service: Service, dataset: str, state: str) -> str | None:
    """What the ledger has of the newest run, once that has this state."""
    run = Ledger(Store(Path(service.environment["IDXFLOW_STORE"])), dataset).last("runs")
    return run["sentence"] if run and run["state"] == state else None


def test_a_data_set_that_is_added_with_a_schedule_is_deployed_retrained_and_dropped(service: Service, manifest: Path):
    folder = manifest.with_name("my letters")
    words = ("dataset", "add", "letters", str(manifest.with_name("tiny-source")), "--as", str(folder))
    added = idxflow(*words, "--schedule", "0 0 1 1 *", "--timezone", "UTC", env=service.environment)
    assert added.returncode == 0, added.stderr
    file = folder / "letters.prefect.yaml"
    until(lambda: f"deployed {file}" in service.output)
    letters = service.deployment("letters")
    assert [s["schedule"]["cron"] for s in letters["schedules"]] == ["0 0 1 1 *"]
    body = {"parameters": {"training": {"epochs": 4, "learning_rate": 0.1, "hidden": [8], "batch_size": 16}}}
    run = service.post(f"deployments/{letters['id']}/create_flow_run", body)["id"]
    # Meanwhile somebody breaks the file: its deployment stays, and so do the others.
    file.write_text("deployments:")
    until(lambda: f"warning: {file}: expected the form of prefect.yaml" in service.output)
    assert until(lambda: service.has_state(run, "COMPLETED")).startswith("promoted v1")
    assert service.deployment("letters")["schedules"] == letters["schedules"]
    file.unlink()
    until(lambda: "\nremoved the deployment letters\n" in service.output)
    assert "letters" not in [d["name"] for d in service.post("deployments/filter", {})]


def test_a_run_that_is_cancelled_before_it_started_is_in_the_ledger(service: Service):
    later = {"state_details": {"scheduled_time": (datetime.now(UTC) + timedelta(days=1)).isoformat()}}
    body = {"state": {"type": "SCHEDULED", **later}, "parameters": {"dataset": "kmnist"}}
    run = service.post(f"deployments/{service.deployment('mnist')['id']}/create_flow_run", body)["id"]
    cancelled = {"state": {"type": "CANCELLED", "message": "not this week"}, "force": True}
    service.post(f"flow_runs/{run}/set_state", cancelled)
    sentence = until(lambda: recorded(service, "kmnist", "cancelled"))
    assert sentence == "it was cancelled before it started: not this week"


def test_it_tells_of_what_happens_without_prefect_and_knows_the_secret_from_a_block(service: Service):
    token = uuid.uuid4().hex
    with FaultServer({"/hook": good(b"")}) as receiver:
        keep_secret(service, "idxflow-chat", receiver.url(f"/hook?token={token}"))
        words = ("alerts", "add", "webhook", "--url-from", "block:idxflow-chat", "--event", "drifted")
        assert idxflow(*words, env=service.login).returncode == 0
        store = Store(Path(service.environment["IDXFLOW_STORE"]))
        Drifts(store, "told").note(1, True, {"sentence": "the digits are thinner"})
        until(lambda: receiver.requests)
        (body,) = [json.loads(request.body) for request in receiver.requests]
        assert (body["event"], body["sentence"]) == ("drifted", "the digits are thinner")
    # Of runs, the ends that a flow run could not emit itself.
    for number, kind in enumerate(("TrainingFailed", "Crashed")):
        state, error = ("crashed" if number else "failed"), {"kind": kind, "sentence": "no", "exit_code": 1}
        ended = {"dataset": "told", "state": state, "sentence": "it was not to be", "error": error, "version": None}
        Ledger(store, "told").append("runs", f"run-{number}", {**ended, "report": None, "seconds": 1.0, "steps": []})
    query = {"filter": {"event": {"prefix": ["idxflow.run."]}, "resource": {"id": ["idxflow.model.told"]}}}
    events = until(lambda: service.post("events/filter", query)["events"])
    assert [event["event"] for event in events] == ["idxflow.run.crashed"]
    # A receiver that is gone is named once, and ends nothing.
    Drifts(store, "told").note(2, True, {"sentence": "and thinner"})
    until(lambda: "alert webhook: no connection to 127.0.0.1 (Connection refused)" in service.output)
    assert idxflow("alerts", "remove", "webhook", env=service.login).returncode == 0
    home = Path(service.environment["HOME"])
    texts = [path for path in home.rglob("*") if path.suffix in (".json", ".log") and path.is_file()]
    assert [path for path in texts if token.encode() in path.read_bytes()] == []


def keep_secret(service: Service, name: str, value: str) -> None:
    """Make a block of the type Secret, as people do in the UI."""
    kind = service.get("block_types/slug/secret")["id"]
    schemas = service.post("block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}})
    block = {"name": name, "block_type_id": kind, "block_schema_id": schemas[0]["id"], "data": {"value": value}}
    service.post("block_documents/", block)


def test_a_cancelled_training_stops_at_once_and_leaves_the_store_clean(service: Service):
    run = service.start_long_training()
    process = int(service.get(f"flow_runs/{run}")["infrastructure_pid"])
    assert prefect("flow-run", "cancel", run, env=service.login).returncode == 0
    until(lambda: has_ended(process))
    until(lambda: service.has_state(run, "CANCELLED"))
    assert service.slots("digits") == 0
    assert until(lambda: recorded(service, "digits", "cancelled")).startswith("it was cancelled; run it again")
    verdict = verify(Store(Path(service.environment["IDXFLOW_STORE"])), "digits")
    assert not verdict.damage
    assert verdict.versions == 0


def test_a_cancelled_run_takes_its_workers_with_it(service: Service, tmp_path: Path):
    with held_archives(tmp_path) as held:
        body = {"parameters": {"dataset_file": str(held.manifest), "workers": "2"}}
        run = service.post(f"deployments/{service.deployment('digits')['id']}/create_flow_run", body)["id"]
        until(lambda: held.times)
        process = int(service.get(f"flow_runs/{run}")["infrastructure_pid"])
        workers = workers_of(service)
        assert len(workers) == 2
        # As the UI does it.
        cancelling = service.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
        assert cancelling["status"] == "ACCEPT"
        until(lambda: has_ended(process))
        until(lambda: all(map(has_ended, workers)))
    until(lambda: service.has_state(run, "CANCELLED"))
    until(lambda: not service.tasks_under_way(run))
    assert service.slots("digits") == 0
    assert until(lambda: recorded(service, "listed", "cancelled")).startswith("it was cancelled; run it again")


def workers_of(service: Service) -> list[int]:
    """Return the processes that were started by runs with this store for `--workers`."""
    mark = f"IDXFLOW_STORE={service.environment['IDXFLOW_STORE']}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            named = b"storage.workers.dask_worker" in (process / "cmdline").read_bytes()
            if named and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def test_a_run_whose_machine_is_gone_is_ended_by_the_server(service: Service, lost_run: str):
    message = until(lambda: service.has_state(lost_run, "CRASHED"))
    assert "no heartbeat for 60 s" in message
    assert service.slots("mnist") == 0


@pytest.mark.remedies("flows.service.supervisor:_await_worker")
def test_ctrl_c_stops_everything_and_the_next_start_keeps_the_users_schedules(service: Service):
    mnist = service.deployment("mnist")
    schedule = mnist["schedules"][0]
    changed = {"schedule": {"cron": "30 4 * * 2", "timezone": "UTC"}, "active": False}
    service.ask("PATCH", f"deployments/{mnist['id']}/schedules/{schedule['id']}", json=changed)
    trigger = _trigger_of_an_earlier_version(service)
    with service.waiting_run() as run:
        child = int(service.get(f"flow_runs/{run}")["infrastructure_pid"])
        pids = [service.pid("server"), service.pid("worker"), child]
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(240) == 0
    assert service.output.rstrip().endswith("stopped")
    assert all(has_ended(pid) for pid in pids)

    with going(service.environment, service.log.with_name("up-again.log"), forked=True) as again:
        assert "schedules kept as they are on the server: mnist" in again.output
        schedules = again.deployment("mnist")["schedules"]
        assert [(s["schedule"]["cron"], s["active"], s["slug"]) for s in schedules] == [("30 4 * * 2", False, "weekly")]
        assert trigger not in [automation["name"] for automation in again.post("automations/filter", {})]
        assert again.state(run) == ("CRASHED", "`idxflow up` was stopped; run it again to resume")
        _another_one_uses_the_server_and_leaves_it_running(again)
        # This also deploys to the first pool again.
        _a_deleted_schedule_stays_deleted_until_the_file_changes(again)
        _a_server_that_dies_is_started_again(again)
        _nothing_outlives_it_when_it_is_killed(again)


def _trigger_of_an_earlier_version(service: Service) -> str:
    """Make the automation that ran what an event named; return its name."""
    inbox = service.deployment("inbox")["id"]
    trigger = {
        "type": "event",
        "posture": "Reactive",
        "expect": ["idxflow.inbox.complete"],
        "threshold": 1,
        "within": 0,
    }
    trigger["match"] = {"prefect.resource.id": "idxflow.inbox.*"}
    parameters = {"dataset_file": "{{ event.payload.dataset_file }}"}
    action = {"type": "run-deployment", "source": "selected", "deployment_id": inbox, "parameters": parameters}
    name = "idxflow: retrain what has arrived in an inbox"
    request = {
        "name": name,
        "trigger": trigger,
        "actions": [action],
        "owner_resource": f"prefect.deployment.{inbox}",
    }
    service.post("automations/", request)
    assert name in [automation["name"] for automation in service.post("automations/filter", {})]
    return name


def _a_deleted_schedule_stays_deleted_until_the_file_changes(service: Service) -> None:
    """Deploys from here, as `up` does each time it starts."""
    mnist = service.deployment("mnist")
    api = service.environment["PREFECT_API_URL"]
    service.ask("DELETE", f"deployments/{mnist['id']}/schedules/{mnist['schedules'][0]['id']}")
    with (
        configured(service),
        get_client(sync_client=True) as client,
        pytest.MonkeyPatch.context() as patch,
    ):
        fork_deploys(patch)
        memory = Memory(Path(service.environment["HOME"]), api, "idxflow")
        promise = deployments.Promise("idxflow", 60, service.login, memory, deployments.read_plan(), lambda: None)
        assert deployments.deploy(client, promise).kept == ("mnist", "garbage")
        assert service.deployment("mnist")["schedules"] == []
        plan = yaml.safe_load((ROOT / "prefect.yaml").read_text().replace("0 3 * * 0", "0 5 * * 0"))
        assert deployments.deploy(client, replace(promise, plan=plan)).kept == ("garbage",)
    assert [s["schedule"]["cron"] for s in service.deployment("mnist")["schedules"]] == ["0 5 * * 0"]


def _another_one_uses_the_server_and_leaves_it_running(service: Service) -> None:
    _a_worker_that_cannot_start_is_named_with_its_log(service)
    other = command(service.environment, "--pool", "other")
    assert other.returncode == 0, other.stderr
    assert "found a Prefect server" in other.stdout
    assert other.stdout.rstrip().endswith("deployed; nothing was started")
    assert service.deployment("digits")["work_pool_name"] == "other"
    assert service.get("health") is True
    assert not has_ended(service.pid("worker"))


def _a_worker_that_cannot_start_is_named_with_its_log(service: Service) -> None:
    """As with a file of settings for logging that is damaged; without that, the next one starts."""
    logging = service.log.with_name("logging.yml")
    logging.write_text("{")
    with configured(service):
        other = Supervisor(UpOptions(pool="other", site=False))
        with other._client() as client:
            deployments.ensure_pool(client, "other")
            with pytest.raises(
                PrefectFailed, match="expected a worker in the pool other, found: worker ended"
            ) as caught:
                other._start_worker(client, {**service.login, "PREFECT_LOGGING_SETTINGS_PATH": str(logging)})
    log = Path(service.environment["PREFECT_HOME"]) / "idxflow" / "worker.log"
    assert str(caught.value).endswith(f"; see {log}")
    assert "yaml.parser.ParserError" in log.read_text()


def _a_server_that_dies_is_started_again(service: Service) -> None:
    run = service.start_long_training()
    dead = service.pid("server")
    os.kill(dead, signal.SIGKILL)
    until(lambda: service.pid("server") != dead)
    since = datetime.now(UTC).isoformat()
    # The training went on meanwhile, reports to the new server, and still has its slot.
    later = {"logs": {"flow_run_id": {"any_": [run]}, "timestamp": {"after_": since}}}
    until(
        lambda: reachable(service) and any(" epoch " in line["message"] for line in service.post("logs/filter", later))
    )
    assert service.state(run)[0] == "RUNNING"
    assert service.slots("digits") == 1


def reachable(service: Service) -> bool:
    try:
        return service.get("health")
    except httpx.TransportError:
        return False


def _nothing_outlives_it_when_it_is_killed(service: Service) -> None:
    pids = [service.pid("server"), service.pid("worker")]
    runs = service.post("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}})
    pids += [int(run["infrastructure_pid"]) for run in runs]
    assert len(pids) == 3
    service.process.kill()
    service.process.wait(240)
    until(lambda: all(has_ended(pid) for pid in pids))


def test_a_port_that_something_else_has_is_refused_in_one_sentence(tmp_path: Path):
    with FaultServer({}) as other:
        refused = command(clean_environment(tmp_path), "--port", port_of(other))
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert f"free port at http://{other.host}, found something else (HTTP 404)" in refused.stderr


def test_a_port_that_answers_nothing_belongs_to_another_program(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "_HEALTH_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = server.address("127.0.0.1", silent.getsockname()[1], None)
        with pytest.raises(PrefectFailed, match=r"found something else \(no answer within 0.1 s\)"):
            server.is_up(where)


@pytest.mark.remedies("flows.service.supervisor:_start_server")
def test_a_server_of_another_user_is_used_only_where_it_is_named(tmp_path: Path):
    if os.getuid() != 0:
        pytest.skip("needs to be root, to listen as another user")
    with FaultServer({}) as theirs, FaultServer({}) as ours:
        # Whose it is, the system says by the owner of the socket: proc(5), `/proc/net/tcp`.
        os.fchown(theirs._listener.fileno(), 65534, -1)
        environment, named = clean_environment(tmp_path), {"PREFECT_API_URL": theirs.url("/api")}
        refused, *further = (
            idxflow("up", *words, env=environment | more)
            for words, more in (
                (("--port", port_of(theirs)), {}),
                (("--port", port_of(ours)), {}),
                ((), named),
            )
        )
    assert refused.returncode == 1
    advice = "found another user's; choose another with --port, or set PREFECT_API_URL to trust that one"
    assert advice in refused.stderr
    for attempt in further:
        assert "found something else (HTTP 404)" in attempt.stderr


def port_of(server: FaultServer) -> str:
    return server.host.rpartition(":")[2]


def test_an_open_address_needs_an_auth_string(tmp_path: Path):
    refused = command(clean_environment(tmp_path), "--host", "0.0.0.0", "--no-auth")
    assert refused.returncode == 2
    assert "expected no --no-auth with --host 0.0.0.0" in refused.stderr


def test_a_password_on_the_command_line_is_refused_and_not_repeated(tmp_path: Path):
    refused = command(clean_environment(tmp_path), "--database", f"postgresql+asyncpg://u:{PASSWORD}@127.0.0.1/p")
    assert refused.returncode == 2
    assert "PGPASSWORD" in refused.stderr
    assert PASSWORD not in refused.stderr + refused.stdout


def test_with_postgresql_auth_and_csrf_a_run_is_carried_out_and_no_secret_is_shown(
    place: dict[str, str], manifest: Path, tmp_path: Path
):
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    # A store that has all of this data set already, so that the run is short.
    environment = clean_environment(
        tmp_path,
        PREFECT_API_URL=api,
        IDXFLOW_STORE=place["IDXFLOW_STORE"],
        PREFECT_WORKER_QUERY_SECONDS="2",
        PGPASSWORD=PASSWORD,
    )
    options = ("--database", "{url}")
    data = ("--param", f"dataset_file={manifest}")
    with postgres(PASSWORD) as cluster:
        arguments = [option.format(url=cluster.url) for option in options]
        with going(environment, tmp_path / "up.log", *arguments) as service:
            secret_file = Path(environment["PREFECT_HOME"]) / "idxflow" / "auth-string"
            assert secret_file.stat().st_mode & 0o777 == 0o600
            secret = secret_file.read_text().strip()
            assert HTTP.get(f"{api}/admin/settings").status_code == 401
            user, _, word = secret.partition(":")
            forged = HTTP.post(f"{api}/flow_runs/filter", json={}, auth=(user, word))
            assert forged.status_code == 403
            with configured(service), get_client(sync_client=True) as client:
                fork_flow_runs(client)
            watched = prefect("deployment", "run", "retrain/digits", *data, *WATCH, env=service.login, cwd=Path("/"))
            assert watched.returncode == 0, watched.stdout + watched.stderr
            processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
            files = [path for path in tmp_path.rglob("*") if path.is_file() and path != secret_file]
            written = b"".join(path.read_bytes() for path in files).decode(errors="replace")
        # A schedule of prefect.yaml may come due just now.
        ended = "select count(*) from flow_run where state_type = 'COMPLETED' and not auto_scheduled"
        assert cluster.ask(ended) == "1"
    for text in (processes, written, service.output, watched.stdout):
        assert PASSWORD not in text
        assert secret not in text
        assert word not in text


def test_a_database_that_refuses_is_named_in_one_sentence_without_the_password(tmp_path: Path):
    url = f"postgresql+asyncpg://prefect@127.0.0.1:{free_port()}/postgres"
    environment = clean_environment(tmp_path, PGPASSWORD=PASSWORD)
    refused = command(environment, "--port", str(free_port()), "--database", url)
    assert refused.returncode == 1
    assert "expected a Prefect server" in refused.stderr
    assert "ConnectionRefusedError" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert PASSWORD not in refused.stderr + refused.stdout


def test_another_store_or_pool_is_not_taken_for_that_of_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("IDXFLOW_STORE", raising=False)
    running = UpOptions(store=str(tmp_path / "one")).effects()
    # With nothing asked for, whatever runs is what is wanted.
    assert UpOptions().ineffective(running) == []
    assert UpOptions(pool="other").ineffective(running) == ["--pool"]
    monkeypatch.setenv("IDXFLOW_STORE", str(tmp_path / "one"))
    assert UpOptions().ineffective(running) == []
    monkeypatch.setenv("IDXFLOW_STORE", str(tmp_path / "two"))
    assert UpOptions().ineffective(running) == ["--store or IDXFLOW_STORE"]
