"""A deployment in operation, as its user meets it: runs and schedules, the Prefect UI in a real browser, the inbox, the
commands that say how things are, a worker that was away, and a database that is lost. One server is shared and used in
this order."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import scipy
from PIL import Image

from flows import diagnosis
from flows.diagnosis import Diagnosis
from flows.service.deployments import AUTOMATION
from storage.arrivals import Arrivals
from storage.files import sha256_of
from storage.ledger import Ledger
from storage.outcomes import steps_of
from tests.conftest import write_tiny
from tests.support import commands
from tests.support.clocks import clock_ahead
from tests.support.commands import Command, idxflow
from tests.support.operated import LAST_DAY, WATCH, Operated, prefect, until
from tests.support.servers import HTTP, free_port

pytestmark = pytest.mark.flow

CHIP = (217, 218, 221)
"""The colour of an artifact in the graph of a run; that of the time before its start differs by two."""
FEW_FRAMES = """
    window.requestAnimationFrame = paint => setTimeout(() => paint(performance.now()), 250);
    window.cancelAnimationFrame = clearTimeout;
"""
"""Without a graphics card, to paint a graph sixty times a second takes a whole processor."""
ENDINGS = {"Completed": "COMPLETED", "Failed": "FAILED", "Crashed": "CRASHED", "Cancelled": "CANCELLED"}
"""The names of the states that runs end in, with their types."""
ENDED_AS = {f"ended as {name}": name for name in ENDINGS}
"""Runs by their names, the oldest first; each is named after the state it ended in."""
MISSED = 3
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
QUICK = "[training]\nepochs = 4\nlearning_rate = 0.1\nhidden = [8]\nbatch_size = 16\n"


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    operated = Operated(tmp_path_factory.mktemp("home"))
    try:
        operated.start_server()
        operated.start_worker()
        yield operated
    finally:
        operated.stop()


@pytest.fixture(scope="module")
def promoted_triggers_a_run(operated: Operated) -> str:
    """An automation as a user makes it: when a champion is replaced, run a deployment. Returns its id."""
    # No worker takes its runs up.
    digits = operated.deployment("digits")
    other = operated.post("deployments/", {"flow_id": digits["flow_id"], "name": "again"})["id"]
    trigger = {
        "type": "event",
        "posture": "Reactive",
        "expect": ["idxflow.model.promoted"],
        "match": {"prefect.resource.id": "idxflow.model.*"},
        "threshold": 1,
        "within": 0,
    }
    action = {"type": "run-deployment", "source": "selected", "deployment_id": other}
    return operated.post("automations/", {"name": "promoted", "trigger": trigger, "actions": [action]})["id"]


@pytest.fixture(scope="module")
def run(operated: Operated, promoted_triggers_a_run: str) -> dict[str, Any]:
    """The first run of the deployment `digits`, as the server has it."""
    output = prefect(operated.environment, "deployment", "run", "retrain/digits", *WATCH, cwd=Path("/"))
    assert "finished successfully in 'Completed'" in output
    return operated.runs("digits")[0]


@pytest.fixture(scope="module")
def tab(operated: Operated, browser: Any) -> Iterator[Any]:
    """A tab of a user's browser: what one page has loaded and compiled, the next one has at hand, unlike a new tab."""
    origin = operated.environment["PREFECT_API_URL"].removesuffix("/api")
    context = browser.new_context(base_url=origin)
    context.add_init_script(FEW_FRAMES)
    yield context.new_page()
    context.close()


@pytest.fixture
def page(tab: Any) -> Iterator[Any]:
    """A page that reaches the server and nothing else."""
    hosts: set[str | None] = set()
    errors: list[str] = []

    def note_error(error: Any) -> None:
        errors.append(str(error))

    def note_host(request: Any) -> None:
        hosts.add(urlsplit(request.url).hostname)

    tab.set_viewport_size({"width": 1280, "height": 1000})
    tab.on("pageerror", note_error)
    tab.on("request", note_host)
    yield tab
    # One that stays open goes on painting and asking the server, also while other tests wait.
    tab.goto("/api/health")
    tab.remove_listener("pageerror", note_error)
    tab.remove_listener("request", note_host)
    assert errors == []
    assert "127.0.0.1" in hosts
    assert hosts <= {"127.0.0.1", None}


