"""Access control for a Prefect server that idxflow starts: an ASGI application around Prefect's own.

Prefect only checks the auth string: it answers any `Host`, accepts a body without a content type as JSON, and lets its
pages load from anywhere. So another page in the browser of a user who has the UI open could control it. Here each
request is checked before Prefect sees it, and refused with one sentence:

- 421 if `Host` is not a name of this server: another site's name may have been pointed here (DNS rebinding).
- 403 if `Origin` or `Sec-Fetch-Site` shows that a page of another origin sent it; opening a link is allowed.
- 415 if a body's content type is not JSON: a page can send other types to another origin without a CORS preflight.

Response headers isolate the pages: they load nothing from elsewhere, and no other page can frame them.
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
"""Pages of Prefect's application that require no auth string. Their content is under `/api`, which does."""


@dataclass(frozen=True)
class Refusal:
    """The reason for refusing a request: an HTTP status and one sentence."""

    status: int
    sentence: str


@dataclass(frozen=True)
class Rules:
    """The requests that a server accepts. `names` are valid values of `Host`; `any_address` adds all IP addresses."""

    names: frozenset[str] = frozenset(LOOPBACK)
    any_address: bool = False
    origins: frozenset[str] = frozenset()
    """Names that the user added, with the port if any, such as those of a proxy in front."""
    media_types: frozenset[str] = frozenset(("application/json",))
    """Content types of a body: none that a page can send to another origin without a CORS preflight."""
    closed: tuple[str, ...] = _SCHEMA
    """Beginnings of paths that are not there."""
    command: str = "idxflow up"
    """What starts the server, with `--allow-host`."""

    @classmethod
    def listening(cls, host: str, added: Iterable[str] = ()) -> Rules:
        """Return the rules of a server that listens on `host` and also has the names in `added`."""
        every = host in ANY_ADDRESS
        own = {socket.gethostname().lower()} if every else {host.lower()}
        origins = frozenset(name.lower() for name in added)
        return cls(frozenset((*LOOPBACK, *own, *(split(name)[0] for name in origins))), every, origins)

    def refusal(self, scope: Message) -> Refusal | None:
        """Return why a request (ASGI scope `http` or `websocket`) is refused, or None."""
        headers = Headers(scope["headers"])
        host = headers.only("host").lower()
        if not self._is_own(host):
            return Refusal(
                421,
                f"expected a Host that is a name of this server, found {host[:100]!r}; add a name with "
                f"`{self.command} --allow-host NAME`",
            )
        if headers.has("origin") and not self._same_origin(headers.only("origin").lower(), host):
            return Refusal(403, f"expected no request from another origin, found {headers.only('origin')[:100]!r}")
        if headers.only("sec-fetch-site", "none") not in ("same-origin", "none") and not _opens_page(scope, headers):
            return Refusal(403, "expected no request from a page of another site")
        if headers.has_body() and headers.media_type() not in self.media_types:
            types = " or ".join(sorted(self.media_types))
            return Refusal(
                415,
                f"expected a body of type {types}; found {headers.media_type()[:100]!r}; name its type in Content-Type",
            )
        if self.closed and scope["path"].startswith(self.closed):
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
    """The application: `inner` behind the rules, and its own pages (by path), which never reach `inner`.

    A refusal is JSON: an object with the sentence under `key`. `policy` is the Content-Security-Policy; None: that of
    Prefect's pages.
    """

    def __init__(
        self,
        app: Application,
        rules: Rules,
        own: dict[str, Application],
        key: str = "detail",
        policy: str | None = None,
    ) -> None:
        self._inner, self._rules, self._own, self._key, self._policy = app, rules, own, key, policy

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._inner(scope, receive, send)
        refusal = self._rules.refusal(scope)
        if refusal and scope["type"] == "websocket":
            # Closing before accepting makes the server answer with 403.
            return await send({"type": "websocket.close", "code": 1008, "reason": ""})
        closed = _closed(send, self._policy or _prefect_policy(Headers(scope["headers"]).only("host")))
        if refusal:
            return await answer(closed, refusal.status, {self._key: refusal.sentence})
        if scope["type"] == "websocket":
            return await self._inner(scope, receive, send)
        return await self._own.get(scope["path"], self._inner)(scope, receive, closed)


async def answer(send: Send, status: int, body: object, added: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Send a JSON response that must not be cached, with the headers in `added`."""
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *added]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def split(host: str) -> tuple[str, bool]:
    """Return the name in a lower-case `Host`, without port and brackets, and whether `Host` is well-formed."""
    match = _NAME.fullmatch(host)
    return (match["name"].strip("[]"), True) if match else (host, False)


class Headers:
    """The headers of a scope. A repeated header gets a value that nothing accepts."""

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


def _opens_page(scope: Message, headers: Headers) -> bool:
    """Return whether the request opens a link to a page, whose content only the user sees, not the linking page."""
    opened = (headers.only("sec-fetch-mode"), headers.only("sec-fetch-dest")) == ("navigate", "document")
    return opened and scope["type"] == "http" and scope["method"] == "GET"


def _prefect_policy(host: str) -> str:
    sockets = f" ws://{host} wss://{host}" if split(host.lower())[1] else ""
    # Prefect: outside-address. No page may contact outside hosts, which the UI does regardless of its settings.
    # The UI draws graphs with a library that compiles its shaders, and sets inline styles.
    return (
        "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:{sockets}; "
        "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def _closed(send: Send, policy: str) -> Send:
    """Return a `send` that adds the headers that isolate pages, unless the response already has them."""
    added = {
        b"content-security-policy": policy.encode(),
        b"x-frame-options": b"DENY",
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
        b"cross-origin-resource-policy": b"same-origin",
        b"cross-origin-opener-policy": b"same-origin",
    }

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            # Prefect lets any origin read one of its error responses.
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"access-control-allow-origin"]
            present = {name.lower() for name, _ in headers}
            message["headers"] = [*headers, *((name, value) for name, value in added.items() if name not in present)]
        await send(message)

    return sending
