"""Alerts by HTTP: a webhook gets the event as JSON, a chat such as Slack's its text."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from flows.alerts.event import Event
from flows.alerts.receiver import NotDelivered, within
from flows.alerts.secret import secret

SECONDS = 15.0
"""How long one message may take."""
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Webhook:
    """An address that takes the event as JSON by POST."""

    url_from: str
    """The name of the secret that is the address."""
    kind: ClassVar[str] = "webhook"

    @property
    def shown(self) -> str:
        return f"the address in {self.url_from}"

    def send(self, event: Event, seconds: float) -> str:
        return _post(self.url_from, event.to_json(), seconds)

    def to_json(self) -> Mapping[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Slack:
    """An incoming webhook of Slack, or of what takes the same, such as Mattermost."""

    url_from: str
    """The name of the secret that is the address."""
    kind: ClassVar[str] = "slack"

    @property
    def shown(self) -> str:
        return f"the address in {self.url_from}"

    def send(self, event: Event, seconds: float) -> str:
        return _post(self.url_from, {"text": _escaped(event.text)}, seconds)

    def to_json(self) -> Mapping[str, Any]:
        return asdict(self)


def _escaped(text: str) -> str:
    """Return text that is shown as it is: https://docs.slack.dev/messaging/formatting-message-text, "Escaping text"."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _post(url_from: str, values: Mapping[str, Any], seconds: float) -> str:
    url = secret(url_from)
    host = _host(url, url_from)
    status = 0

    def post() -> None:
        nonlocal status
        status = _status(url, host, values)

    within(min(seconds, SECONDS), post)
    if 300 <= status < 400:
        raise NotDelivered(
            f"{host} answered {status}, a redirect, which is not followed; put the final address into {url_from}"
        )
    if not 200 <= status < 300:
        raise NotDelivered(f"{host} answered {status}")
    return ""


def _status(url: str, host: str, values: Mapping[str, Any]) -> int:
    """Send a request; return the status of the answer, whose text is not read."""
    import httpx

    from tasks.sources.download import certificates, unlogged

    timeout = httpx.Timeout(SECONDS, connect=_CONNECT_SECONDS)
    try:
        with (
            unlogged(),
            httpx.Client(verify=certificates(), timeout=timeout, headers={"User-Agent": "idxflow"}) as client,
            client.stream("POST", url, json=dict(values)) as answer,
        ):
            return answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
        # The error names the address.
        raise NotDelivered(_why(error, host)) from None


def _why(error: Exception, host: str) -> str:
    import httpx

    from tasks.sources.download import cause_of, reason_of

    certificate = cause_of(error, ssl.SSLCertVerificationError)
    if certificate:
        return f"the certificate of {host} is not trusted ({certificate.verify_message})"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
        return f"no connection to {host}{reason_of(error)}"
    return f"the request to {host} failed{reason_of(error)}"


def _host(url: str, url_from: str) -> str:
    """Return the host of an address; the rest of it may be secret."""
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:
        host = None
    if not host:
        raise NotDelivered(f"expected {url_from} to hold an address, https://…; found something else; correct it")
    return host