def test_a_run_of_a_deployment_says_what_was_decided(operated: Operated, run: dict[str, Any]):
    assert run["state"]["name"] == "Completed"
    assert run["state"]["message"].startswith("promoted v1")
    assert re.fullmatch(r"digits \d{8}-\d{6}-[0-9a-f]{4} promoted v1", run["name"])
    decision = Ledger(operated.store, "digits").read("decisions")[0]
    assert run["state"]["message"] == decision["sentence"]
    assert decision["asked_by"] == "deployment retrain/digits"

    tasks = operated.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    names = {task["name"] for task in tasks}
    assert {"fetch-train-images", "decode-train", "validate", "normalize", "train", "publish"} <= names
    assert {task["state"]["type"] for task in tasks} == {"COMPLETED"}

    artifacts = operated.post("artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    kinds = {artifact["key"]: artifact["type"] for artifact in artifacts}
    assert kinds["report-digits"] == "markdown"
    assert kinds["checks-digits"] == kinds["decision-digits"] == "table"
    assert "progress" in kinds.values()
    report = next(a["data"] for a in artifacts if a["key"] == "report-digits")
    assert "Promoted v1" in report
    assert "data:image/" in report
    assert len(report) < 300_000


def test_a_promotion_is_an_event_that_automations_act_on(
    operated: Operated, run: dict[str, Any], promoted_triggers_a_run: str
):
    query = {"filter": {"event": {"name": ["idxflow.model.promoted"]}, "occurred": LAST_DAY}}
    events = until(lambda: operated.post("events/filter", query)["events"])
    assert events[0]["resource"]["prefect.resource.id"] == "idxflow.model.digits"
    assert events[0]["payload"]["sentence"] == run["state"]["message"]
    assert events[0]["payload"]["rules"]
    (triggered,) = until(lambda: operated.runs("again"))
    assert triggered["created_by"]["type"] == "AUTOMATION"
    # The other tests are about runs that they start themselves.
    operated.delete(f"automations/{promoted_triggers_a_run}")
    operated.delete(f"deployments/{operated.deployment('again')['id']}")


def test_mnist_is_on_a_weekly_schedule_in_a_time_zone(operated: Operated):
    deployment = operated.deployment("mnist")
    schedule = deployment["schedules"][0]["schedule"]
    assert (schedule["cron"], schedule["timezone"]) == ("0 3 * * 0", "Europe/Berlin")
    assert deployment["entrypoint"] == "flows.retrain.retrain"
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_scheduled_runs_are_really_created(operated: Operated):
    runs = until(lambda: operated.runs("mnist"))
    assert {run["state"]["type"] for run in runs} == {"SCHEDULED"}
    berlin = {datetime.fromisoformat(run["expected_start_time"]).astimezone(ZoneInfo("Europe/Berlin")) for run in runs}
    assert {(start.isoweekday(), start.hour, start.minute) for start in berlin} == {(7, 3, 0)}


def test_the_server_has_logged_no_error(operated: Operated):
    # Services of the server that fail do so here, and nowhere that a user looks.
    log = (operated.home / "server.log").read_text()
    raised = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", log, re.MULTILINE)
    # SQLite has one writer: on a busy machine a service may find it locked, and tries again.
    assert [line for line in raised if "database is locked" not in line] == []
    assert raised or "ERROR" not in log


def test_parameters_have_bounds_and_descriptions(operated: Operated):
    schema = json.dumps(operated.deployment("digits")["parameter_openapi_schema"])
    assert "Maximum number of passes over the fitted rows. From 1 to 10,000." in schema
    assert '"minimum": 1' in schema
    assert "Folder or URL (without credentials: these go into IDXFLOW_SOURCE, the default)" in schema


def test_deploying_again_changes_nothing(operated: Operated):
    def known() -> dict[str, str]:
        return {d["name"]: d["id"] for d in operated.post("deployments/filter", {})}

    before = known()
    prefect(operated.environment, "--no-prompt", "deploy", "--all")
    assert known() == before
    assert set(before) == {"digits", "drift", "garbage", "inbox", "mnist", "study"}


def test_the_server_sends_nothing_anywhere(operated: Operated):
    settings = HTTP.get(f"{operated.environment['PREFECT_API_URL']}/admin/settings").json()
    assert settings["server"]["analytics_enabled"] is False


def artifact(operated: Operated, run: dict[str, Any], key: str) -> str:
    """The path of the newest artifact of a run with that key."""
    artifacts = operated.post("artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return f"/v2/artifacts/artifact/{next(a['id'] for a in artifacts if a['key'] == key)}"


@pytest.mark.browser
def test_the_runs_page_names_the_data_set_and_the_decision(page: Any, run: dict[str, Any]):
    page.goto("/v2/runs")
    card = page.locator("div", has=page.get_by_role("link", name=run["name"])).filter(has_text="Task runs").last
    card.get_by_text("Completed", exact=True).wait_for()
    assert run["name"].endswith(" promoted v1")
    card.get_by_text("promoted", exact=True).wait_for()


@pytest.mark.browser
def test_the_graph_reads_like_the_walk_of_the_data(page: Any, run: dict[str, Any]):
    with page.expect_response(lambda answer: answer.url.endswith("/graph-v2")) as answer:
        page.goto(f"/v2/runs/flow-run/{run['id']}")
    nodes = [node for _, node in answer.value.json()["nodes"]]
    labels = [node["label"] for node in sorted(nodes, key=lambda node: node["start_time"])]
    archives = ("train-images", "train-labels", "test-images", "test-labels")
    assert sorted(labels[:4]) == sorted(f"fetch-{name}" for name in archives)
    assert sorted(labels[4:6]) == ["decode-test", "decode-train"]
    assert labels[6:] == ["validate", "normalize", "train", "evaluate-candidate", "confirm", "decide", "publish"]
    names = {node["id"]: node["label"] for node in nodes}
    parents = {node["label"]: {names[parent["id"]] for parent in node["parents"]} for node in nodes}
    assert parents["train"] >= {"decode-train", "normalize"}
    assert parents["decide"] >= {"evaluate-candidate"}
    # The graph is painted, so its bars are looked for: green ones of finished tasks.
    page.locator("canvas").wait_for()
    until(lambda: green(page.locator("canvas").screenshot()) > 1000)
    page.get_by_role("tab", name="Task Runs").click()
    page.get_by_text("(13 Completed)").wait_for()


def green(picture: bytes) -> int:
    red, green, blue = pixels(picture).transpose(2, 0, 1)
    return int(((green - red > 80) & (green - blue > 50)).sum())


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=int)


@pytest.mark.browser
def test_each_artifact_opens_from_its_task_in_the_graph(page: Any, run: dict[str, Any]):
    with page.expect_response(lambda answer: answer.url.endswith("/graph-v2")) as answer:
        page.goto(f"/v2/runs/flow-run/{run['id']}")
    keys_of = {node["label"]: {a["key"] for a in node["artifacts"]} for _, node in answer.value.json()["nodes"]}
    expected = {
        "validate": {"checks-digits"},
        "train": {"train-digits"},
        "decide": {"decision-digits"},
        "publish": {"report-digits", "metrics-digits"},
    }
    assert {label: keys for label, keys in keys_of.items() if keys} == expected
    canvas = page.locator("canvas")
    canvas.wait_for()

    def at_rest() -> list[tuple[int, int]] | None:
        positions = chips(canvas.screenshot())
        return positions if len(positions) == 5 and chips(canvas.screenshot()) == positions else None

    places = until(at_rest)
    opened = {}
    for x, y in places:
        canvas.click(position={"x": x, "y": y})
        details = page.get_by_role("dialog").filter(has_text="Artifact Details")
        details.get_by_role("link", name="Open artifact").wait_for()
        text = details.inner_text()
        opened[re.findall(r"^Key\s+(\S+)$", text, re.MULTILINE)[0]] = text
        # Not with Escape, by which the graph also fills the window, or leaves it: its artifacts would be elsewhere.
        details.get_by_role("button", name="Close").click()
        details.wait_for(state="detached")
    assert set(opened) == set().union(*expected.values())
    assert "Version 1 is the new champion" in opened["report-digits"]
    assert "both splits are there" in opened["checks-digits"]


def chips(picture: bytes) -> list[tuple[int, int]]:
    """Return where artifacts are painted in the graph, as points inside of each; the longer the run, the smaller."""
    areas, _ = scipy.ndimage.label(np.abs(pixels(picture) - CHIP).max(axis=2) <= 1)
    boxes = scipy.ndimage.find_objects(areas)
    return [
        ((across.start + across.stop) // 2, down.start + 2)
        for down, across in boxes
        if across.stop - across.start > 15 and 5 < down.stop - down.start < 25
    ]


@pytest.mark.browser
def test_the_log_has_one_line_of_numbers_per_step(page: Any, run: dict[str, Any]):
    page.set_viewport_size({"width": 1280, "height": 4000})
    page.goto(f"/v2/runs/flow-run/{run['id']}")
    page.get_by_role("tab", name="Logs").click()
    panel = page.get_by_role("tabpanel", name="Logs")
    panel.get_by_text("fetch train-images:").wait_for()
    panel.hover()
    lines = (
        r"fetch train-images: 35,492 bytes from .+, sha256 [0-9a-f]{12}",
        r"decode train: 1,437 images of 8×8",
        r"validate: 42 checks on 1,797 rows passed",
        r"normalize: mean -?0\.\d+, standard deviation 0\.\d+ over 1,293 rows",
        r"train: 50 epochs, \d\d\.\d\d% of rows right \(held out: \d\d\.\d\d%\), 6,310 weights",
        r"evaluate: \d+ of 360 right, \d\d\.\d\d%",
        r"confirm: a fresh process predicts the same for \d+ rows",
        r"decide: promoted: 2 of 2 rules met",
        r"digits: promoted v1: the first model above the floors",
        r"publish: digits/7-reports/\S+/report\.html",
        r"report: /\S+/digits/7-reports/\S+/report\.html",
    )
    text, down, ends = "", 800, 0

    def all_read() -> bool:
        # Only the lines in sight are in the page, and what is slow to paint skips some: up and down again, then.
        nonlocal text, down, ends
        text += (shown := panel.inner_text())
        ends += (is_end := "report: /" in shown)
        down = -800 if is_end else 800 if "fetch train-images:" in shown else down
        page.mouse.wheel(0, down)
        return ends == 9 or all(re.search(line, text) for line in lines)

    until(all_read)
    assert [line for line in lines if not re.search(line, text)] == [], text


@pytest.mark.browser
def test_the_artifacts_are_a_report_with_pictures_and_tables(page: Any, operated: Operated, run: dict[str, Any]):
    page.goto(f"/v2/runs/flow-run/{run['id']}")
    page.get_by_role("tab", name="Artifacts").click()
    for key in ("report-digits", "checks-digits", "metrics-digits", "decision-digits", "train-digits"):
        page.get_by_text(key, exact=True).wait_for()
    page.get_by_text("Version 1 is the new champion; run").wait_for()

    page.goto(artifact(operated, run, "report-digits"))
    page.get_by_role("heading", name="Promoted · Version 1 is the new champion").wait_for()
    where = page.get_by_text(re.compile(r"digits/7-reports/\S+/report\.html")).first
    where.wait_for()
    path = re.search(r"digits/7-reports/\S+/report\.html", where.inner_text())
    assert path
    assert (operated.store.root / path[0]).is_file()
    widths = "all => all.map(image => Math.min(image.naturalWidth, image.clientWidth))"
    until(lambda: [width > 100 for width in page.locator("img").evaluate_all(widths)] == [True] * 5)

    page.goto(artifact(operated, run, "checks-digits"))
    page.get_by_role("cell", name="both splits are there").wait_for()
    page.goto(artifact(operated, run, "metrics-digits"))
    page.get_by_role("cell", name=re.compile(r"\d\d\.\d\d%")).first.wait_for()
    page.goto(artifact(operated, run, "decision-digits"))
    page.get_by_role("cell", name="at least 90.00%").wait_for()
    page.goto(artifact(operated, run, "train-digits"))
    page.get_by_text("Progress: 100%").wait_for()
    page.get_by_text("Epoch 50 of 50: loss").wait_for()


@pytest.mark.browser
def test_a_deployments_page_has_its_schedule(page: Any, operated: Operated):
    page.goto(f"/v2/deployments/deployment/{operated.deployment('mnist')['id']}")
    page.get_by_text("At 03:00 AM, only on Sunday").wait_for()
    page.get_by_text("Next Run").wait_for()


@dataclass(frozen=True)
class Ended:
    """A flow whose deployment has the runs `ENDED_AS` and no others, so that pages show them in a known order."""

    flow: str
    deployment: str


@pytest.fixture(scope="module")
def ended(operated: Operated) -> Ended:
    """Make a run for each ending, told as the client of a run does."""
    flow = operated.post("flows/", {"name": "endings"})["id"]
    deployment = operated.post("deployments/", {"name": "endings", "flow_id": flow})["id"]
    for run, name in ENDED_AS.items():
        # Not scheduled, so that it is not late.
        body = {"name": run, "state": {"type": "PENDING"}}
        run_id = operated.post(f"deployments/{deployment}/create_flow_run", body)["id"]
        for state in ({"type": "RUNNING"}, {"type": ENDINGS[name], "name": name}):
            operated.post(f"flow_runs/{run_id}/set_state", {"state": state})
    return Ended(flow, deployment)


def endings_on(page: Any) -> dict[str, str]:
    """The endings of the runs `ENDED_AS` that a page shows, by the names of the runs."""
    cards = page.evaluate("""() => [...document.querySelectorAll("a")]
        .filter(link => (link.innerText || "").startsWith("ended as "))
        .map(link => {
            let card = link;
            while (card && !/\\d Task runs?/.test(card.innerText.replace(/\\s+/g, " "))) card = card.parentElement;
            return [link.innerText, card ? card.innerText.split("\\n") : []];
        })""")
    return {run: ", ".join(name for name in ENDINGS if name in lines) for run, lines in cards}


@pytest.mark.browser
def test_pages_show_runs_whatever_the_name_of_their_ending(page: Any, ended: Ended):
    for where in ("runs", f"deployments/deployment/{ended.deployment}", f"flows/flow/{ended.flow}"):
        page.goto(f"/v2/{where}")
        until(lambda: endings_on(page) == ENDED_AS)


@pytest.mark.browser
@pytest.mark.usefixtures("ended")
def test_the_dashboard_has_runs_under_the_type_of_their_ending(page: Any):
    # The dashboard leaves out what happened in the present minute.
    page.clock.set_fixed_time(datetime.now(UTC) + timedelta(minutes=1))
    page.goto("/v2/dashboard")
    for tab in ("failed-crashed runs", "completed runs", "cancelled runs"):
        page.get_by_role("tab", name=tab).click()
        page.get_by_role("button", name="endings").click()
        kinds = tab.removesuffix(" runs").upper().split("-")
        expected = {run: name for run, name in ENDED_AS.items() if ENDINGS[name] in kinds}
        until(lambda expected=expected: endings_on(page) == expected)


@pytest.mark.browser
def test_the_filter_finds_runs_by_the_name_of_their_ending(page: Any, ended: Ended, run: dict[str, Any]):
    for where in ("runs", f"deployments/deployment/{ended.deployment}"):
        page.goto(f"/v2/{where}")
        page.get_by_role("button", name="All run states").click()
        # Which leaves out what has a name that is not Prefect's.
        page.get_by_role("menuitem", name="All except scheduled").click()
        until(lambda: ENDED_AS.items() <= endings_on(page).items())
    page.goto("/v2/runs")
    page.get_by_role("button", name="All run states").click()
    filtered: dict[str, str] = {}
    for ended_run, name in reversed(ENDED_AS.items()):
        # Beside those before it.
        page.get_by_role("menuitem", name=name, exact=True).click()
        filtered[ended_run] = name
        until(lambda: endings_on(page) == filtered)
    # An address as docs/operating.md names one.
    page.goto("/v2/runs?tags=promoted")
    page.get_by_role("link", name=run["name"]).wait_for()
    assert endings_on(page) == {}


@pytest.mark.browser
def test_the_form_has_typed_fields_and_refuses_a_wrong_value(page: Any, operated: Operated):
    before = len(operated.runs("digits"))
    page.goto(f"/v2/deployments/deployment/{operated.deployment('digits')['id']}/run")
    page.get_by_role("tab", name="TrainingOverrides").click()
    for words in (
        "Name of a data set of the catalog: digits (embedded), mnist, kmnist, emnist-letters, …",
        "Maximum number of passes over the fitted rows. From 1 to 10,000.",
        "Step size of the optimizer; the schedule changes it. Above 0 and at most 10.",
        "Train, evaluate and decide again even if nothing is new.",
        "Runs for scheduled times that were missed: latest (one run makes up for all) or all.",
    ):
        page.get_by_text(words, exact=True).wait_for()
    assert field(page, "force").get_by_role("switch").is_visible()
    # Drop-down lists.
    assert page.get_by_label("Select profile").inner_text() == "default"
    assert page.get_by_label("Select catch_up").inner_text() == "latest"
    field(page, "Learning Rate").get_by_role("tab", name="float").click()
    assert field(page, "Learning Rate").locator("input").get_attribute("type") == "number"
    field(page, "Epochs").get_by_role("tab", name="int").click()
    epochs = field(page, "Epochs").locator("input")
    assert [epochs.get_attribute(name) for name in ("type", "min", "max")] == ["number", "1", "10000"]
    epochs.fill("-1")
    page.get_by_role("button", name="Submit").click()
    assert "1" in epochs.evaluate("input => input.validationMessage")
    assert page.url.endswith("/run")
    assert len(operated.runs("digits")) == before


def field(page: Any, name: str) -> Any:
    label = page.locator("label", has_text=f"{name} (Optional)")
    return page.locator("div.group", has=label).last


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"training": {"epochs": -1}}, "less than the minimum of 1"),
        ({"training": {"learning_rate": 0}}, "less than or equal to the minimum of 0"),
        ({"training": {"epoch": 5}}, "epoch"),
        ({"force": "perhaps"}, "not of type 'boolean'"),
        ({"catch_up": "some"}, "not one of ['latest', 'all']"),
    ],
)
def test_a_wrong_value_is_refused_before_a_run_is_made(
    operated: Operated, run: dict[str, Any], parameters: dict[str, Any], message: str
):
    url = f"{operated.environment['PREFECT_API_URL']}/deployments/{run['deployment_id']}/create_flow_run"
    answer = HTTP.post(url, json={"parameters": parameters, "state": {"type": "SCHEDULED"}})
    assert answer.status_code == 409
    assert message in answer.json()["detail"]


