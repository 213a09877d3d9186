"""What a user's shell, folder and home may hold: a command works all the same, or names the cause and its place."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import environment
from flows.commands.cli import run_command
from flows.service import client, server
from flows.service.application import listen
from storage.errors import PrefectFailed
from tasks.sources import proxies
from tests.support import commands
from tests.support.commands import idxflow
from tests.support.faultserver import Exchange, FaultServer, good
from tests.support.servers import BIN, ROOT, clean_environment, free_port

NOWHERE = "http://127.0.0.1:9/api"
SOURCES = {
    "PREFECT_API_URL of the environment": ("", ""),
    "PREFECT_API_URL of {}/.env": (".env", f"PREFECT_API_URL={NOWHERE}"),
    "api.url of {}/prefect.toml": ("prefect.toml", f'[api]\nurl = "{NOWHERE}"'),
    "api.url of {}/pyproject.toml": ("pyproject.toml", f'[tool.prefect.api]\nurl = "{NOWHERE}"'),
    "PREFECT_API_URL of the profile 'work' in {}/prefect/profiles.toml": (
        "prefect/profiles.toml",
        f'active = "work"\n[profiles.work]\nPREFECT_API_URL = "{NOWHERE}"',
    ),
}


@pytest.mark.parametrize("place", SOURCES)
def test_a_server_that_is_not_there_is_named_with_the_place_of_its_address(tmp_path: Path, place: str):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    file, text = SOURCES[place]
    if file:
        (tmp_path / file).write_text(text)
    else:
        environment["PREFECT_API_URL"] = NOWHERE
    output = idxflow("status", env=environment, cwd=tmp_path).stdout
    assert f"expected a Prefect server at {NOWHERE} ({place.format(tmp_path)}), found none; start one" in output
    # What is advised ends it.
    if file:
        (tmp_path / file).unlink()
    else:
        del environment["PREFECT_API_URL"]
    assert NOWHERE not in idxflow("status", env=environment, cwd=tmp_path).stdout


READERS = """
import json, os, sys
from flows.service import configuration
from storage.errors import PrefectFailed

class Imports:
    def find_spec(self, name, path=None, target=None):
        if name == "prefect":
            raise ImportError("that is Prefect")

sys.meta_path.insert(0, Imports())
for place in json.load(sys.stdin):
    os.chdir(place["cwd"])
    os.environ.clear()
    os.environ.update(place["environment"])
    try:
        print(configuration.url())
    except PrefectFailed as error:
        print("Prefect" if "that is Prefect" in str(error) else error)
