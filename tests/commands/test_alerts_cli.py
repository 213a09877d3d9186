"""`idxflow alerts` as people call it, and what other commands send at their end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from prefect.settings import PREFECT_HOME, temporary_settings

from flows import diagnosis
from flows.alerts.event import USUAL
from flows.commands.cli import run_command
from storage.store import Store
from tests.support import commands
from tests.support.commands import Command
from tests.support.faultserver import FaultServer, good, status
from tests.support.mailserver import MailServer
from tests.support.old_stores import unpacked
from tests.support.servers import clean_environment
from tests.support.stores import retrain

TOKEN = "T0KEN-kXVw2hIiDf9Zq"
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def receiver() -> Iterator[FaultServer]:
    with FaultServer({"/hook": good(b"ok"), "/broken": status(500)}) as server:
        yield server


@pytest.fixture
def environment(tmp_path: Path, receiver: FaultServer) -> dict[str, str]:
    return clean_environment(
        tmp_path,
        IDXFLOW_STORE=str(tmp_path / "store"),
        HOOK_URL=receiver.url(f"/hook?token={TOKEN}"),
        BROKEN_URL=receiver.url(f"/broken?token={TOKEN}"),
        MAIL_PASSWORD=TOKEN,
    )


@pytest.fixture
def idxflow(environment: dict[str, str], tmp_path: Path) -> Call:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        result = commands.idxflow(*arguments, env=environment, cwd=tmp_path)
        assert TOKEN not in result.stdout + result.stderr
        return result

    return call


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of five versions, of which the second is the champion, and the first was before."""
    return unpacked(3, tmp_path)


def titles(receiver: FaultServer) -> list[str]:
    return [json.loads(request.body)["title"] for request in receiver.requests]


@dataclass
class Here:
    """Calls in this process, with a home of their own."""

    home: Path
    capsys: pytest.CaptureFixture[str]

    def do(self, *words: str) -> None:
        assert run_command(["alerts", *words]) == 0, self.capsys.readouterr().err

    def refused(self, *words: str, code: int = 2) -> str:
        """Return the sentence with which a command is refused."""
        self.capsys.readouterr()
        assert run_command(["alerts", *words]) == code
        said = self.capsys.readouterr()
        assert len(said.err.splitlines()) == 1
        assert TOKEN.lower() not in (said.out + said.err).lower().replace("_", "-")
        return said.err

    def refuse(self, words: tuple[str, ...], problem: str, then: tuple[str, ...]) -> None:
        """Check that an alert is refused with this problem, and that the one that is advised is not."""
        assert problem in self.refused("add", *words)
        self.do("add", *then)
        named = dict(pairwise(then)).get("--name", then[0])
        self.do("remove", named)