def test_prefects_own_command_says_what_is_wrong_with_a_value(operated: Operated, run: dict[str, Any]):
    words = ("deployment", "run", "retrain/digits", "-p", 'training={"epochs": -1}')
    refused = commands.prefect(*words, env=operated.environment)
    assert refused.returncode == 1
    output = " ".join((refused.stdout + refused.stderr).split())
    assert "'training.epochs'" in output
    assert "-1 is less than the minimum of 1" in output


def test_status_shows_the_next_run_also_of_what_has_never_run(operated: Operated, run: dict[str, Any]):
    until(lambda: operated.runs("mnist"))
    result = operated.idxflow("status")
    assert result.returncode == 0, result.stderr
    assert "digits: ok\n  champion  v1, " in result.stdout
    assert re.search(
        r"\nmnist: ok\n  last run  none yet\n  next run  \d{4}-\d\d-\d\d 0[12]:00 UTC \(in ", result.stdout
    )
    assert "not known" not in result.stdout
    # A process of its own, unlike those of other commands here, which fork from one that has Prefect.
    code = "import sys; from flows.commands import cli; cli.run_command(['status']); print('prefect' in sys.modules)"
    own = [sys.executable, "-P", "-c", code]
    light = subprocess.run(own, env=operated.environment, capture_output=True, text=True, check=True)
    assert light.stdout.endswith("False\n")
    assert "not known" not in light.stdout


