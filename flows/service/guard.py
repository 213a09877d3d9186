"""Who may speak to a Prefect server that idxflow starts: an ASGI application around Prefect's own.

Prefect asks for the auth string, and that is all: it answers any `Host`, takes a body without a type as JSON, and
leaves its pages free to load from anywhere. So a page in the browser of somebody who has the UI open could drive it.
Here each request is looked at before Prefect sees it, and refused with one sentence:

- 421 where `Host` is no name of this server: the page of another site made its own name lead here (DNS rebinding).
- 403 where `Origin` or `Sec-Fetch-Site` say that a page of another origin asks; opening a link is no such request.
- 415 where a body is not said to be JSON: that is all that a page may send elsewhere without being asked for leave.

Answers keep the pages to themselves: they load nothing from elsewhere, and no other page can frame them.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# Prefect: guard.
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")
_NAME = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
_SCHEMA = ("/docs", "/openapi.json", "/redoc")
"""Pages of Prefect's application that ask for no auth string. What they show is under `/api`, with one."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not passed on: an HTTP status and one sentence."""

    status: int
    sentence: str


@dataclass(frozen=True)
class Rules:
    """What a server takes. `names` are what its `Host` may be, `any_address` adds every IP address."""

    names: frozenset[str] = frozenset(LOOPBACK)
    any_address: bool = False
    origins: frozenset[str] = frozenset()
    """Names that the user added, with the port where there is one: how a proxy in front is called."""

    @classmethod
    def listening(cls, host: str, added: Iterable[str] = ()) -> Rules:
        """Return the rules of a server that listens on `host`, and is also called by the names in `added`."""
        every = host in ANY_ADDRESS
        own = {socket.gethostname().lower()} if every else {host.lower()}
        origins = frozenset(name.lower() for name in added)
        return cls(frozenset((*LOOPBACK, *own, *(split(name)[0] for name in origins))), every, origins)

    def refusal(self, scope: Message) -> Refusal | None:
        """Return why a request (ASGI scope `http` or `websocket`) is refused, or None."""
        headers = _Headers(scope["headers"])
        host = headers.only("host").lower()
        if not self._is_own(host):
            return Refusal(
                421,
                f"expected a Host that is a name of this server, found {host[:100]!r}; add a name with "
                "`idxflow up --allow-host NAME`",
            )
        if headers.has("origin") and not self._same_origin(headers.only("origin").lower(), host):
            return Refusal(403, f"expected no page of another origin, found {headers.only('origin')[:100]!r}")
        if headers.only("sec-fetch-site", "none") not in ("same-origin", "none") and not _opens_page(scope, headers):
            return Refusal(403, "expected no request from a page of another site")
        if headers.has_body() and headers.media_type() != "application/json":
            return Refusal(415, f"expected a body of type application/json, found {headers.media_type()[:100]!r}")
        if scope["path"].startswith(_SCHEMA):
            return Refusal(404, "expected a page of the UI; the schema is under /api")
        return None

    def _is_own(self, host: str) -> bool:
        name, valid = split(host)
        return valid and (name in self.names or (self.any_address and _is_address(name)))

    def _same_origin(self, origin: str, host: str) -> bool:
        scheme, _, rest = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme)
        if port is None:
            return False
        return rest in (host, host.removesuffix(f":{port}")) or rest in self.origins


class Guard:
    """The application: `inner` behind the rules, and pages of its own (by path) that `inner` never sees."""

    def __init__(self, inner: Application, rules: Rules, own: dict[str, Application]) -> None:
        self._inner, self._rules, self._own = inner, rules, own

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._inner(scope, receive, send)
        refusal = self._rules.refusal(scope)
        if refusal and scope["type"] == "websocket":
            # Before it is accepted, which the server answers with 403.
            return await send({"type": "websocket.close", "code": 1008, "reason": ""})
        closed = _closed(send, _Headers(scope["headers"]).only("host"))
        if refusal:
            return await answer(closed, refusal.status, {"detail": refusal.sentence})
        if scope["type"] == "websocket":
            return await self._inner(scope, receive, send)
        return await self._own.get(scope["path"], self._inner)(scope, receive, closed)


async def answer(send: Send, status: int, body: object) -> None:
    """Answer with JSON that nobody keeps."""
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def split(host: str) -> tuple[str, bool]:
    """Return the name of a lower-case `Host`, without port and brackets, and whether it has that form at all."""
    found = _NAME.fullmatch(host)
    return (found["name"].strip("[]"), True) if found else (host, False)


class _Headers:
    """The headers of a scope. One that comes twice is one with a value that nobody accepts."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._found: dict[str, list[str]] = {}
        for name, value in raw:
            self._found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())

    def has(self, name: str) -> bool:
        return name in self._found

    def only(self, name: str, otherwise: str = "") -> str:
        return ", ".join(self._found.get(name, [otherwise]))

    def media_type(self) -> str:
        return self.only("content-type").partition(";")[0].strip().lower()

    def has_body(self) -> bool:
        return self.has("transfer-encoding") or self.only("content-length", "0") != "0"


def _is_address(name: str) -> bool:
    try:
        return not ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False


def _opens_page(scope: Message, headers: _Headers) -> bool:
    """Return whether somebody follows a link to a page, which shows it to him and to nobody else."""
    opened = (headers.only("sec-fetch-mode"), headers.only("sec-fetch-dest")) == ("navigate", "document")
    return opened and scope["type"] == "http" and scope["method"] == "GET"


def _closed(send: Send, host: str) -> Send:
    """Return a `send` that adds the headers which keep pages to themselves, where the answer has none of its own."""
    sockets = f" ws://{host} wss://{host}" if split(host.lower())[1] else ""
    added = {
        # Prefect: outside-address. No page may ask an address outside, which the UI does whatever its settings say.
        # It paints graphs with a library that compiles its shaders, and styles elements one by one.
        b"content-security-policy": (
            "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
            f"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:{sockets}; "
            "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        ).encode(),
        b"x-frame-options": b"DENY",
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
        b"cross-origin-resource-policy": b"same-origin",
        b"cross-origin-opener-policy": b"same-origin",
    }

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            # Prefect lets every origin read one of its refusals.
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"access-control-allow-origin"]
            there = {name.lower() for name, _ in headers}
            message["headers"] = [*headers, *((name, value) for name, value in added.items() if name not in there)]
        await send(message)

    return sending
