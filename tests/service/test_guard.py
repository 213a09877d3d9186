"""What the guard of a Prefect server lets through, by every spelling; and links that let a browser in once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.commands.up import up
from flows.service import entry, server
from flows.service.application import AUTH
from flows.service.guard import Guard, Rules
from storage.errors import ConfigError

OWN = "127.0.0.1:4200"
JSON = "application/json"


class Exchange:
    """One request to a guarded application, and what came of it. The application answers 200 and reads nothing."""

    def __init__(
        self, headers: Mapping[str, str] | list[tuple[str, str]], rules: Rules | None = None, **scope: Any
    ) -> None:
        pairs = list(headers.items()) if isinstance(headers, Mapping) else headers
        raw = [(name.encode(), value.encode()) for name, value in pairs]
        self.scope = {"type": "http", "method": "GET", "path": "/api/flows/filter", "headers": raw, **scope}
        self.sent: list[dict[str, Any]] = []
        self.reached = False
        asyncio.run(Guard(self._inner, rules or Rules(), {})(self.scope, self._receive, self._send))

    async def _inner(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached = True
        headers = [(b"content-type", b"text/plain"), (b"Access-Control-Allow-Origin", b"*")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self.sent[0]["headers"]}


@pytest.mark.parametrize(
    "host", [OWN, "127.0.0.1", "localhost", "LocalHost:8080", "[::1]:4200", "[::1]", "127.0.0.1:80"]
)
def test_this_machine_s_names_are_taken_with_any_port(host: str):
    # The port may be another one, as through a tunnel; that of another machine is none.
    assert Exchange({"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:4200", "localhost.evil.example", "localhost.", "127.0.0.1.evil.example",
        "evil.example@127.0.0.1", "127.0.0.1@evil.example", "127.0.0.1:4200:1", "127.0.0.1:", "127.0.0.1:x",
        "127.0.0.1/", "127.0.0.1 evil.example", "::1", "[::1", "[::1]evil", "0.0.0.0", "0.0.0.0:4200", "[::]",
        "127.1", "2130706433", "0x7f.1", "127.0.0.2", "[::ffff:127.0.0.1]", "a.localhost", "192.168.1.5", "", "é",
    ],
)  # fmt: skip
def test_another_name_is_no_name_of_this_server(host: str):
    exchange = Exchange({"Host": host})
    assert (exchange.status, exchange.reached) == (421, False)
    assert "expected a Host that is a name of this server" in json.loads(exchange.sent[1]["body"])["detail"]


def test_a_host_that_is_missing_or_comes_twice_is_refused():
    assert Exchange({}).status == 421
    assert Exchange([("Host", OWN), ("Host", OWN)]).status == 421
    assert Exchange([("Host", OWN), ("host", "evil.example")]).status == 421


def test_names_that_the_user_adds_are_taken_and_their_pages_are_own_ones():
    rules = Rules.listening("127.0.0.1", ["Prefect.example.org", "other.example:8443"])
    for host in ("prefect.example.org", "prefect.EXAMPLE.org:443", "other.example"):
        assert Exchange({"Host": host}, rules).status == 200
    # A proxy may say its own name, or that of the server behind it.
    for host in ("prefect.example.org", OWN):
        assert Exchange({"Host": host, "Origin": "https://prefect.example.org"}, rules).status == 200
    assert Exchange({"Host": OWN, "Origin": "https://other.example:8443"}, rules).status == 200
    for origin in ("https://other.example", "https://prefect.example.org:1", "https://x.prefect.example.org"):
        assert Exchange({"Host": OWN, "Origin": origin}, rules).status == 403


def test_an_open_address_is_reached_by_every_address_and_by_the_machine_s_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Box")
    for host in ("0.0.0.0", "::"):
        rules = Rules.listening(host)
        accepted = ("192.168.1.5:4200", "[2001:db8::1]:4200", "box:4200", "localhost")
        assert [Exchange({"Host": name}, rules).status for name in accepted] == [200] * 4
        # These may be made to lead here by their owner.
        refused = ("evil.example", "0.0.0.0", "[::]", "box.evil.example")
        assert [Exchange({"Host": name}, rules).status for name in refused] == [421] * 4
    assert Exchange({"Host": "192.168.1.5:4200"}, Rules.listening("192.168.1.5")).status == 200
    assert Exchange({"Host": "192.168.1.6:4200"}, Rules.listening("192.168.1.5")).status == 421


@pytest.mark.parametrize("names", [["http://prefect.example.org"], ["a/b"], [""], ["a b"], ["*"]])
def test_a_name_that_is_none_is_refused(names: list[str]):
    with pytest.raises(ConfigError, match="expected --allow-host to be a name"):
        server.checked_names(names)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "X"])
@pytest.mark.parametrize(
    "origin",
    [
        "null", "http://evil.example", "http://127.0.0.1:8000", "http://127.0.0.1", "http://localhost:4200",
        "https://127.0.0.1:42000", "file://", "", "http://127.0.0.1:4200.evil.example", "127.0.0.1:4200",
        "chrome-extension://127.0.0.1:4200", "http://127.0.0.1:4200, http://evil.example", "http://evil@127.0.0.1:4200",
    ],
)  # fmt: skip
def test_a_page_of_another_origin_is_refused_whatever_it_asks(method: str, origin: str):
    exchange = Exchange({"Host": OWN, "Origin": origin, "Content-Type": JSON, "Content-Length": "2"}, method=method)
    assert (exchange.status, exchange.reached) == (403, False)


def test_an_own_page_is_let_through():
    for host, origin in ((OWN, f"http://{OWN}"), ("LOCALHOST", "http://localhost"), ("[::1]:1", "http://[::1]:1")):
        assert Exchange({"Host": host, "Origin": origin, "Sec-Fetch-Site": "same-origin"}).status == 200
    assert Exchange({"Host": "localhost:80", "Origin": "http://localhost"}).status == 200
    assert Exchange({"Host": "localhost:443", "Origin": "https://localhost"}).status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "CROSS-SITE", "other"])
def test_a_request_of_another_site_s_page_is_refused_and_a_link_may_be_opened(site: str):
    own = {"Host": OWN, "Sec-Fetch-Site": site}
    link = {**own, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert Exchange(link).status == 200
    assert Exchange(own).status == 403
    assert Exchange({**own, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}).status == 403
    assert Exchange({**link, "Sec-Fetch-Dest": "iframe"}).status == 403
    assert Exchange({**link, "Content-Type": JSON, "Content-Length": "2"}, method="POST").status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET"])
@pytest.mark.parametrize(
    "kind",
    [
        "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonx",
        "text/json", "text/plain; application/json", "json", None,
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [{"Content-Length": "2"}, {"Transfer-Encoding": "chunked"}])
def test_a_body_that_is_not_said_to_be_json_is_refused(method: str, kind: str | None, length: dict[str, str]):
    headers = {"Host": OWN, **length, **({} if kind is None else {"Content-Type": kind})}
    exchange = Exchange(headers, method=method)
    assert (exchange.status, exchange.reached) == (415, False)


def test_json_is_let_through_and_so_is_a_request_without_a_body():
    for kind in (JSON, "Application/JSON", f"{JSON}; charset=utf-8", f"{JSON} ;x"):
        assert Exchange({"Host": OWN, "Content-Type": kind, "Content-Length": "2"}, method="POST").status == 200
    assert Exchange({"Host": OWN, "Content-Length": "0"}, method="POST").status == 200
    assert Exchange({"Host": OWN}, method="DELETE").status == 200
    twice = [("Host", OWN), ("Content-Type", JSON), ("Content-Type", "text/plain"), ("Content-Length", "2")]
    assert Exchange(twice, method="POST").status == 415


def test_a_websocket_of_another_page_is_closed_before_it_is_open():
    for headers in ({"Host": OWN, "Origin": "http://evil.example"}, {"Host": "evil.example"}):
        exchange = Exchange(headers, type="websocket", path="/api/events/in")
        assert [message["type"] for message in exchange.sent] == ["websocket.close"]
        assert not exchange.reached
    assert Exchange({"Host": OWN, "Origin": f"http://{OWN}"}, type="websocket").reached
    assert Exchange({"Host": OWN}, type="websocket").reached


def test_the_schema_is_not_shown_beside_the_api():
    for path in ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"):
        assert Exchange({"Host": OWN}, path=path).status == 404


def test_every_answer_keeps_its_page_to_itself():
    for exchange in (
        Exchange({"Host": OWN}),
        Exchange({"Host": OWN, "Origin": "null"}),
        Exchange({"Host": "evil.example"}),
    ):
        policy = dict(part.split(" ", 1) for part in exchange.headers["content-security-policy"].split("; "))
        assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
        assert not re.search(r"https?:|\*", exchange.headers["content-security-policy"])
        assert exchange.headers["x-frame-options"] == "DENY"
        assert exchange.headers["referrer-policy"] == "no-referrer"
        assert exchange.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in exchange.headers
    assert "evil" not in Exchange({"Host": "evil.example; script-src *"}).headers["content-security-policy"]


def enter(folder: Path, body: bytes) -> tuple[int, dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(entry.entrance(folder, "me:secret")({"type": "http", "method": "POST"}, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_link_lets_one_browser_in_once(tmp_path: Path):
    folder = tmp_path / "links"
    token = entry.link(folder, "http://localhost:4200").removeprefix("http://localhost:4200/enter#")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == [hashlib.sha256(token.encode()).hexdigest()]
    body = json.dumps({"token": token}).encode()
    assert enter(folder, body) == (200, {"auth_string": "me:secret"})
    status, answer = enter(folder, body)
    assert status == 403
    assert "This link was used before" in answer["detail"]


def test_of_many_that_use_a_link_at_once_one_is_let_in(tmp_path: Path):
    token = entry.link(tmp_path, "").removeprefix("/enter#")
    let_in: list[bool] = []
    together = threading.Barrier(8)

    def use() -> None:
        together.wait()
        let_in.append(entry.use(tmp_path, token))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(let_in) == [False] * 7 + [True]


def test_a_link_is_too_old_after_a_quarter_of_an_hour_and_then_forgotten(tmp_path: Path):
    created = 1_000_000.0
    tokens = [entry.link(tmp_path, "", lambda: created).removeprefix("/enter#") for _ in range(2)]
    assert entry.use(tmp_path, tokens[0], lambda: created + 899)
    assert not entry.use(tmp_path, tokens[1], lambda: created + 901)
    entry.link(tmp_path, "", lambda: created)
    entry.link(tmp_path, "", lambda: created + 2000)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"null", b'{"token": null}', b'{"token": 1}', b'{"token": ""}', b'{"token": "../auth-string"}',
     b'{"token": "\\ud800"}', b"\xff", b"{" * 5000],
)  # fmt: skip
def test_what_is_no_token_lets_nobody_in(tmp_path: Path, body: bytes):
    (tmp_path / "auth-string").write_text("9999999999")
    assert enter(tmp_path / "links", body)[0] == 403


def test_the_page_of_a_link_runs_its_own_script_and_nothing_else():
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(entry.entrance(Path("links"), "me:secret")({"type": "http", "method": "GET"}, None, send))
    page = sent[1]["body"].decode()
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    policy = dict(sent[0]["headers"])[b"content-security-policy"].decode()
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert "unsafe" not in policy
    assert "secret" not in page


def test_who_listens_is_told_by_the_system(tmp_path: Path):
    """The kept auth string is told to nobody but this user and root, where the kernel says who listens."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        where = server.address("127.0.0.1", own.getsockname()[1], None)
        assert server.is_ours(where, tmp_path)


