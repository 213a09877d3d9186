"""`idxflow alerts`: tell somebody what happens to the data sets."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from flows.commands.options import AsJson, StoreFolder
from flows.terminal.output import print_json, print_line, print_table, remark
from flows.terminal.text import clock
from storage.errors import ConfigError
from storage.opening import open_store
from storage.words import counted, meant

if TYPE_CHECKING:
    from flows.alerts.receiver import Receiver
    from flows.alerts.settings import Alert

app = App(name="alerts", help="Tell somebody what happens: a chat, an address, a command.")

_SHOWN = 5
_OPTIONS = {
    "--url-from": ("slack", "webhook"),
    "--to": ("email",),
    "--sender": ("email",),
    "--smtp": ("email",),
    "--security": ("email",),
    "--user": ("email",),
    "--password-from": ("email",),
    "--run": ("command",),
}
"""The kinds of receivers that have each option."""


@app.command
def add(
    kind: Literal["slack", "webhook", "email", "command"],
    *,
    name: Annotated[str | None, Parameter(help="Name of the alert. Default: the kind of receiver.")] = None,
    url_from: Annotated[
        str | None,
        Parameter(
            help="For slack and webhook: the environment variable that holds the address, or `block:NAME` for a "
            "Prefect block of the type Secret."
        ),
    ] = None,
    to: Annotated[list[str] | None, Parameter(help="For email: an address. Can be repeated.", negative="")] = None,
    sender: Annotated[str | None, Parameter(help="For email: the sender's address. Default: the first --to.")] = None,
    smtp: Annotated[str | None, Parameter(help="For email: the server, such as `smtp.example.org:587`.")] = None,
    security: Annotated[
        Literal["starttls", "tls", "none"] | None,
        Parameter(help="For email: how the connection is encrypted. Default: `starttls`, which is required then."),
    ] = None,
    user: Annotated[str | None, Parameter(help="For email: the user, if the server wants a login.")] = None,
    password_from: Annotated[
        str | None, Parameter(help="For email: the variable or `block:NAME` that holds the password.")
    ] = None,
    run: Annotated[
        str | None,
        Parameter(
            help="For command: the program and its arguments. It gets the event as JSON on standard input.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    event: Annotated[
        list[str] | None,
        Parameter(
            help="Tell of this kind of event only. Can be repeated. Default: all but `kept`, `retired`.", negative=""
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None, Parameter(help="Tell of this data set only. Can be repeated.", negative="")
    ] = None,
    max_age: Annotated[
        float | None,
        Parameter(
            help="Days without a successful run after which a data set is stale. Default: 8.", validator=Number(gt=0)
        ),
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Have somebody told of what happens to the data sets of a store.

    Kinds of events: `promoted`, `kept`, `model-refused`, `data-refused`, `failed`, `crashed`, `forced`, `rolled-back`,
    `retired`, `stale`, `drifted`.

    An address with a token, or a password, is never given here: only the name of the environment variable or of the
    Prefect block that holds it. A running `idxflow up` sends the messages; a command that changes something sends its
    own, too. Alerts are kept for your user on this machine, not in the store. See docs/how-to/notifications.md.

    Examples: `idxflow alerts add slack --url-from IDXFLOW_SLACK_URL` ·
    `idxflow alerts add email --to ops@example.org --smtp mail.example.org --user me
    --password-from IDXFLOW_SMTP_PASSWORD` ·
    `idxflow alerts add command --run "/usr/local/bin/page --urgent" --event failed --event crashed`

    Args:
        kind: What takes the messages.
    """
    from flows.alerts import settings
    from flows.alerts.event import USUAL
    from flows.health import MAX_AGE_DAYS

    given = {
        "--url-from": url_from,
        "--to": to,
        "--sender": sender,
        "--smtp": smtp,
        "--security": security,
        "--user": user,
        "--password-from": password_from,
        "--run": run,
    }
    receiver = _receiver(kind, given)
    opened = open_store(store)
    alert = settings.Alert(
        name or kind,
        opened.address,
        receiver,
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        _kinds(event) or USUAL,
        tuple(dataset or ()),
        max_age or MAX_AGE_DAYS,
    )
    settings.add(alert)
    for missing in sorted({*alert.datasets} - {*opened.datasets()}):
        remark(f"the store has no data set {missing} yet; the alert tells of it once there is one")
    if as_json:
        return print_json({"name": alert.name, **alert.to_json()})
    print_line(f"added the alert {alert.name}: {_shown(alert)}")
    print_line(f"try it: {opened.command(f'alerts test {alert.name}')}")
    return 0


