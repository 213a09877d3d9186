"""Who may use a site: those who know its token, if it has one."""

from __future__ import annotations

import base64
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable

from flows.service.guard import Application, Headers, Message, Receive, Send, answer

OPEN = ("/healthz",)
"""What needs no token, because probes of a cluster have none. Without it, they tell only whether all is well."""
TRUSTED = "idxflow.trusted"
"""Key of an ASGI scope: whether the request has the token, if one is needed."""
_SENTENCE = (
    "expected the token of this server, as `Authorization: Bearer TOKEN`, or as the password that a browser asks for; "
    "found {}; take it from who has started the server"
)


class Token:
    """The application `inner` for requests that have the token; None: for all."""

    def __init__(self, app: Application, token: str | None) -> None:
        self._inner, self._token = app, token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._inner(scope, receive, send)
        given = secret_of(Headers(scope["headers"]).only("authorization"))
        scope[TRUSTED] = self._token is None or (
            given is not None and hmac.compare_digest(given.encode(), self._token.encode())
        )
        if scope[TRUSTED] or scope["path"] in OPEN:
            return await self._inner(scope, receive, send)
        sentence = _SENTENCE.format("none" if given is None else "another one")
        # A browser asks for user and password; the user does not matter.
        return await answer(send, 401, {"error": sentence}, [(b"www-authenticate", b'Basic realm="idxflow"')])


class Pace:
    """The application `app` for as many requests a second from one address as are allowed.

    Each address has a bucket of one second's requests, which fills again at that pace (a token bucket).
    """

    def __init__(
        self, app: Application, per_second: float, clock: Callable[[], float] = time.monotonic, most: int = 10_000
    ) -> None:
        self._inner, self._pace, self._clock, self._most = app, per_second, clock, most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What is left for an address, and since when; the one that has been quiet for longest first."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._takes((scope.get("client") or ("",))[0]):
            return await self._inner(scope, receive, send)
        sentence = (
            f"expected at most {self._pace:g} requests a second from one address; found more; wait a second, and send "
            "several images in one request"
        )
        return await answer(send, 429, {"error": sentence}, [(b"retry-after", b"1")])

    def _takes(self, address: str) -> bool:
        now, full = self._clock(), max(1.0, self._pace)
        left, since = self._buckets.pop(address, (full, now))
        left = min(full, left + (now - since) * self._pace)
        self._buckets[address] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return left >= 1


def secret_of(header: str) -> str | None:
    """Return the token in an `Authorization` header: of `Bearer`, or the password of `Basic`; None if it has none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        # No base64, other than ASCII, or no UTF-8 in it.
        return None
