"""Other users of the machine, and pages in a browser: neither can use a Prefect server that idxflow starts."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prefect.client.orchestration import get_client

from storage.files import locked
from tests.conftest import BROWSER_FLAGS, PATIENCE_MS, browser_program
from tests.support import stranger, up
from tests.support.commands import Command, calling, idxflow
from tests.support.faultserver import FaultServer, good
from tests.support.operated import fork_flow_runs, until
from tests.support.servers import BIN, HTTP, clean_environment, free_port, is_starting
from tests.support.terminal import user
from tests.support.up import Service, configured, going

pytestmark = pytest.mark.flow

SECONDS = 240


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home that others can enter, as most are."""
    if os.getuid() != 0:
        pytest.skip("needs to be root, to be another user as well")
    folder = Path(tempfile.mkdtemp(prefix="idxflow-strangers-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def place(home: Path) -> dict[str, str]:
    (home / "up").mkdir()
    return clean_environment(
        home / "up",
        IDXFLOW_STORE=str(home / "up" / "store"),
        PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api",
        PREFECT_WORKER_QUERY_SECONDS="2",
    )


@pytest.fixture(scope="module")
def service(place: dict[str, str], home: Path) -> Iterator[Service]:
    with going(place, home / "up.log") as service:
        with configured(service), get_client(sync_client=True) as client:
            fork_flow_runs(client)
        yield service


def children(process: int) -> list[int]:
    """All processes that a process has started, and that these have."""
    processes = []
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        for child in tasks.read_text().split():
            processes += [int(child), *children(int(child))]
    return processes


def ports(process: int) -> list[int]:
    """The ports that a process and its children listen on."""
    held = set()
    for owner in (process, *children(process)):
        for file in Path(f"/proc/{owner}/fd").iterdir():
            try:
                held.add(str(file.readlink()))
            except FileNotFoundError:
                continue
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in held:
                listening.add(int(words[1].rpartition(":")[2], 16))
    return sorted(listening)


def attack(ports: list[int], marker: Path, *folders: Path) -> dict[str, Any]:
    request = {"ports": ports, "folders": [str(folder) for folder in folders], "marker": str(marker)}
    command = [sys.executable, "-I", stranger.__file__, json.dumps(request)]
    ended = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["user"] == pwd.getpwnam("nobody").pw_uid
    return report


def secrets(process: int) -> set[str]:
    """What is secret in the environments of a process and its children."""
    values = set()
    for owner in (process, *children(process)):
        words = Path(f"/proc/{owner}/environ").read_bytes().decode("latin-1").split("\0")
        values |= {word.partition("=")[2] for word in words if "AUTH_STRING=" in word}
    return values


def secret_in_memory(process: int) -> set[str]:
    """The auth string of a command's own server: it is in no environment, only in memory, which root can read."""
    values = set()
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{process}/maps").read_text().splitlines():
            place, rights, *_, inode = line.split()[:5]
            if rights == "rw-p" and inode == "0":
                start, end = (int(address, 16) for address in place.split("-"))
                memory.seek(start)
                values |= set(re.findall(rb"idxflow:[\w-]{32}(?![\w-])", memory.read(end - start)))
    return {value.decode() for value in values}


def nothing_came_of(report: dict[str, Any], secret: set[str], log: str) -> None:
    assert report["worked"] == []
    assert not [path for path in report["read"] if "prefect" in path]
    text = "".join([report["commands"], *report["read"].values(), log])
    assert secret
    for auth_string in secret:
        assert auth_string.partition(":")[2] not in text


@contextmanager
def waiting(environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A run that has started all it starts, and waits for another, as it may for hours."""
    store = Path(environment["IDXFLOW_STORE"])
    with locked(store / "digits" / "locks" / "in-use.lock"):
        log = store.with_suffix(".log")
        with log.open("wb") as output:
            command = [str(BIN / "idxflow"), "run", "digits"]
            process = subprocess.Popen(command, env=environment, cwd="/", stdout=output, stderr=subprocess.STDOUT)
        try:
            until(lambda: b"waiting" in log.read_bytes() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)


def test_a_command_s_own_server_is_closed_to_other_users(home: Path):
    (home / "run").mkdir()
    environment = clean_environment(home / "run", IDXFLOW_STORE=str(home / "run" / "store"))
    prefect = Path(environment["PREFECT_HOME"])
    with waiting(environment) as process:
        assert ports(process.pid)
        # It keeps no other server from starting, as that of `idxflow up`, while it waits.
        assert not is_starting(prefect)
        assert not secrets(process.pid)
        secret = secret_in_memory(process.pid)
        assert len(secret) == 1
        folders = (prefect, *Path(tempfile.gettempdir()).glob("idxflow-prefect-*"))
        came = attack(ports(process.pid), home / "marker", *folders)
    nothing_came_of(came, secret, (home / "run" / "store.log").read_text())


def test_the_server_of_up_is_closed_to_other_users(home: Path, service: Service, place: dict[str, str]):
    prefect = Path(place["PREFECT_HOME"])
    came = attack(ports(service.process.pid), home / "marker", prefect)
    logs = "".join(path.read_text() for path in (prefect / "idxflow").glob("*.log"))
    nothing_came_of(came, secrets(service.process.pid), service.output + logs)
    # Not even while it is being started again is its port free.
    os.kill(service.pid("server"), signal.SIGKILL)
    assert not stranger.can_listen(urlsplit(place["PREFECT_API_URL"]).port or 0)
    until(lambda: "server started again" in service.output)
    assert not (home / "marker").exists()


def test_a_run_uses_the_server_of_up_and_starts_none(service: Service, place: dict[str, str]):
    environment = {name: value for name, value in place.items() if name != "PREFECT_API_URL"}
    # Schedules may make runs meanwhile, but none of this flow.
    of_this_flow = {"flows": {"name": {"any_": ["validate"]}}}
    before = len(service.post("flow_runs/filter", of_this_flow))
    lock = Path(place["IDXFLOW_STORE"]) / "digits" / "locks" / "in-use.lock"
    with locked(lock), Command("validate", "digits", env=environment, cwd=Path("/")) as process:
        until(lambda: "waiting" in process.output or process.poll() is not None)
        assert process.poll() is None, process.errors
        assert ports(process.pid) == []
        assert len(service.post("flow_runs/filter", of_this_flow)) == before + 1
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
        assert "using the Prefect server of `idxflow up` at" in process.output + process.errors


def test_what_the_lines_that_are_printed_as_next_steps_set_is_as_good_for_all_other_commands(
    service: Service, place: dict[str, str], home: Path
):
    """These lines themselves are typed in `tests/project/test_telemetry.py`."""
    lines = re.search(r"in another terminal:\n((?:  .*\n)+)", service.output)
    assert lines
    # `up` knows whether its programs are on the PATH.
    new = user(home / "new", PATH=place["PATH"], TERM="dumb", COLUMNS="200")
    (home / "new").mkdir()
    doctor = f"{lines[1].partition('  prefect ')[0]}\nexport PREFECT_HOME={place['PREFECT_HOME']}\nidxflow doctor"
    forked = f'idxflow() {{ {calling("idxflow")} "$@"; }}'
    others = ["bash", "-uc", f"{forked}\n{doctor} --store {place['IDXFLOW_STORE']}; idxflow up --no-auth"]
    second = subprocess.run(others, env=new, cwd="/", capture_output=True, text=True, timeout=280, check=False)
    assert "is already running" in second.stdout, second.stderr
    assert "--no-auth has no effect on what is already running" in second.stdout
    assert "requires an auth string" not in second.stdout
    assert second.stderr == ""


def test_what_is_advised_works_in_a_shell_that_has_exported_nothing(
    service: Service, place: dict[str, str], home: Path
):
    """Prefect's own command would start a server that asks nobody for a password, on the database of `up`."""
    exported = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
    environment = {name: value for name, value in place.items() if name not in exported}

    def doctor_remedies() -> dict[str, str]:
        findings = json.loads(idxflow("doctor", "--json", env=environment).stdout)["findings"]
        return {finding["what"]: finding["remedy"] for finding in findings}

    service.ask("PATCH", "work_pools/idxflow", json={"is_paused": True})
    advice = doctor_remedies()["worker"]
    assert advice == "idxflow prefect work-pool resume idxflow"
    process = idxflow(*advice.split()[1:], env=environment, cwd=Path("/"))
    assert process.returncode == 0, process.stderr
    assert "temporary server" not in process.stdout + process.stderr
    assert not doctor_remedies()["worker"]
    # Where there is no server, none is started.
    (home / "empty").mkdir()
    refused = idxflow("prefect", "deployment", "ls", env=clean_environment(home / "empty"))
    assert refused.returncode == 1
    assert "found none; start one with `idxflow up`" in refused.stderr


PAGE = """<!doctype html><iframe name="hidden"></iframe><script>
const pool = name => JSON.stringify({ name, type: "process" });
async function attack(api) {
  const tries = {};
  const ask = async (how, path, more) => {
    try {
      const answer = await fetch(api + path, more);
      tries[how] = answer.type === "opaque" ? "sent" : answer.status;
    } catch (error) { tries[how] = "refused"; }
  };
  for (const mode of ["cors", "no-cors"]) {
    const post = { method: "POST", mode };
    await ask(mode + " without a type", "/work_pools/", { ...post, body: new Blob([pool(mode + "-blob")]) });
    await ask(mode + " as text", "/work_pools/", { ...post, body: pool(mode + "-text") });
    await ask(mode + " read", "/admin/version", { mode });
  }
  const headers = { "Content-Type": "application/json" };
  await ask("as JSON", "/work_pools/", { method: "POST", headers, body: pool("json") });
  await ask("delete", "/work_pools/idxflow", { method: "DELETE" });
  navigator.sendBeacon(api + "/work_pools/", new Blob([pool("beacon")]));
  const form = document.createElement("form");
  Object.assign(form, { method: "POST", action: api + "/work_pools/", enctype: "text/plain", target: "hidden" });
  const begun = '{"name":"form","type":"process","description":"';
  const field = Object.assign(document.createElement("input"), { name: begun, value: '"}' });
  form.append(field); document.body.append(form); form.submit();
  const event = { event: "idxflow.inbox.complete", occurred: new Date().toISOString(), id: crypto.randomUUID(),
    resource: { "prefect.resource.id": "idxflow.inbox.page" }, payload: {} };
  for (const protocols of [[], ["prefect"]])
    tries["websocket " + protocols] = await new Promise(done => {
      const socket = new WebSocket(api.replace("http", "ws") + "/events/in", protocols);
      socket.onopen = () => {
        socket.send(JSON.stringify({ type: "auth", token: null })); socket.send(JSON.stringify(event)); done("open");
      };
      socket.onerror = () => done("refused");
    });
  return tries;
}
</script>"""


@pytest.mark.browser
def test_a_page_of_another_port_changes_and_reads_nothing(browser: Any, server: dict[str, str]):
    """Of a server that asks nobody who he is: what the guard does by itself."""
    api = server["PREFECT_API_URL"]
    with FaultServer({"/": good(PAGE.encode(), Content_Type="text/html")}) as other:
        page = browser.new_page()
        page.goto(other.url("/"))
        tries = page.evaluate("api => attack(api)", api)
        page.wait_for_function("() => frames.length")
        # The form is sent when its frame has loaded.
        until(lambda: page.frames[1].url.startswith(("http://127", "chrome-error")))
        page.close()
    assert set(tries.values()) == {"refused"}, tries
    pools = HTTP.post(f"{api}/work_pools/filter", json={}).json()
    assert not {pool["name"] for pool in pools} & {"cors-blob", "cors-text", "no-cors-blob", "no-cors-text", "json"}
    assert not [pool for pool in pools if pool["name"] in ("beacon", "form")]
    query = {"filter": {"event": {"name": ["idxflow.inbox.complete"]}, "resource": {"id": ["idxflow.inbox.page"]}}}
    assert HTTP.post(f"{api}/events/filter", json=query).json()["events"] == []


@pytest.mark.browser
def test_a_name_that_is_made_to_lead_here_is_refused(browser: Any, server: dict[str, str]):
    """DNS rebinding: for the browser, the page and the server are of one origin."""
    port = urlsplit(server["PREFECT_API_URL"]).port
    flags = [*BROWSER_FLAGS[:-1], "--host-resolver-rules=MAP evil.example 127.0.0.1"]
    rebound = browser.browser_type.launch(executable_path=browser_program(), args=flags, timeout=PATIENCE_MS)
    try:
        page = rebound.new_page()
        answer = page.goto(f"http://evil.example:{port}/api/admin/version", timeout=PATIENCE_MS)
        assert answer.status == 421
        status = "path => fetch(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{}' })"
        assert page.evaluate(f"{status}.then(answer => answer.status)", "/api/flows/filter") == 421
    finally:
        rebound.close()
    raw = HTTP.get(f"http://127.0.0.1:{port}/api/health", headers={"Host": f"evil.example:{port}"})
    assert raw.status_code == 421


def test_the_owner_s_commands_find_the_secret_themselves(service: Service, place: dict[str, str]):
    """`PREFECT_API_URL` is exported, as `up` says, and nothing else."""
    result = idxflow("validate", "digits", env=place)
    assert result.returncode == 0, result.stderr
    wrong = {**place, "PREFECT_API_AUTH_STRING": "somebody:else"}
    result = idxflow("validate", "digits", env=wrong)
    assert result.returncode == 1
    assert "requires a different auth string" in result.stderr


def test_another_port_is_no_way_to_a_second_server_on_the_same_database(service: Service, place: dict[str, str]):
    result = up.command(place, "--port", str(free_port()))
    assert result.returncode == 1
    api = place["PREFECT_API_URL"]
    assert f"prefect.db; found that of `idxflow up` at {api}; stop that one first" in result.stderr


@pytest.fixture(scope="module")
def link(service: Service, place: dict[str, str]) -> str:
    """What `idxflow up` prints for the browser when it is typed again."""
    again = up.command(place)
    match = re.search(r"http://\S+/enter#\S+", again.stdout)
    assert match, again.stdout
    return match[0]


@pytest.mark.browser
def test_a_person_is_let_in_by_a_link_once_and_nothing_is_asked_outside(
    browser: Any, service: Service, place: dict[str, str], link: str
):
    ui = place["PREFECT_API_URL"].removesuffix("/api")
    hosts: set[str | None] = set()
    context = browser.new_context()
    page = context.new_page()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(link)
    page.wait_for_url("**/v2/dashboard")
    page.get_by_text("Logout").wait_for()
    page.goto(f"{ui}/v2/runs")
    page.get_by_role("link", name=re.compile("digits")).first.wait_for()
    # A change, which needs a token.
    page.goto(f"{ui}/v2/variables")
    page.get_by_role("button", name="Add Variable").first.click()
    page.get_by_label("Name").first.fill("by_hand")
    page.locator(".cm-content").first.fill("1")
    page.get_by_role("button", name="Create").click()
    page.get_by_text("Variable created").wait_for()
    # The older pages know him as well.
    page.goto(f"{ui}/runs")
    page.get_by_text("Switch to V2 UI").wait_for()
    assert hosts - {None} == {"127.0.0.1"}
    context.close()
    logs = "".join(path.read_text() for path in (Path(place["PREFECT_HOME"]) / "idxflow").glob("*.log"))
    assert link.partition("#")[2] not in logs + service.output


@pytest.mark.browser
def test_the_page_of_a_used_link_tells_that_it_was_used(browser: Any, link: str):
    context = browser.new_context()
    page = context.new_page()
    page.goto(link)
    page.get_by_text("This link was used before, or is older than 15 minutes.").wait_for()
    context.close()
