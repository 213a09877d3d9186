"""Send OpenLineage events to a server, one after the other, or write them as JSON Lines."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flows.alerts.receiver import NotDelivered, within
from storage.errors import ConfigError, SharingFailed

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent
    from openlineage.client.transport.http import HttpTransport

KEY_VARIABLE = "OPENLINEAGE_API_KEY"
"""The variable of the client library that has the key of a server."""
SECONDS = 15.0
"""How long one event may take, whatever the server does."""
_READ_SECONDS = 5.0
_TRIES = 2
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Server:
    """A server that takes OpenLineage events at `api/v1/lineage` below an address."""

    url: str

    def send(self, events: Sequence[RunEvent], advance: Callable[[int], None]) -> None:
        """Send events in their order, up to the first that the server does not take.

        Args:
            advance: called with how many it has taken.

        Raises:
            SharingFailed: it cannot be reached, or did not take one.
        """
        transport = _transport(self.url)
        try:
            for number, event in enumerate(events):
                advance(number)
                self._send(transport, event, number, len(events))
        finally:
            transport.close()

    def _send(self, transport: HttpTransport, event: RunEvent, number: int, of: int) -> None:
        def post() -> None:
            status = _status(transport, event)
            if not 200 <= status < 300:
                raise NotDelivered(f"it answered {status}{_MEANINGS.get(status, '')}")

        try:
            within(SECONDS, post)
        except NotDelivered as error:
            raise SharingFailed(
                f"expected {self.url} to take {of:,} OpenLineage events; {error} after {number:,}; give the address of "
                f"a server that takes them at api/v1/lineage, and its key, if it needs one, in {KEY_VARIABLE}; what "
                "was sent can be sent again"
            ) from None


_MEANINGS = {
    301: ", a redirect, which is not followed",
    302: ", a redirect, which is not followed",
    307: ", a redirect, which is not followed",
    308: ", a redirect, which is not followed",
    401: " (no or a wrong key)",
    403: " (not allowed)",
    404: " (no such place)",
}


def is_server(place: str) -> bool:
    """Return whether this is meant as an address, not as a path."""
    return _ADDRESS.match(place) is not None


def server(place: str) -> Server:
    """Return the server at an address.

    Raises:
        ConfigError: it is not an http(s) address, may hold a secret, or would be sent a key that anyone can read.
    """
    # It takes a moment to import.
    from tasks.sources.download import redacted
    from tasks.sources.proxies import LOOPBACK

    try:
        parts = urlsplit(place)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_http = False
    if not is_http or not place.isprintable():
        raise ConfigError(
            "expected --openlineage to be a file or an http(s) address, such as http://localhost:5000; found "
            f"{redacted(place)!r}; give one of these"
        )
    if re.search(r"[@?#]", place):
        raise ConfigError(
            "expected --openlineage to be an address without user, password, query and fragment (no @, ? or #), "
            f"because others can see the command line; found one of them after {redacted(place)}; put the key of the "
            f"server into {KEY_VARIABLE}"
        )
    if os.environ.get(KEY_VARIABLE) and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ConfigError(
            f"expected an https:// address for --openlineage, because {KEY_VARIABLE} is set and its value would be "
            f"sent unencrypted; found {place}; give an https:// address, or unset the variable"
        )
    return Server(place)


def lines(events: Sequence[RunEvent]) -> bytes:
    """Return events as JSON Lines."""
    from openlineage.client.serde import Serde

    return "".join(f"{Serde.to_json(event)}\n" for event in events).encode()


def _transport(url: str) -> HttpTransport:
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider
    from requests import Session

    class OneAnswer(Session):
        """Reads no more of an answer than its head, and follows no redirect."""

        def get_redirect_target(self, resp: Any) -> None:
            return None

    session = OneAnswer()
    session.stream = True
    # Otherwise it takes a password from ~/.netrc, in place of the key.
    session.auth = lambda request: request
    key = os.environ.get(KEY_VARIABLE, "").strip()
    retry = {"total": _TRIES, "backoff_factor": 0.3, "status_forcelist": [502, 503, 504], "allowed_methods": ["POST"]}
    return HttpTransport(
        HttpConfig(
            # The library replaces what follows the last slash.
            url=f"{url.rstrip('/')}/",
            timeout=_READ_SECONDS,
            auth=ApiKeyTokenProvider({"api_key": key}) if key else TokenProvider({}),
            session=session,
            retry={**retry, "raise_on_status": False, "respect_retry_after_header": False},
        )
    )


def _status(transport: HttpTransport, event: RunEvent) -> int:
    """Send an event; return the status of the answer, whose text is not read."""
    import requests

    try:
        return int(transport.emit(event).status_code)
    except requests.HTTPError as error:
        return int(error.response.status_code) if error.response is not None else 0
    except (requests.RequestException, OSError, ValueError) as error:
        # The error can name a proxy with its password.
        raise NotDelivered(_why(error)) from None


def _why(error: Exception) -> str:
    import requests

    kinds: tuple[tuple[type[Exception], str], ...] = (
        (requests.exceptions.SSLError, "its certificate is not trusted, or it does not speak TLS"),
        (requests.exceptions.ProxyError, "the proxy could not be used"),
        (requests.exceptions.ConnectTimeout, "there was no connection in time"),
        (requests.exceptions.Timeout, "there was no answer in time"),
        (requests.exceptions.ConnectionError, "there was no connection"),
    )
    return next((words for kind, words in kinds if isinstance(error, kind)), "the request failed")
