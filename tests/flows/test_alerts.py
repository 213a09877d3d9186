"""What has happened to the data sets of a store is told: each event once, whatever receivers do."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_HOME, temporary_settings

from flows.alerts import delivery, settings
from flows.alerts.delivery import deliver, tell
from flows.alerts.event import SCHEMA, TITLES, USUAL, Event
from flows.alerts.found import History
from flows.alerts.mail import email
from flows.alerts.program import Program
from flows.alerts.progress import WAITS, WINDOW, Progress
from flows.alerts.receiver import NotDelivered, Receiver
from flows.alerts.settings import Alert
from flows.alerts.webhook import Slack, Webhook
from flows.events import NAMES
from storage.drifts import Drifts
from storage.ledger import Ledger
from storage.registry import Registry
from storage.store import Store
from tests.support.certificates import authority
from tests.support.faultserver import Answer, FaultServer, good, in_turn, raw, redirect, silent, slow_head, status
from tests.support.mailserver import USER, MailServer
from tests.support.stores import DATASET, decide, retrain

TOKEN = "T0KEN-kXVw2hIiDf9Zq"
PASSWORD = "pass-kXVw2hIiDf9Zq"
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
ALL = tuple(kind for kind in TITLES if kind != "test")
SECONDS = 60.0
IMPATIENT = 0.2


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Iterator[Path]:
    with temporary_settings({PREFECT_HOME: tmp_path / "home"}):
        yield tmp_path / "home"


@pytest.fixture
def receiver() -> Iterator[FaultServer]:
    with FaultServer({"/hook": good(b"ok")}) as server:
        yield server


@pytest.fixture
def hook(receiver: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Webhook:
    return hook_at(receiver, monkeypatch)


def hook_at(server: FaultServer, monkeypatch: pytest.MonkeyPatch, path: str = "/hook") -> Webhook:
    monkeypatch.setenv("HOOK_URL", server.url(f"{path}?token={TOKEN}"))
    return Webhook("HOOK_URL")


def alert(store: Store, receiver: Receiver, *kinds: str, **more: Any) -> Alert:
    return Alert("hook", store.address, receiver, LONG_AGO.isoformat(), kinds or USUAL, **more)


def sent(store: Store, told: Alert, seconds: float = SECONDS, due: datetime | None = None) -> tuple[int, str | None]:
    """Send what is due of `tiny`, as a new process does; return how much was sent, and the problem."""
    done = deliver(told, History(store), {DATASET: due}, seconds)
    return done.sent, done.problem


def bodies(server: FaultServer) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in server.requests]


def ended(store: Store, state: str, run: str = "run-x", kind: str = "TrainingFailed", **more: Any) -> None:
    """Record the end of a run that did not end well."""
    error = {"kind": kind, "sentence": f"{state}: it was not to be", "exit_code": 1}
    values = {"dataset": DATASET, "state": state, "sentence": error["sentence"], "error": error, "report": None}
    Ledger(store, DATASET).append("runs", run, {**values, "seconds": 1.0, "steps": [], "version": None, **more})


def example(**more: Any) -> Event:
    values: dict[str, Any] = {
        "id": "tiny/runs/00000001-run",
        "kind": "promoted",
        "dataset": "tiny",
        "time": LONG_AGO.isoformat(),
        "sentence": "promoted v2: 3 more of 60 test images",
        "command": "idxflow report tiny run",
        "store": "/a/store",
        "version": 2,
        "test_accuracy": 0.975,
    }
    return Event(**(values | more))


def test_everything_that_changes_what_is_true_is_an_event(store: Store):
    retrain(store, 1)
    retrain(store, 2, promoted=False)
    ended(store, "refused", "run-3", "ValidationFailed")
    ended(store, "refused", "run-4", "ModelRefused")
    ended(store, "failed", "run-5")
    ended(store, "crashed", "run-6", "Crashed")
    ended(store, "unchanged", "run-7")
    ended(store, "cancelled", "run-8", "Cancelled")
    registry = Registry(store, DATASET)
    decide(registry, "forced", 2, "by-hand", sentence="forced v1→v2: a try")
    decide(registry, "rolled back", 1, "by-hand", sentence="rolled back v2→v1: worse")
    registry.retire([2], registry.standing())
    Drifts(store, DATASET).note(1, True, {"sentence": "the digits are thinner"})
    history = History(store)
    found = history.found(DATASET, LONG_AGO)
    assert len(found) == 10
    assert {*NAMES} == {*ALL} == {each.kind for each in found} | {"stale"}
    events = {each.kind: history.event(each) for each in found}
    assert events["promoted"].command == store.command("report tiny run-1")
    assert events["forced"].title == "tiny: champion v2 by hand"
    assert events["rolled-back"].sentence == "rolled back v2→v1: worse"
    assert events["retired"].sentence == "`gc` no longer keeps the models of v2"
    assert events["drifted"].sentence == "the digits are thinner"
    # A second look reads no record again, and says the same.
    assert [each.id for each in history.found(DATASET, LONG_AGO)] == [each.id for each in found]


def test_a_run_that_was_killed_after_its_decision_tells_of_both(store: Store):
    version = retrain(store, 1)
    (path,) = (store.dataset(DATASET) / "ledger" / "runs").iterdir()
    path.unlink()
    ended(store, "crashed", version.run, "Crashed", version=1)
    assert {each.kind for each in History(store).found(DATASET, LONG_AGO)} == {"crashed", "promoted"}


def test_a_message_says_what_a_person_wants_to_know():
    assert example(champion=2, report="/a/store/report.html").text.splitlines() == [
        "tiny: new champion v2",
        "promoted v2: 3 more of 60 test images",
        "accuracy: v2: 97.50% on the test split",
        "champion: v2",
        "report: /a/store/report.html",
        "next: idxflow report tiny run",
    ]


def test_an_event_reaches_a_webhook_once_as_documented_json(store: Store, receiver: FaultServer, hook: Webhook):
    retrain(store, 1)
    retrain(store, 2, promoted=False)
    told = alert(store, hook)
    assert sent(store, told) == (1, None)
    assert sent(store, told) == (0, None)
    (body,) = bodies(receiver)
    page = (Path(__file__).parents[2] / "docs/how-to/notifications.md").read_text()
    documented = re.findall(r"^\| `([a-z_]+)` \|", page.partition("## The JSON")[2], re.MULTILINE)
    assert [*body] == documented
    assert (body["schema"], body["event"], body["run"]) == (SCHEMA, "promoted", "run-1")
    assert body["text"].startswith("tiny: new champion\n")
    # What happened later is told later.
    decide(Registry(store, DATASET), "forced", 2, "by-hand", sentence="forced v1→v2: a try")
    assert sent(store, told) == (1, None)
    assert bodies(receiver)[1]["title"] == "tiny: champion v2 by hand"


def test_a_chat_gets_text_that_it_shows_as_it_is(receiver: FaultServer, monkeypatch: pytest.MonkeyPatch):
    hook_at(receiver, monkeypatch)
    Slack("HOOK_URL").send(example(sentence="forced v1→v2: <!channel> & more"), SECONDS)
    (body,) = bodies(receiver)
    assert [*body] == ["text"]
    assert "forced v1→v2: &lt;!channel&gt; &amp; more" in body["text"]


def test_an_alert_tells_of_what_it_was_asked_for_and_of_nothing_from_before(
    store: Store, receiver: FaultServer, hook: Webhook
):
    retrain(store, 1)
    assert sent(store, alert(store, hook, "failed")) == (0, None)
    assert sent(store, alert(store, hook, datasets=("mnist",))) == (0, None)
    late = Alert("late", store.address, hook, (datetime.now(UTC) + timedelta(seconds=1)).isoformat())
    assert sent(store, late) == (0, None)
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (status(500), "127.0.0.1 answered 500"),
        (status(404), "127.0.0.1 answered 404"),
        (redirect("/elsewhere"), "127.0.0.1 answered 302, a redirect, which is not followed; "),
        (silent, f"no answer within {IMPATIENT:g} s"),
        (slow_head(), f"no answer within {IMPATIENT:g} s"),
        (raw(b"SSH-2.0-OpenSSH\r\n"), "the request to 127.0.0.1 failed"),
    ],
    ids=["500", "404", "redirect", "silent", "a byte now and then", "no HTTP"],
)
def test_a_receiver_that_does_not_take_it_is_named_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, problem: str
):
    with FaultServer({"/hook": answer, "/elsewhere": good(b"")}) as server:
        with pytest.raises(NotDelivered) as raised:
            hook_at(server, monkeypatch).send(example(), SECONDS if "no answer" not in problem else IMPATIENT)
        assert str(raised.value).startswith(problem)
        assert TOKEN not in str(raised.value)
        assert [request.path.partition("?")[0] for request in server.requests] == ["/hook"]


def test_no_message_goes_to_a_server_that_nobody_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trusted = authority(tmp_path / "trusted")
    with FaultServer({"/hook": good(b"")}, tls=trusted.server()) as server:
        hook = hook_at(server, monkeypatch)
        with pytest.raises(NotDelivered, match="the certificate of 127.0.0.1 is not trusted"):
            hook.send(example(), SECONDS)
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted.file))
        hook.send(example(), SECONDS)
        assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1/x", f"https://:{TOKEN}@", f"http://[{TOKEN}", TOKEN])
def test_a_variable_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("HOOK_URL", url)
    with pytest.raises(NotDelivered) as raised:
        Webhook("HOOK_URL").send(example(), SECONDS)
    assert "HOOK_URL" in str(raised.value)
    assert TOKEN not in str(raised.value)


class Later:
    """The clock of deliveries, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = datetime.now(UTC)
        monkeypatch.setattr(delivery, "_now", lambda: self.now)

    def __call__(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def test_it_is_tried_again_a_limited_number_of_times_ever_later(store: Store, monkeypatch: pytest.MonkeyPatch):
    later = Later(monkeypatch)
    retrain(store, 1)
    with FaultServer({"/hook": status(503)}) as server:
        told = alert(store, hook_at(server, monkeypatch))
        assert sent(store, told) == (0, "127.0.0.1 answered 503")
        for attempts, wait in enumerate(WAITS, 1):
            later(wait - 1)
            assert sent(store, told) == (0, None), "not yet"
            assert len(server.requests) == attempts
            later(1)
            assert sent(store, told) == (0, "127.0.0.1 answered 503")
        later(10 * WAITS[-1])
        assert sent(store, told) == (0, None)
        assert len(server.requests) == len(WAITS) + 1
    trouble = Progress(delivery.progress_path(told)).trouble
    assert trouble == "1 message is not delivered: 127.0.0.1 answered 503; no more attempts"
    # The next event is tried, and what is told again ends the trouble.
    ended(store, "failed")
    with FaultServer({"/hook": good(b"")}) as server:
        assert sent(store, alert(store, hook_at(server, monkeypatch))) == (1, None)
        assert [body["event"] for body in bodies(server)] == ["failed"]
    assert Progress(delivery.progress_path(told)).trouble is None


def test_a_receiver_that_is_back_gets_what_it_missed(store: Store, monkeypatch: pytest.MonkeyPatch):
    later = Later(monkeypatch)
    retrain(store, 1)
    ended(store, "failed")
    with FaultServer({"/hook": in_turn(status(500), good(b""))}) as server:
        told = alert(store, hook_at(server, monkeypatch))
        # What follows would meet the same: one look, one failure.
        assert sent(store, told) == (0, "127.0.0.1 answered 500")
        assert len(server.requests) == 1
        later(WAITS[0])
        assert sent(store, told) == (2, None)
        assert [body["event"] for body in bodies(server)] == ["promoted", "promoted", "failed"]
        assert bodies(server)[0]["id"] == bodies(server)[1]["id"]


def test_what_is_missing_in_this_process_is_no_attempt(
    store: Store, receiver: FaultServer, hook: Webhook, monkeypatch: pytest.MonkeyPatch
):
    later = Later(monkeypatch)
    retrain(store, 1)
    with monkeypatch.context() as elsewhere:
        elsewhere.delenv("HOOK_URL")
        for _ in range(3 * len(WAITS)):
            later(WAITS[0])
            done, problem = sent(store, alert(store, hook))
            assert (done, problem) == (0, "expected the variable HOOK_URL; it is not set here; set it where this runs")
    later(WAITS[0])
    assert sent(store, alert(store, hook)) == (1, None)


def test_it_is_forgotten_in_the_end(
    store: Store, receiver: FaultServer, hook: Webhook, monkeypatch: pytest.MonkeyPatch
):
    later = Later(monkeypatch)
    retrain(store, 1)
    told = alert(store, hook, "promoted", "failed")
    assert sent(store, told) == (1, None)
    later((WINDOW + timedelta(days=2)).total_seconds())
    assert sent(store, told) == (0, None)
    assert len(receiver.requests) == 1
    path = delivery.progress_path(told)
    Progress(path).begin("tiny/runs/other", "another", later.now.isoformat(), later.now)
    assert [*Progress(path).told] == ["tiny/runs/other"]


def test_a_data_set_that_is_stale_is_told_once_and_again_after_it_was_well(
    store: Store, receiver: FaultServer, hook: Webhook, monkeypatch: pytest.MonkeyPatch
):
    later = Later(monkeypatch)
    retrain(store, 1)
    told = alert(store, hook, "stale", max_age=30)
    assert sent(store, told) == (0, None)
    later(timedelta(days=31).total_seconds())
    assert sent(store, told) == (1, None)
    later(timedelta(days=31).total_seconds())
    assert sent(store, told) == (0, None)
    (body,) = bodies(receiver)
    assert body["title"] == "tiny: no successful run for too long"
    assert body["sentence"] == "the last successful run was 31 days ago; expected one at least every 30 days"
    retrain(store, 2)
    assert sent(store, told) == (1, None), "the clock of this test is two months ahead"


def test_a_run_that_no_worker_takes_is_told_once(
    store: Store, receiver: FaultServer, hook: Webhook, monkeypatch: pytest.MonkeyPatch
):
    later = Later(monkeypatch)
    due = later.now
    told = alert(store, hook, "stale")
    later(3500)
    assert sent(store, told, due=due) == (0, None)
    later(100)
    assert sent(store, told, due=due) == (1, None)
    later(timedelta(days=20).total_seconds())
    assert sent(store, told, due=due) == (0, None)
    assert "has not started: no worker has taken it; start one: " in bodies(receiver)[0]["sentence"]
    assert sent(store, told, due=later.now - timedelta(hours=2)) == (1, None)


def mail_to(server: MailServer, monkeypatch: pytest.MonkeyPatch, security: str = "none", *to: str) -> Receiver:
    monkeypatch.setenv("MAIL_PASSWORD", PASSWORD)
    login = (USER, "MAIL_PASSWORD") if server.password else None
    return email(to or ("ops@example.org",), "idxflow@example.org", server.address, security, login)


def test_a_mail_has_subject_and_text_in_any_script_and_no_header_of_a_stranger(monkeypatch: pytest.MonkeyPatch):
    hostile = example(
        dataset="tiny\r\nBcc: thief@example.org\r\n\r\nhello", sentence="promoted v2: größer, 好\n.\nQUIT"
    )
    with MailServer() as server:
        mail_to(server, monkeypatch).send(hostile, SECONDS)
        (message,) = server.messages
        assert server.recipients == [["ops@example.org"]]
    assert message["Subject"] == "idxflow: tiny Bcc: thief@example.org hello: new champion v2"
    assert message["Bcc"] is None
    assert (message["To"], message["From"]) == ("ops@example.org", "idxflow@example.org")
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content().splitlines()[1] == "promoted v2: größer, 好 . QUIT"
    # The same event again is the same message, for programs that show such once.
    with MailServer() as server:
        mail_to(server, monkeypatch).send(hostile, SECONDS)
        assert server.messages[0]["Message-ID"] == message["Message-ID"]


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_password_goes_only_over_an_encrypted_connection_to_a_server_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, security: str
):
    trusted = authority(tmp_path / "trusted")
    with MailServer(**{security: trusted.server()}, password=PASSWORD) as server:
        mail = mail_to(server, monkeypatch, security)
        with pytest.raises(NotDelivered, match=f"the certificate of {server.address} is not trusted"):
            mail.send(example(), SECONDS)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted.file))
        mail.send(example(), SECONDS)
        assert len(server.messages) == 1
        monkeypatch.setenv("MAIL_PASSWORD", f"{PASSWORD}-of-yesterday")
        with pytest.raises(NotDelivered) as raised:
            mail.send(example(), SECONDS)
    assert str(raised.value) == f"{server.address} answered 535"