def test_the_doctor_finds_all_well(operated: Operated, run: dict[str, Any]):
    until(lambda: operated.findings()["worker"].verdict == "ok")
    result = operated.idxflow("doctor", "--json")
    findings = json.loads(result.stdout)["findings"]
    assert [finding for finding in findings if finding["verdict"] != "ok"] == []
    assert result.returncode == 0
    assert {"TensorFlow", "store", "worker", "limits", "late runs", "dead runs"} <= {f["what"] for f in findings}


@pytest.mark.remedies("flows.diagnosis:_worker:2", "flows.diagnosis:_deployments:2", "flows.diagnosis:_deployments:3")
@pytest.mark.remedies("flows.diagnosis:_deployments:4", "flows.diagnosis:_automation:2")
def test_the_doctor_finds_what_is_paused_and_how_to_resume_it(operated: Operated, run: dict[str, Any]):
    def remedied(what: str) -> str:
        """Do what the doctor says; return what it had found."""
        finding = operated.findings()[what]
        assert finding.verdict != "ok"
        program, command, *arguments = finding.remedy.partition(";")[0].split()
        assert (program, command) == ("idxflow", "prefect")
        prefect(operated.environment, *arguments)
        assert operated.findings()[what].verdict == "ok"
        return finding.found

    operated.patch("work_pools/idxflow", {"is_paused": True})
    assert remedied("worker") == "the pool 'idxflow' is paused"
    mnist, inbox = operated.deployment("mnist"), operated.deployment("inbox")
    operated.post(f"deployments/{mnist['id']}/pause_deployment", {})
    assert remedied("deployments") == "paused, so no runs are scheduled: mnist"
    operated.patch(f"deployments/{mnist['id']}/schedules/{mnist['schedules'][0]['id']}", {"active": False})
    assert remedied("deployments") == "all schedules are paused: mnist"
    never = {"schedule": {"cron": "0 3 31 2 *", "timezone": "UTC"}, "active": True}
    operated.post(f"deployments/{inbox['id']}/schedules", [never])
    assert remedied("deployments") == "a schedule of inbox never comes due: 0 3 31 2 *"
    (automation,) = operated.post("automations/filter", {"automations": {"name": {"any_": [AUTOMATION]}}})
    operated.patch(f"automations/{automation['id']}", {"enabled": False})
    assert remedied("dead runs") == f"the automation {AUTOMATION!r} is disabled"