@app.command(name="list")
def list_(*, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """List alerts, what they sent last, and what was not delivered.

    Exit code 1 if messages of one of them could not be delivered.

    Examples: `idxflow alerts list` · `idxflow alerts list --json`
    """
    from flows.alerts import settings
    from flows.alerts.delivery import progress_path
    from flows.alerts.progress import Progress

    opened = open_store(store)
    found = settings.alerts(opened.address)
    progress = {alert.name: Progress(progress_path(alert)) for alert in found}
    failing = any(each.trouble for each in progress.values())
    if as_json:
        print_json(
            {
                "store": opened.address,
                "alerts": [
                    {
                        "name": alert.name,
                        **alert.to_json(),
                        "problem": progress[alert.name].trouble,
                        "messages": progress[alert.name].to_json(),
                    }
                    for alert in found
                ],
            }
        )
        return 1 if failing else 0
    for alert in found:
        print_line(f"{alert.name}: {_shown(alert)}")
        if trouble := progress[alert.name].trouble:
            print_line(f"  problem: {trouble}")
        print_table((f"  {clock(told.at)}  {told.state:7}", told.title) for told in progress[alert.name].newest(_SHOWN))
    if not found:
        print_line(f"no alerts for the store {opened.address}; `idxflow alerts add --help` shows how to add one")
    return 1 if failing else 0


@app.command
def remove(name: str, *, as_json: AsJson = False) -> int:
    """Remove an alert.

    Messages that it has not delivered are not sent any more.

    Example: `idxflow alerts remove slack`

    Args:
        name: Name of the alert, as `idxflow alerts list` prints it.
    """
    from flows.alerts import settings

    alert = settings.remove(name)
    if as_json:
        return print_json({"name": alert.name, **alert.to_json()})
    print_line(f"removed the alert {alert.name}")
    return 0


@app.command(name="test")
def try_(name: str | None = None, *, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Send a message that says that it is a test.

    Exit code 1 if it was not accepted. It uses the variables of this terminal; `idxflow up` uses those it was started
    with.

    Examples: `idxflow alerts test` · `idxflow alerts test slack`

    Args:
        name: Name of the alert. Default: each alert of the store.
    """
    from flows.alerts import settings
    from flows.alerts.delivery import send_test

    opened = open_store(store)
    found = settings.alerts(opened.address)
    chosen = [settings.named(name, found)] if name else found
    if not chosen:
        raise ConfigError(
            f"expected an alert of the store {opened.address}; there is none; add one first: "
            "`idxflow alerts add --help` has examples"
        )
    problems = {}
    for alert in chosen:
        problems[alert.name] = send_test(alert, opened)
        if not as_json:
            print_line(f"{alert.name}: {problems[alert.name] or f'accepted by {alert.receiver.shown}'}")
    if as_json:
        print_json({"alerts": [{"name": name, "problem": problem} for name, problem in problems.items()]})
    return 1 if any(problems.values()) else 0


@app.command
def send(*, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Send what has happened and was not told yet, and end.

    For a machine on which no `idxflow up` runs: call it from cron. It also tells of data sets that are stale. Exit code
    1 if something was not delivered; the next call tries it again, for some hours.

    Example: `idxflow alerts send`
    """
    from flows.alerts import settings
    from flows.alerts.delivery import SEND_SECONDS, deliver
    from flows.alerts.found import History
    from flows.endings import settle

    opened = open_store(store)
    settle(opened)
    history, names = History(opened), dict.fromkeys(opened.datasets())
    done = [deliver(alert, history, names, SEND_SECONDS) for alert in settings.alerts(opened.address)]
    if as_json:
        print_json({"alerts": [{"name": each.alert, "sent": each.sent, "problem": each.problem} for each in done]})
    else:
        for each in done:
            problem = f"; {each.problem}" if each.problem else ""
            print_line(f"{each.alert}: sent {counted(each.sent, 'message')}{problem}")
        if not done:
            remark(f"there is no alert for the store {opened.address}")
    return 1 if any(each.problem for each in done) else 0


def _receiver(kind: str, given: dict[str, Any]) -> Receiver:
    """Return the receiver with what was typed.

    Raises:
        ConfigError: an option is missing, belongs to another kind, or cannot be used.
    """
    from flows.alerts.mail import email
    from flows.alerts.program import program
    from flows.alerts.secret import checked
    from flows.alerts.webhook import Slack, Webhook

    for option, value in given.items():
        if value is not None and kind not in _OPTIONS[option]:
            raise ConfigError(
                f"expected {option} only for {' and '.join(_OPTIONS[option])}; found it for {kind}; leave it out"
            )
    if kind == "email":
        _check_given(kind, given, ("--to", "--smtp"))
        if (given["--user"] is None) != (given["--password-from"] is None):
            raise ConfigError(
                "expected both --user and --password-from, or none of them; found one; give the other, too"
            )
        login = None
        if given["--user"] is not None:
            login = given["--user"], checked("--password-from", given["--password-from"])
        security = given["--security"] or "starttls"
        return email(tuple(given["--to"]), given["--sender"], given["--smtp"], security, login)
    if kind == "command":
        _check_given(kind, given, ("--run",))
        return program(given["--run"])
    _check_given(kind, given, ("--url-from",))
    reference = checked("--url-from", given["--url-from"])
    return Slack(reference) if kind == "slack" else Webhook(reference)


def _check_given(kind: str, given: dict[str, Any], needed: Iterable[str]) -> None:
    missing = [option for option in needed if not given[option]]
    if missing:
        raise ConfigError(
            f"expected {' and '.join(needed)} for {kind}; found no {missing[0]}; `idxflow alerts add --help` has "
            "examples"
        )


def _kinds(words: list[str] | None) -> tuple[str, ...]:
    from flows.alerts.event import TEST, TITLES

    known = [kind for kind in TITLES if kind != TEST]
    for word in words or ():
        if word not in known:
            raise ConfigError(
                f"expected --event to be one of {', '.join(known)}; found {word[:80]!r}{meant(word, known)}; correct it"
            )
    return tuple(dict.fromkeys(words or ()))


def _shown(alert: Alert) -> str:
    about = f"; only of {', '.join(alert.datasets)}" if alert.datasets else ""
    return f"{alert.receiver.kind}, {alert.receiver.shown}; tells of {', '.join(alert.events)}{about}"