def test_without_encryption_nothing_is_sent_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch):
    with MailServer() as server:
        with pytest.raises(NotDelivered, match="does not offer what is needed: STARTTLS"):
            mail_to(server, monkeypatch, "starttls").send(example(), SECONDS)
        assert server.messages == []


def test_an_address_that_is_refused_keeps_the_message_from_nobody_else(store: Store, monkeypatch: pytest.MonkeyPatch):
    retrain(store, 1)
    with MailServer(refused=("gone@example.org",)) as server:
        told = alert(store, mail_to(server, monkeypatch, "none", "gone@example.org", "ops@example.org"))
        assert sent(store, told) == (1, None)
        # Nobody gets it twice.
        assert sent(store, told) == (0, None)
        assert server.recipients == [["ops@example.org"]]
        problem = f"{server.address} refused gone@example.org (550)"
        assert Progress(delivery.progress_path(told)).trouble == problem
        with pytest.raises(NotDelivered, match=re.escape(problem)):
            mail_to(server, monkeypatch, "none", "gone@example.org").send(example(), SECONDS)


def test_a_mail_server_that_is_silent_or_gone_is_named(monkeypatch: pytest.MonkeyPatch):
    with FaultServer({}) as server, pytest.raises(NotDelivered, match="no answer within"):
        # It waits for a request of HTTP.
        email(("ops@example.org",), None, server.host, "none", None).send(example(), IMPATIENT)
    with pytest.raises(NotDelivered, match=r"no delivery by 127\.0\.0\.1:\d+ \(ConnectionRefusedError\)"):
        email(("ops@example.org",), None, server.host, "none", None).send(example(), SECONDS)