@pytest.mark.remedies("flows.diagnosis:_limits")
def test_the_doctor_finds_a_full_limit_and_what_becomes_of_a_new_run(operated: Operated, run: dict[str, Any]):
    for name, fate in (("mnist", "is cancelled"), ("inbox", "waits")):
        # Not scheduled, so that the worker does not take it.
        parameters = {"dataset": name, **({"arrival": "20260101-000000-00000000"} if name == "inbox" else {})}
        body = {"state": {"type": "FAILED"}, "parameters": parameters}
        run_id = operated.post(f"deployments/{operated.deployment(name)['id']}/create_flow_run", body)["id"]
        for state in ("PENDING", "RUNNING"):
            operated.post(f"flow_runs/{run_id}/set_state", {"state": {"type": state}})
        finding = operated.findings()["limits"]
        assert (finding.verdict, finding.found) == ("warning", f"{name} already runs (1 of 1); a new run {fate}")
        operated.post(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLED"}})
        assert operated.findings()["limits"].verdict == "ok"


@contextmanager
def watching(environment: dict[str, str], inbox: Path, manifest: Path) -> Iterator[Command]:
    words = ("watch", str(inbox), "--dataset-file", str(manifest), "--every", "1")
    with Command(*words, env=environment) as watcher:
        until(lambda: "watching " in watcher.output or watcher.poll() is not None)
        assert watcher.poll() is None, watcher.errors
        yield watcher


def interrupted(watcher: Command) -> int:
    watcher.send_signal(signal.SIGINT)
    return watcher.wait(240)


def announced(operated: Operated) -> list[dict[str, Any]]:
    query = {"filter": {"event": {"name": ["idxflow.inbox.complete"]}, "occurred": LAST_DAY}}
    return operated.post("events/filter", query)["events"]


def of_tiny(operated: Operated) -> list[dict[str, Any]]:
    return [run for run in operated.runs("inbox") if run["parameters"]["dataset"] == "tiny"]


def retrained(operated: Operated, count: int) -> list[dict[str, Any]] | None:
    """The runs of the inbox in the order in which they began, once so many have ended."""
    runs = [run for run in of_tiny(operated) if run["state"]["type"] in ENDED]
    return sorted(runs, key=lambda run: run["start_time"] or "") if len(runs) == count else None


def test_archives_that_have_arrived_completely_are_retrained_once_and_in_order(operated: Operated, tmp_path: Path):
    manifest = write_tiny(tmp_path, manifest=QUICK).manifest
    first, other = tmp_path / "tiny-source", write_tiny(tmp_path, train=150, name="other").source
    images = "train-images-idx3-ubyte.gz"
    inbox = tmp_path / "inbox"
    shutil.copytree(first, inbox, ignore=lambda folder, names: {images})
    arrivals = partial(Ledger(operated.store, "tiny").read, "arrivals")
    # Whoever can send events has no say in what is read.
    forged = {
        "dataset": "tiny",
        "dataset_file": str(manifest),
        "source": str(other),
        "arrival": "20260101-000000-00000000",
    }
    operated.post("events", [event("idxflow.inbox.complete", "idxflow.inbox.tiny", forged)])
    with ExitStack() as stack:
        watchers = [stack.enter_context(watching(operated.environment, inbox, manifest)) for _ in range(2)]
        shutil.copy(first / images, inbox)
        until(lambda: len(arrivals()) == 1)
        # Before a run of the first set has begun, the second one is copied over it.
        shutil.copytree(other, inbox, dirs_exist_ok=True)
        runs = until(lambda: retrained(operated, 2))
        ends = re.compile("kept champion|promoted v2")
        until(lambda: all(ends.search(watcher.output) for watcher in watchers))
        assert [interrupted(watcher) for watcher in watchers] == [130, 130]
        assert all("idxflow: interrupted; " in watcher.errors for watcher in watchers)
        outputs = [watcher.output for watcher in watchers]
    assert all(f"tiny: set {arrivals()[0]['arrival']}: promoted v1: " in output for output in outputs)
    assert "".join(outputs).count("tiny: 4 new archives, ") == 2
    sets = [arrival["arrival"] for arrival in arrivals()]
    assert [run["parameters"] for run in runs] == [{"dataset": "tiny", "arrival": name} for name in sets]
    ended = Ledger(operated.store, "tiny").read("runs")
    assert [run["arrival"] for run in ended] == sets
    assert [steps_of(run)[0].summary for run in ended] == [
        f"{size:,} bytes from {Arrivals(operated.store, 'tiny').where(name)}, sha256 {digest:.12}"
        for name, (size, digest) in zip(sets, [measures(folder / images) for folder in (first, other)], strict=True)
    ]
    # The event that was forged, and one for each set.
    until(lambda: len(announced(operated)) == 3)
    # What the sets need no more is gone.
    assert not list((operated.store.dataset("tiny") / "0-inbox" / "arrivals").iterdir())
    _looking_once(operated, inbox, manifest)
    _runs_that_name_no_set(operated, sets[0])


def measures(path: Path) -> tuple[int, str]:
    return path.stat().st_size, sha256_of(path)


def event(name: str, resource: str, payload: dict[str, Any]) -> dict[str, Any]:
    occurred = datetime.now(UTC).isoformat()
    values = {"event": name, "resource": {"prefect.resource.id": resource}, "payload": payload, "related": []}
    return {**values, "id": str(uuid.uuid4()), "occurred": occurred}


def _looking_once(operated: Operated, inbox: Path, manifest: Path) -> None:
    command = ("watch", str(inbox), "--dataset-file", str(manifest), "--once")
    again = operated.idxflow(*command)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"tiny: nothing to announce, the archives in {inbox} have been announced\n"
    damaged = inbox / "t10k-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    refused = operated.idxflow(*command)
    assert refused.returncode == 3
    assert refused.stderr.startswith(f"idxflow: {damaged.name}: expected ")
    damaged.unlink()
    missing = operated.idxflow(*command)
    assert (missing.returncode, missing.stderr) == (0, "")
    assert "the four archives are not all in" in missing.stdout
    assert len(of_tiny(operated)) == 2


def _runs_that_name_no_set(operated: Operated, known: str) -> None:
    """A set that is not named as sets are."""
    deployment = operated.deployment("inbox")["id"]
    for wrong in (
        {"dataset": "../tiny", "arrival": known},
        {"dataset": "tiny", "arrival": "../x"},
        {"dataset": "tiny"},
    ):
        url = f"{operated.environment['PREFECT_API_URL']}/deployments/{deployment}/create_flow_run"
        assert HTTP.post(url, json={"parameters": wrong}).status_code == 409


def test_without_a_server_the_watcher_warns_and_continues(operated: Operated, tmp_path: Path):
    dataset = write_tiny(tmp_path)
    inbox = tmp_path / "tiny-source"
    nowhere = {**operated.environment, "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    nowhere["IDXFLOW_STORE"] = str(tmp_path / "store")
    sentence = (
        f"idxflow: expected a Prefect server at {nowhere['PREFECT_API_URL']} (PREFECT_API_URL of the environment), "
        "found none; start one with `idxflow up`, or remove that setting"
    )
    with watching(nowhere, inbox, dataset.manifest) as watcher:
        until(lambda: sentence in watcher.errors)
        # While it goes on trying, all is said once.
        with pytest.raises(TimeoutError):
            watcher.wait(3)
        assert interrupted(watcher) == 130
        assert watcher.errors.count(sentence) == 1
    once = idxflow("watch", str(inbox), "--dataset-file", str(dataset.manifest), "--once", env=nowhere)
    assert (once.returncode, once.stderr) == (1, f"{sentence}\n")


@pytest.mark.remedies("flows.diagnosis:_worker:3", "flows.diagnosis:_late", "flows.diagnosis:_lifeless")
def test_a_worker_that_was_away_makes_up_for_missed_runs_once(operated: Operated, run: dict[str, Any]):
    operated.stop_worker()
    known = {run["id"] for run in operated.runs("digits")}
    # Before the doctor looks at everything.
    until(lambda: {each["status"] for each in operated.post("work_pools/idxflow/workers/filter", {})} == {"OFFLINE"})
    findings = operated.findings()
    assert findings["worker"].verdict == "problem"
    assert findings["worker"].found == "none polls the pool 'idxflow', so no run starts"
    up = operated.store.command("up")
    start = "idxflow prefect worker start --pool idxflow --type process"
    assert findings["worker"].remedy == f"{up}, or {start}"
    _a_late_run_is_found(operated)
    _a_run_without_end_is_found(operated)

    latest = miss_some_runs(operated)
    late = due_at_once(operated)
    assert (late.verdict, late.remedy) == ("problem", f"start a worker: {up}, or {start}")
    operated.start_worker(*start.split()[1:])

    def ended() -> list[dict[str, Any]] | None:
        runs = [run for run in operated.runs("digits") if run["id"] not in known]
        # Cancelled is not the end here: the run that holds the slot makes way and puts it right.
        return runs if all(run["state"]["type"] == "COMPLETED" for run in runs) else None

    runs = until(ended)
    assert {run["state"]["name"] for run in runs} == {"Completed"}
    assert runs[-1]["state"]["message"].startswith("unchanged since v1")
    assert len(runs) == MISSED
    for run in runs[:-1]:
        assert run["name"] == "digits superseded"
        assert "superseded" in run["tags"]
        assert run["state"]["message"] == f"superseded by the run scheduled for {latest:%Y-%m-%d %H:%M:%S} UTC"
    states = [values["state"] for values in Ledger(operated.store, "digits").read("runs")]
    assert states == ["promoted", "unchanged"]
    assert due_at_once(operated).verdict == "ok"
    assert operated.findings()["worker"].verdict == "ok"


def due_at_once(operated: Operated) -> Diagnosis:
    """What the doctor finds of late runs where one is late a second after its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "LATE", timedelta(seconds=1))
        return operated.findings()["late runs"]


def miss_some_runs(operated: Operated) -> datetime:
    """Let a schedule make runs for times that are over; return the last one's time."""
    start = (datetime.now(UTC) - timedelta(seconds=10)).replace(microsecond=0)
    rule = f"DTSTART:{start:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=SECONDLY;INTERVAL=1;COUNT={MISSED}"
    deployment = f"deployments/{operated.deployment('digits')['id']}"
    operated.post(f"{deployment}/schedules", [{"active": True, "schedule": {"rrule": rule, "timezone": "UTC"}}])
    window = {"start_time": (start - timedelta(seconds=1)).isoformat(), "end_time": datetime.now(UTC).isoformat()}
    before = len(operated.runs("digits"))
    operated.post(f"{deployment}/schedule", {**window, "min_runs": MISSED, "max_runs": MISSED})
    assert len(operated.runs("digits")) == before + MISSED
    return start + timedelta(seconds=MISSED - 1)


def _a_late_run_is_found(operated: Operated) -> None:
    long_ago = (datetime.now(UTC) - timedelta(minutes=10)).isoformat()
    body = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": long_ago}}, "name": "long-due"}
    late = operated.post(f"deployments/{operated.deployment('mnist')['id']}/create_flow_run", body)["id"]
    finding = operated.findings()["late runs"]
    assert (finding.verdict, finding.found) == ("problem", "1, first 'long-due'")
    result = operated.idxflow("status", "mnist")
    assert result.returncode == 1
    assert re.search(
        r"problem +a run has been due since .*: no worker has taken it; start one: idxflow up", result.stdout
    )
    operated.delete(f"flow_runs/{late}")
    assert operated.findings()["late runs"].verdict == "ok"


def _a_run_without_end_is_found(operated: Operated) -> None:
    """One of the day before yesterday, by the clock, whose process is gone."""
    body = {"state": {"type": "FAILED"}, "parameters": {"dataset": "mnist"}}
    run_id = operated.post(f"deployments/{operated.deployment('mnist')['id']}/create_flow_run", body)["id"]
    for state in ("PENDING", "RUNNING"):
        operated.post(f"flow_runs/{run_id}/set_state", {"state": {"type": state}})
    with clock_ahead(timedelta(days=2)):
        finding = operated.findings()["old runs"]
        assert (finding.verdict, finding.found) == ("warning", "1 have been running for more than a day")
        command, _, rest = finding.remedy.partition("; ")
        assert rest == "if its process is gone, that takes five minutes"
        prefect(operated.environment, *command.split()[2:])
        until(lambda: operated.get(f"flow_runs/{run_id}")["state"]["type"] == "CANCELLED")
        assert operated.findings()["old runs"].verdict == "ok"
    assert operated.findings()["limits"].verdict == "ok"


def test_nothing_is_forgotten_when_prefects_database_is_lost(operated: Operated, run: dict[str, Any]):
    before = known(operated)
    operated.stop()
    for path in (operated.home / "prefect").glob("prefect.db*"):
        path.unlink()
    operated.start_server()
    assert operated.runs("digits") == []
    assert known(operated) == before

    result = operated.idxflow("run", "digits", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["state"] == "unchanged"


def known(operated: Operated) -> list[Any]:
    """What the commands say that remember: no relative times, and nothing that only the server knows."""
    requests = (("registry", "history", "digits"), ("report", "digits"), ("runs", "list", "digits"))
    answers = [operated.idxflow(*command) for command in requests]
    assert [answer.returncode for answer in answers] == [0, 0, 0], answers
    status = json.loads(operated.idxflow("status", "--json").stdout)["datasets"]
    healths = [(h["dataset"], h["champion"]["version"], h["runs"], h["problems"]) for h in status if h["champion"]]
    assert "digits" in [health[0] for health in healths]
    return [*(answer.stdout for answer in answers), healths]