@pytest.fixture
def here(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    for name in ("HOOK_URL", "MAIL_PASSWORD", "IDXFLOW_STORE"):
        monkeypatch.setenv(name, environment[name])
    with temporary_settings({PREFECT_HOME: tmp_path / "home"}):
        yield Here(tmp_path / "home", capsys)


@pytest.mark.usefixtures("store")
def test_an_alert_is_added_tried_used_and_removed(idxflow: Call, receiver: FaultServer, tmp_path: Path):
    assert idxflow("alerts", "list").stdout.startswith(f"no alerts for the store {tmp_path / 'store'}; ")
    added = idxflow("alerts", "add", "webhook", "--url-from", "HOOK_URL", "--name", "ops")
    assert added.stdout.splitlines() == [
        f"added the alert ops: webhook, the address in HOOK_URL; tells of {', '.join(USUAL)}",
        "try it: idxflow alerts test ops",
    ]
    assert idxflow("alerts", "test").stdout == "ops: accepted by the address in HOOK_URL\n"
    assert titles(receiver) == ["idxflow: a test"]
    forced = idxflow("promote", "tiny", "1", "--force", "--reason", "a try")
    assert (forced.returncode, forced.stderr) == (0, "")
    assert titles(receiver)[1:] == ["tiny: champion v1 by hand"]
    assert idxflow("rollback", "tiny", "--reason", "worse", "--json").stderr == ""
    assert titles(receiver)[2:] == ["tiny: rolled back to v2"]
    listed = idxflow("alerts", "list")
    assert listed.returncode == 0
    assert "sent     tiny: rolled back to v2" in listed.stdout
    (alert,) = json.loads(idxflow("alerts", "list", "--json").stdout)["alerts"]
    assert (alert["name"], alert["receiver"], alert["problem"]) == ("ops", {"url_from": "HOOK_URL"}, None)
    assert [message["state"] for message in alert["messages"]] == ["sent", "sent"]
    assert idxflow("alerts", "send").stdout == "ops: sent 0 messages\n"
    assert idxflow("alerts", "remove", "ops").stdout == "removed the alert ops\n"
    assert json.loads(idxflow("alerts", "list", "--json").stdout)["alerts"] == []
    # The secret is in no file, not even in one that was removed only in part.
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.remedies("flows.diagnosis:_alerts:2")
def test_a_receiver_that_fails_ends_no_command_and_is_seen(
    idxflow: Call, receiver: FaultServer, store: Store, environment: dict[str, str]
):
    idxflow("alerts", "add", "webhook", "--url-from", "BROKEN_URL")
    forced = idxflow("promote", "tiny", "1", "--force", "--reason", "a try")
    assert forced.returncode == 0
    assert forced.stdout == "forced v2→v1: a try\n"
    assert forced.stderr == (
        "idxflow: alert webhook: 127.0.0.1 answered 500; `idxflow alerts list` shows what becomes of it\n"
    )
    problem = "1 message is not delivered: 127.0.0.1 answered 500; it will be tried again"
    for words in (("alerts", "list"), ("status",)):
        result = idxflow(*words)
        assert result.returncode == 1
        assert problem in result.stdout
    assert json.loads(idxflow("status", "--json").stdout)["alerts"] == [{"name": "webhook", "problem": problem}]
    with temporary_settings({PREFECT_HOME: Path(environment["PREFECT_HOME"])}):
        (finding,) = diagnosis._alerts(store)
        assert (finding.verdict, finding.found) == ("warning", f"webhook: {problem}")
        assert finding.remedy.startswith("correct that, then try it: idxflow alerts test webhook")
    failed = idxflow("alerts", "test", "webhook", "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout) == {"alerts": [{"name": "webhook", "problem": "127.0.0.1 answered 500"}]}
    receiver.answers["/broken"] = good(b"")
    assert idxflow("rollback", "tiny", "--reason", "worse").stderr == ""
    assert titles(receiver)[2:] == ["tiny: rolled back to v2"], "the next attempt for the other has to wait"
    with temporary_settings({PREFECT_HOME: Path(environment["PREFECT_HOME"])}):
        (finding,) = diagnosis._alerts(store)
        assert finding.verdict == "ok"


def test_a_mail_is_sent(idxflow: Call):
    with MailServer() as server:
        words = ("--to", "ops@example.org", "--to", "me@example.org", "--smtp", server.address, "--security", "none")
        assert idxflow("alerts", "add", "email", *words).returncode == 0
        assert idxflow("alerts", "test", "email").returncode == 0
        assert server.recipients == [["ops@example.org", "me@example.org"]]


KILLS = """
import os, signal, sys
open(sys.argv[1], "a").write(sys.stdin.read())
os.kill(os.getppid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("store")
def test_a_process_that_is_killed_before_it_has_noted_a_message_has_it_sent_again(
    idxflow: Call, environment: dict[str, str], tmp_path: Path
):
    """At least once: the receiver has it, and nobody else knows."""
    got, script = tmp_path / "got", tmp_path / "page.py"
    script.write_text(KILLS)
    idxflow("alerts", "add", "command", "--run", f"{sys.executable} -I -S {script} {got}")
    with Command("promote", "tiny", "1", "--force", "--reason", "a try", env=environment, cwd=tmp_path) as promote:
        assert promote.wait(240) == -signal.SIGKILL
    event = json.loads(got.read_text())
    assert event["title"] == "tiny: champion v1 by hand"
    (alert,) = json.loads(idxflow("alerts", "list", "--json").stdout)["alerts"]
    (message,) = alert["messages"]
    assert (message["id"], message["state"], message["attempts"]) == (event["id"], "waiting", 1)
    assert message["problem"] == "the attempt did not end"


def test_two_at_once_send_each_event_once(idxflow: Call, environment: dict[str, str], receiver: FaultServer):
    retrained = Store(Path(environment["IDXFLOW_STORE"]))
    idxflow("alerts", "add", "webhook", "--url-from", "HOOK_URL", "--event", "kept")
    for number in range(1, 6):
        retrain(retrained, number, promoted=False)
    with Command("alerts", "send", env=environment) as first, Command("alerts", "send", env=environment) as second:
        assert (first.wait(240), second.wait(240)) == (0, 0)
    assert len({json.loads(request.body)["id"] for request in receiver.requests}) == 5
    assert len(receiver.requests) == 5


MAIL = ("email", "--to", "a@example.org", "--smtp")
LOGIN = ("--user", "me", "--password-from", "MAIL_PASSWORD")
SLACK = ("slack", "--url-from", "HOOK_URL")


@pytest.mark.remedies(
    "flows.alerts.secret:checked",
    "flows.alerts.secret:checked:2",
    "flows.alerts.secret:checked:3",
    "flows.alerts.mail:email",
    "flows.alerts.mail:email:2",
    "flows.alerts.mail:email:3",
    "flows.alerts.program:program",
    "flows.alerts.program:program:2",
    "flows.commands.alerts:_receiver",
    "flows.commands.alerts:_receiver:2",
    "flows.commands.alerts:_check_given",
    "flows.commands.alerts:_kinds",
    "flows.alerts.settings:add",
)
def test_what_cannot_be_added_is_said_in_a_sentence_that_leads_on(here: Here):
    here.refuse(("slack", "--url-from", f"https://chat.example.org/{TOKEN}"), "perhaps the secret itself", SLACK)
    unset = ("slack", "--url-from", TOKEN.upper().replace("-", "_"))
    here.refuse(unset, "to be set, here and where `idxflow up` runs; found none of that name; export it first", SLACK)
    block = ("slack", "--url-from", "block:chat")
    here.refuse(("slack", "--url-from", f"block:{TOKEN}"), "a block's name has small letters, digits and", block)
    here.refuse(("slack",), "expected --url-from for slack; found no --url-from; ", SLACK)
    here.refuse((*SLACK, "--to", "a@example.org"), "expected --to only for email; found it for slack; leave it", SLACK)
    here.refuse(MAIL[:-1], "expected --to and --smtp for email; found no --smtp; ", (*MAIL, "x"))
    here.refuse(("email", "--to", "a@b\nc", "--smtp", "x"), "expected an e-mail address such as", (*MAIL, "x"))
    here.refuse((*MAIL, f"me:{TOKEN}@x"), "without user and password; found another text; ", (*MAIL, "x:25", *LOGIN))
    here.refuse((*MAIL, "x", "--user", "me"), "expected both --user and --password-from", (*MAIL, "x", *LOGIN))
    clear = (*MAIL, "example.org", "--security", "none", *LOGIN)
    here.refuse(clear, "expected an encrypted connection for a login at example.org; ", (*MAIL, "example.org", *LOGIN))
    runs = ("command", "--run", "/bin/true x")
    here.refuse(("command", "--run", "/nowhere/page x"), "that can be run; found '/nowhere/page'; give its path", runs)
    here.refuse(("command", "--run", "/bin/true 'x"), "to be a command; No closing quotation; correct", runs)
    kinds = (*SLACK, "--event", "promoted")
    here.refuse((*SLACK, "--event", "promotd"), "found 'promotd' (did you mean promoted?); correct it", kinds)
    here.refuse(
        (*SLACK, "--name", "A B"), "small letters, digits and dashes; found 'A B'; choose", (*SLACK, "--name", "a-b")
    )


@pytest.mark.remedies(
    "flows.alerts.settings:add:2",
    "flows.alerts.settings:add:3",
    "flows.alerts.settings:named",
    "flows.commands.alerts:try_",
    "flows.alerts.settings:alerts",
    "flows.alerts.settings:_changing",
    "flows.diagnosis:_alerts",
)
def test_names_that_are_taken_or_unknown_and_files_that_cannot_be_used(here: Here):
    assert "there is none; add one first: `idxflow alerts add --help` has examples" in here.refused("test")
    here.do("add", *SLACK)
    again = "slack exists; give another with --name, or remove that one first: `idxflow alerts remove slack`"
    assert again in here.refused("add", *SLACK)
    here.do("remove", "slack")
    here.do("add", *SLACK)
    for words in (("remove", "slak"), ("test", "slak")):
        assert "'slak' is none (did you mean slack?); found slack; `idxflow alerts list` " in here.refused(*words)
    here.do("test", "slack")
    bytes_of = ("command", "--run", os.fsdecode(b"/bin/true \xe9"))
    assert "in UTF-8, as a file keeps them; found other bytes; rename" in here.refused("add", *bytes_of)
    file = here.home / "idxflow" / "alerts.json"
    file.write_text("{}")
    assert "remove this file, then add the alerts again" in here.refused("list")
    (finding,) = diagnosis._alerts(Store(here.home.parent / "store"))
    assert finding.verdict == "warning"
    file.unlink()
    here.do("list")
    (here.home / "idxflow").rename(here.home / "away")
    (here.home / "idxflow").write_text("in the way")
    assert "correct that, or choose another PREFECT_HOME" in here.refused("add", *SLACK, code=1)
    (here.home / "idxflow").unlink()
    here.do("add", *SLACK)