def script(text: str, *arguments: str) -> Program:
    return Program((sys.executable, "-I", "-S", "-c", text, *arguments))


def test_a_command_gets_the_event_and_no_shell_reads_it(tmp_path: Path):
    place = tmp_path / "got"
    hostile = example(sentence='promoted v2: "; touch /tmp/x; $(id) `id`')
    text = "import json, os, sys\njson.dump([json.load(sys.stdin), dict(os.environ)], open(sys.argv[1], 'w'))"
    script(text, str(place)).send(hostile, SECONDS)
    values, environment = json.loads(place.read_text())
    assert values == hostile.to_json()
    assert environment["IDXFLOW_ALERT_EVENT"] == "promoted"
    assert environment["IDXFLOW_ALERT_DATASET"] == "tiny"
    assert environment["IDXFLOW_ALERT_TEXT"] == hostile.text


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((sys.executable, "-I", "-S", "-c", "raise SystemExit(3)"), f"{sys.executable} ended with the exit code 3"),
        (("/nowhere/page",), "cannot start /nowhere/page: No such file or directory"),
    ],
)
def test_a_command_that_fails_is_named(words: tuple[str, ...], problem: str):
    with pytest.raises(NotDelivered) as raised:
        Program(words).send(example(), SECONDS)
    assert str(raised.value) == problem