"""


def test_prefect_is_imported_for_an_address_only_where_a_file_may_hold_one(tmp_path: Path):
    """What it then reads is in the test above."""
    places = []
    for number, (file, text) in enumerate([*SOURCES.values(), (None, "")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        environment = clean_environment(folder)
        if file:
            (folder / file).write_text(text)
        elif file is not None:
            environment["PREFECT_API_URL"] = NOWHERE
        places.append({"cwd": str(folder), "environment": environment})
    code, given = [sys.executable, "-P", "-c", READERS], json.dumps(places)
    result = subprocess.run(code, input=given, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [NOWHERE, *["Prefect"] * 4, "None"]


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "profiles": ("prefect/profiles.toml", b'active = "work', "{}/prefect/profiles.toml: Unterminated string"),
    "toml": ("prefect.toml", b"[api", "{}/prefect.toml: Expected ']'"),
    "letters": (".env", "WHO=José".encode("latin-1"), "{}/.env is not UTF-8"),
    "value": ("", b"", "PREFECT_CLIENT_MAX_RETRIES of the environment: Input should be a valid integer"),
}


@pytest.mark.remedies("flows.service.configuration:read")
@pytest.mark.parametrize("case", BROKEN)
def test_settings_that_cannot_be_read_are_one_sentence(tmp_path: Path, case: str):
    file, content, message = BROKEN[case]
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    if file:
        (tmp_path / file).write_bytes(content)
    else:
        environment["PREFECT_CLIENT_MAX_RETRIES"] = "many"
    words = [BIN / "idxflow", "validate", "digits", "--json"]
    result = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    begun, sentence = result.stderr.splitlines()
    assert begun.startswith("importing Prefect")
    assert f"expected settings that Prefect can read; {message.format(tmp_path)}" in sentence
    assert json.loads(result.stdout)["error"]["kind"] == "PrefectFailed"
    # As it is advised: what cannot be read is corrected there.
    if file:
        (tmp_path / file).write_text("")
    else:
        environment["PREFECT_CLIENT_MAX_RETRIES"] = "3"
    environment["PREFECT_API_URL"] = NOWHERE
    again = idxflow("validate", "digits", "--json", env=environment, cwd=tmp_path)
    assert f"Failed to reach API at {NOWHERE}" in again.stderr


@pytest.mark.remedies("flows.service.configuration:_check_profile")
@pytest.mark.parametrize("place", ["PREFECT_PROFILE of the environment", "`active` in {}/prefect/profiles.toml"])
def test_a_profile_that_does_not_exist_is_one_sentence(tmp_path: Path, place: str):
    (tmp_path / "prefect").mkdir()
    profiles = tmp_path / "prefect" / "profiles.toml"
    profiles.write_text('[profiles.work]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n')
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    if "active" in place:
        profiles.write_text(f'active = "wrok"\n{profiles.read_text()}')
    else:
        environment["PREFECT_PROFILE"] = "wrok"
    message = (
        f"expected {place.format(tmp_path)} to name a profile of Prefect's (cloud, ephemeral, local, test, work); "
        "found 'wrok' (did you mean work?)"
    )
    result = doctor_and_status(tmp_path, environment)
    assert result.stdout.startswith("Diagnosis(verdict='problem', what='settings'")
    assert message in result.stdout
    assert "WARNING" not in result.stderr
    # As it is advised: it is removed.
    profiles.write_text(profiles.read_text().replace("wrok", "work"))
    environment.pop("PREFECT_PROFILE", None)
    assert doctor_and_status(tmp_path, environment, commands.python()).stdout.startswith(
        "Diagnosis(verdict='ok', what='settings'"
    )


@pytest.mark.remedies("flows.service.configuration:_check_files")
@pytest.mark.parametrize("name", [".env", "prefect.toml", "pyproject.toml", "prefect/profiles.toml"])
def test_settings_that_are_no_file_are_refused_at_once(tmp_path: Path, name: str):
    """Whoever reads a FIFO waits for somebody to write into it."""
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    words = [BIN / "idxflow", "prefect", "version"]
    refused = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert refused.returncode == 1
    assert f"{tmp_path / name} is a FIFO (named pipe), not a regular file; remove it" in refused.stderr
    (tmp_path / name).unlink()
    environment["PREFECT_API_URL"] = NOWHERE
    again = idxflow("prefect", "version", env=environment, cwd=tmp_path)
    assert "(PREFECT_API_URL of the environment), found none" in again.stderr


def test_status_goes_without_them_and_the_doctor_names_them(tmp_path: Path):
    """What the ledger has is shown all the same."""
    (tmp_path / "prefect.toml").write_text("[api")
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    finding, remark = doctor_and_status(tmp_path, environment).stdout.splitlines()
    assert finding.startswith("Diagnosis(verdict='problem', what='settings'")
    assert "prefect.toml" in finding
    assert "prefect.toml" in remark


def doctor_and_status(
    folder: Path, environment: dict[str, str], python: Sequence[str] = (sys.executable,)
) -> subprocess.CompletedProcess[str]:
    """Print what `idxflow doctor` finds of the settings, and what `idxflow status` says of them, on a line each.

    A new Python imports Prefect, and with it the settings.
    """
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.chdir({str(folder)!r})\n"
        "import flows.diagnosis as d, flows.health as s\n"
        "from storage.opening import open_store\n"
        "print(next(iter(d._server(open_store()))))\nprint(s.scheduled())"
    )
    return subprocess.run(
        [*python, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )


def keyed(exchange: Exchange) -> None:
    """Answer as a hosted API that wants a key."""
    body = b"true" if exchange.request.headers.get("authorization") == "Bearer pnu_x" else b""
    exchange.head(200 if body else 401, {"Content-Length": len(body)})
    exchange.send(body)


@pytest.mark.remedies("flows.service.client:_is_up:2", "flows.service.configuration:url")
def test_an_address_that_is_no_api_is_named_as_what_it_is(tmp_path: Path):
    environment = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"))
    answers = {"/api/health": keyed, "/api/admin/version": keyed, "/other/api/health": good(b"<html>")}
    with FaultServer(answers) as other:

        def status_of(url: str, **more: str) -> str:
            return idxflow("status", env={**environment, "PREFECT_API_URL": url, **more}).stdout

        missing = status_of(other.url())
        assert f"{other.url()} (PREFECT_API_URL of the environment), found HTTP 404; an address of" in missing
        assert "ends in /api" in missing
        assert "found HTTP 401; put the key that it requires into PREFECT_API_KEY" in status_of(other.url("/api"))
        # And what is advised gets further.
        assert "HTTP 401" not in status_of(other.url("/api"), PREFECT_API_KEY="pnu_x")
        assert "found HTTP 200; correct the address" in status_of(other.url("/other/api"))
        assert "--port" not in missing
    for wrong in ("localhost:4200", "http://me:word@127.0.0.1:port/api", "http://", "ftp://127.0.0.1/api"):
        refused = status_of(wrong)
        assert "expected an address such as http://127.0.0.1:4200/api in PREFECT_API_URL of the environment" in refused
        assert "word" not in refused
    corrected = idxflow("status", env={**environment, "PREFECT_API_URL": NOWHERE}).stdout
    assert f"expected a Prefect server at {NOWHERE}" in corrected


def test_something_else_at_the_usual_port_is_answered_with_another_port():
    with FaultServer({}) as other, temporary_settings(restore_defaults={PREFECT_API_URL}):
        where = server.address("127.0.0.1", urlsplit(other.url()).port, None)
        with pytest.raises(PrefectFailed, match="found HTTP 404; start one at another port with `idxflow up --port`"):
            client._is_up(where)


def test_what_is_waited_for_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(server, "_SOON_SECONDS", 0.05)
    monkeypatch.setattr(server, "_HEALTH_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = server.address("127.0.0.1", silent.getsockname()[1], None)
        for _ in range(2):
            with pytest.raises(server.Unexpected, match=r"no answer within 0.1 s"):
                server.is_up(where)
    # Once, however often it is asked.
    assert capsys.readouterr().err == f"idxflow: waiting for {where.api} to answer, for at most 0.1 s\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize("configured", [None, "127.0.0.1", "localhost", "[::1]"])
def test_a_server_is_asked_where_it_listens(host: str, configured: str | None):
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        url = f"http://{configured}:{port}/api" if configured else None
        where = server.address(host, None if url else port, url)
        parts = urlsplit(where.api)
        assert (where.host, where.local, parts.port) == (host, True, port)
        socket.create_connection((parts.hostname, port), timeout=5).close()


@pytest.fixture
def proxy() -> Iterator[FaultServer]:
    with FaultServer({}) as proxy:
        yield proxy


@pytest.mark.flow
def test_this_machine_is_never_asked_through_a_proxy_and_archives_are(
    server: dict[str, str], proxy: FaultServer, tmp_path: Path
):
    environment = {
        **server,
        "IDXFLOW_STORE": str(tmp_path / "store"),
        "HTTP_PROXY": proxy.url(),
        "https_proxy": proxy.host,
        "no_proxy": "localhost",
    }
    result = idxflow("validate", "mnist", "--source", "http://archive.invalid/mnist", "--json", env=environment)
    assert result.returncode == 4, result.stderr
    hosts = {request.headers["host"].partition(":")[0] for request in proxy.requests}
    assert "archive.invalid" in hosts
    assert not hosts & {"127.0.0.1", "localhost", "::1"}
    assert json.loads(result.stdout)["error"]["kind"] == "SourceUnavailable"


@pytest.mark.flow
def test_a_proxy_that_cannot_be_used_keeps_only_archives_away(server: dict[str, str], tmp_path: Path):
    environment = {**server, "IDXFLOW_STORE": str(tmp_path / "store"), "ALL_PROXY": "socks5://me:word@127.0.0.1:9"}
    assert idxflow("validate", "digits", env=environment).returncode == 0
    result = idxflow("validate", "mnist", "--source", "http://archive.invalid/mnist", env=environment)
    assert result.returncode == 4
    assert "ALL_PROXY is set to a proxy that cannot be used; set it to an http://" in result.stderr
    assert "word" not in result.stderr


@pytest.mark.parametrize(
    ("value", "usable"),
    [
        *((f"{scheme}127.0.0.1:9", True) for scheme in ("http://", "https://", "")),
        *((value, True) for value in ("proxy.example", "http://[::1]:9", "http://user:word@proxy.example:9")),
        *((f"{scheme}://h", False) for scheme in ("socks5", "socks5h", "socks4", "gopher")),
        *((f"http://{value}", False) for value in ("h:port", "", "h:99999", "[::1")),
    ],
)
def test_a_proxy_that_no_client_can_use_is_set_aside(value: str, usable: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {"HTTP_PROXY": value})
    proxies.keep_direct(*proxies.LOOPBACK)
    assert (proxies.unusable() is None) == usable
    assert ("HTTP_PROXY" in os.environ) == usable
    # Whatever is left, clients can be made.
    httpx.Client().close()


@pytest.mark.parametrize(
    ("exceptions", "expected"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "a.example"}, "a.example,127.0.0.1,localhost,::1"),
        ({"no_proxy": "localhost, .b", "NO_PROXY": "ignored"}, "localhost,.b,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_other_programs_are_told_the_exceptions(
    exceptions: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
):
    users = {**exceptions, "HTTP_PROXY": "http://proxy.example", "ALL_PROXY": "gopher://h"}
    monkeypatch.setattr(os, "environ", dict(users))
    proxies.keep_direct(*proxies.LOOPBACK)
    lines = "\n".join([*proxies.shell_lines(), 'echo "$NO_PROXY|$no_proxy|$HTTP_PROXY|$ALL_PROXY"'])
    typed = subprocess.run(["/bin/sh", "-euc", lines.replace("$ALL_", "${ALL_").replace('Y"', 'Y-}"')], env=users,
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert typed.stdout == f"{expected}|{expected}|http://proxy.example|\n"


def test_without_a_proxy_nothing_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {"PATH": "/bin"})
    proxies.keep_direct(*proxies.LOOPBACK)
    assert os.environ == {"PATH": "/bin"}


def test_a_user_whom_the_system_does_not_know_has_a_home(monkeypatch: pytest.MonkeyPatch):
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    environment.prepare()
    assert Path.home() == Path("/")


@pytest.mark.remedies("flows.service.database:_unusable")
@pytest.mark.parametrize("home", ["/proc/nobody", "file"])
def test_a_home_that_cannot_be_written_is_named_and_another_helps(tmp_path: Path, home: str):
    (tmp_path / "file").write_text("")
    variables = clean_environment(tmp_path, IDXFLOW_STORE=str(tmp_path / "store"), HOME=str(tmp_path / home))
    broken = {name: value for name, value in variables.items() if name != "PREFECT_HOME"}
    words = [BIN / "idxflow", "up", "--port", str(free_port())]
    result = subprocess.run(words, env=broken, cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "Prefect's folder cannot be used" in result.stderr
    assert f"at {tmp_path / home}" in result.stderr
    # As it is advised: the next error is that of the server which is not there.
    advised = {**broken, "PREFECT_HOME": variables["PREFECT_HOME"], "PREFECT_API_URL": "http://a.invalid/api"}
    assert "start it there" in idxflow("up", env=advised).stderr


def test_a_folder_that_was_removed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    folder = tmp_path / "removed"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert run_command(["datasets"]) == 2
    assert "expected a current folder; No such file or directory: it was removed" in capfd.readouterr().err


@pytest.mark.parametrize(("module", "lines"), [("cyclopts", 0), ("prefect", 1)])
def test_ctrl_c_while_modules_are_imported_leaves_no_trace(tmp_path: Path, module: str, lines: int):
    stopping = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / f"{module}.py").write_text(stopping)
    environment = clean_environment(tmp_path, PYTHONPATH=str(tmp_path), IDXFLOW_STORE=str(tmp_path / "store"))
    result = subprocess.run(
        [BIN / "idxflow", "validate", "digits"],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        # The background of a shell has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert result.returncode == 130
    assert result.stderr.count("\n") == lines, result.stderr


MODULES = ("calendar", "random", "uvicorn", "numpy", "prefect", "yaml", "flows", "tasks", "storage", "expectations")


@pytest.mark.flow
def test_nothing_in_the_current_folder_is_imported(server: dict[str, str], tmp_path: Path):
    """Nor what `PYTHONPATH` has under the names of idxflow's own packages."""
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n")
    for name in ("flows", "tasks", "storage", "expectations"):
        (tmp_path / "others" / name).mkdir(parents=True)
        (tmp_path / "others" / name / "__init__.py").write_text("raise SystemExit('of another project')")
    # An empty entry, as `PYTHONPATH=$PYTHONPATH:/somewhere` leaves it, is the current folder.
    environment = {**server, "IDXFLOW_STORE": str(tmp_path / "store"), "PYTHONPATH": f":{tmp_path / 'others'}:."}
    words = [BIN / "idxflow", "validate", "digits"]
    result = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "the data is valid" in result.stdout, result.stderr
    assert not (tmp_path / "imported").exists()
    # Once: the processes that it starts say nothing of it.
    assert [line for line in result.stderr.splitlines() if "PYTHONPATH" in line] == [
        f"idxflow: PYTHONPATH leads to {tmp_path / 'others' / name / '__init__.py'}, which is not imported: "
        "idxflow uses its own"
        for name in ("expectations", "flows", "storage", "tasks")
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_while_the_command_is_imported_ends_it_quietly(number: int, code: int):
    sent = (
        "import os, sys, idxflow_start\n"
        "sys.addaudithook(lambda event, of: "
        f"of[:1] == ('flows.commands.cli',) and os.kill(os.getpid(), {int(number)}))\n"
        "sys.argv = ['idxflow', 'datasets']; idxflow_start.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", sent], cwd=ROOT, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (code, b"", b"")


def test_all_that_is_started_imports_the_same(tmp_path: Path):
    code = (
        "import sys; sys.path[0] = ''; sys.path.insert(1, '/elsewhere')\n"
        f"sys.path.append({str(ROOT)!r})\n"
        "import idxflow_start, subprocess\n"
        "idxflow_start.import_own_modules()\n"
        "child = [sys.executable, '-c', 'import sys, flows; print(sys.path); print(flows.__file__)']\n"
        "print(sys.path); sys.stdout.flush(); subprocess.run(child, check=True)\n"
    )
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path}::relative"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    own, childs, flows = result.stdout.splitlines()
    assert own.startswith(f"[{str(ROOT)!r}, '/elsewhere', ")
    assert childs.startswith(f"[{str(ROOT)!r}, ")
    assert Path(flows) == ROOT / "flows" / "__init__.py"
    assert repr(str(tmp_path)) not in own + childs
    assert "relative" not in childs