def test_what_options_open_is_printed_and_a_secret_that_contradicts_them_is_refused(monkeypatch: pytest.MonkeyPatch):
    assert list(server.opened(auth=True, csrf=True)) == []
    assert [line.split(":")[0] for line in server.opened(auth=False, csrf=False)] == ["--no-auth", "--no-csrf"]
    monkeypatch.setenv(AUTH, "me:secret")
    with pytest.raises(ConfigError, match=f"expected no --no-auth if {AUTH} is set"):
        up(auth=False)


@pytest.mark.parametrize("auth_string", ["secret", "me:söcret"])
def test_an_auth_string_that_prefect_cannot_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auth_string: str
):
    monkeypatch.setenv(AUTH, auth_string)
    with pytest.raises(ConfigError, match="of the form user:password, found") as refused:
        server.auth_string(tmp_path)
    assert auth_string not in str(refused.value)


def test_the_line_that_logs_in_says_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(AUTH, raising=False)
    folder = tmp_path / "a 'home'"
    folder.mkdir()
    auth_string = server.auth_string(folder)
    assert (folder / "auth-string").stat().st_mode & 0o777 == 0o600
    for variable in (None, AUTH, server.CLIENT_AUTH):
        if variable:
            monkeypatch.setenv(variable, auth_string)
        line = server.login(auth_string, folder)
        assert line is not None
        assert auth_string not in line
        process = subprocess.run(
            ["bash", "-euc", f'{line}; printf %s "${server.CLIENT_AUTH}"'], capture_output=True, text=True, check=True
        )
        assert process.stdout == auth_string