def test_a_command_that_does_not_end_is_killed_with_what_it_started(tmp_path: Path):
    # The child holds a pipe open as long as it lives.
    pipe = tmp_path / "pipe"
    text = f"import os, time\nos.fork()\nos.open({str(pipe)!r}, os.O_WRONLY)\ntime.sleep(600)"
    os.mkfifo(pipe)
    ends = threading.Event()

    def read() -> None:
        with pipe.open("rb") as stream:
            stream.read()
        ends.set()

    threading.Thread(target=read, daemon=True).start()
    with pytest.raises(NotDelivered, match="has not ended within 1 s, and was killed"):
        script(text).send(example(), 1)
    assert ends.wait(240)


def test_two_processes_that_send_at_once_send_each_event_once(store: Store, receiver: FaultServer, hook: Webhook):
    retrain(store, 1)
    ended(store, "failed")
    told = alert(store, hook)
    threads = [threading.Thread(target=sent, args=(store, told)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [body["event"] for body in bodies(receiver)] == ["promoted", "failed"]


def test_an_attempt_that_did_not_end_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Killed(BaseException):
        pass

    class Receiver(Webhook):
        def send(self, event: Event, seconds: float) -> str:
            super().send(event, seconds)
            raise Killed

    later = Later(monkeypatch)
    retrain(store, 1)
    with FaultServer({"/hook": good(b"")}) as server:
        hook = hook_at(server, monkeypatch)
        with pytest.raises(Killed):
            sent(store, alert(store, Receiver("HOOK_URL")))
        trouble = Progress(delivery.progress_path(alert(store, hook))).trouble
        assert trouble == "1 message is not delivered: the attempt did not end; it will be tried again"
        later(WAITS[0])
        assert sent(store, alert(store, hook)) == (1, None)
        assert len({body["id"] for body in bodies(server)}) == 1


def test_alerts_that_cannot_be_read_or_noted_end_no_command(
    store: Store, hook: Webhook, home: Path, capsys: pytest.CaptureFixture[str]
):
    retrain(store, 1)
    tell(store.address, DATASET)
    assert capsys.readouterr().err == ""
    settings.add(Alert("hook", store.address, hook, LONG_AGO.isoformat()))
    (home / "idxflow" / "alerts").write_text("in the way")
    tell(store.address, DATASET)
    assert "idxflow: no alert was sent: " in capsys.readouterr().err
    (home / "idxflow" / "alerts.json").write_text("{}")
    tell(store.address, DATASET)
    assert "alerts.json: expected the alerts of idxflow; " in capsys.readouterr().err


def test_a_command_waits_only_so_long_for_a_receiver(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    retrain(store, 1)
    monkeypatch.setattr(delivery, "_PATIENCE_SECONDS", IMPATIENT)
    with FaultServer({"/hook": silent}) as server:
        settings.add(alert(store, hook_at(server, monkeypatch)))
        tell(store.address, DATASET)
    said = r"idxflow: alert hook: no answer within 0\.\d+ s; `idxflow alerts list` shows what becomes of it\n"
    assert re.fullmatch(said, capsys.readouterr().err)


def test_what_is_damaged_or_no_longer_true_is_left_out(store: Store):
    drifts = Drifts(store, DATASET)
    drifts.note(1, True, {"sentence": "the digits are thinner"})
    drifts.note(1, False, {})
    (store.dataset(DATASET) / "ledger" / "drifts" / "00000003.json").write_text("{}")
    assert [each.kind for each in History(store).found(DATASET, LONG_AGO)] == ["drifted"]
