"""Alerts by e-mail, over SMTP."""

from __future__ import annotations

import hashlib
import re
import smtplib
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any, ClassVar, Literal, get_args

from flows.alerts.event import Event
from flows.alerts.receiver import NotDelivered, within
from flows.alerts.secret import secret
from storage.errors import ConfigError

SECONDS = 30.0
"""How long one message may take."""
_SOCKET_SECONDS = 10.0
Security = Literal["starttls", "tls", "none"]
SECURITIES: tuple[Security, ...] = get_args(Security)
_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ADDRESS = re.compile(r"[^\s@,;:<>\"()\[\]\\]+@[^\s@,;:<>\"()\[\]\\]+")
_SERVER = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True)
class Email:
    """Addresses that get a message in plain text, through an SMTP server."""

    to: tuple[str, ...]
    sender: str
    host: str
    port: int
    security: Security = "starttls"
    """`starttls`: a connection must become encrypted; `tls`: it is from the start; `none`: it is not."""
    user: str = ""
    password_from: str = ""
    """The name of the secret that is the password; empty: no login."""
    kind: ClassVar[str] = "email"

    @property
    def shown(self) -> str:
        return f"{', '.join(self.to)} by {self.host}:{self.port}"

    def send(self, event: Event, seconds: float) -> str:
        password = secret(self.password_from) if self.password_from else ""
        refused: dict[str, Any] = {}
        within(min(seconds, SECONDS), lambda: refused.update(self._send(self.message(event), password)))
        # Who got it must not get it again.
        return f"{self.host}:{self.port} refused {_listed(refused)}" if refused else ""

    def to_json(self) -> Mapping[str, Any]:
        return asdict(self)

    def message(self, event: Event) -> EmailMessage:
        """Return the message: the headline as subject, the text as body."""
        message = EmailMessage()
        message["Subject"] = f"idxflow: {event.title}"
        message["From"] = self.sender
        message["To"] = ", ".join(self.to)
        message["Date"] = format_datetime(datetime.now(UTC))
        # The same for the same event, so that a message that was sent twice is shown once by many programs.
        digest = hashlib.sha256(f"{event.store} {event.id}".encode()).hexdigest()[:32]
        message["Message-ID"] = f"<{digest}@{self.sender.rpartition('@')[2]}>"
        # RFC 3834: no answer is wanted, such as "out of office".
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(f"{event.text}\n", charset="utf-8")
        return message

    def _send(self, message: EmailMessage, password: str) -> Mapping[str, Any]:
        """Send a message; return the answer to each address that was refused, if any was accepted."""
        where = f"{self.host}:{self.port}"
        try:
            with self._connected() as smtp:
                if password:
                    smtp.login(self.user, password)
                return smtp.send_message(message)
        except ssl.SSLCertVerificationError as error:
            raise NotDelivered(f"the certificate of {where} is not trusted ({error.verify_message})") from None
        except smtplib.SMTPResponseException as error:
            raise NotDelivered(f"{where} answered {error.smtp_code}") from None
        except smtplib.SMTPRecipientsRefused as error:
            raise NotDelivered(f"{where} refused {_listed(error.recipients)}") from None
        except smtplib.SMTPNotSupportedError as error:
            raise NotDelivered(f"{where} does not offer what is needed: {error}") from None
        except (OSError, smtplib.SMTPException) as error:
            raise NotDelivered(f"no delivery by {where} ({type(error).__name__})") from None

    def _connected(self) -> smtplib.SMTP:
        if self.security == "tls":
            return smtplib.SMTP_SSL(self.host, self.port, timeout=_SOCKET_SECONDS, context=ssl.create_default_context())
        smtp = smtplib.SMTP(self.host, self.port, timeout=_SOCKET_SECONDS)
        if self.security == "starttls":
            try:
                smtp.starttls(context=ssl.create_default_context())
            except BaseException:
                smtp.close()
                raise
        return smtp


def email(to: tuple[str, ...], sender: str | None, server: str, security: str, login: tuple[str, str] | None) -> Email:
    """Return the receiver with what was typed.

    Args:
        to: addresses.
        sender: an address; None: the first of `to`.
        server: a host, or a host and a port, `smtp.example.org:587`.
        security: one of `SECURITIES`.
        login: a user and the name of the secret that is the password; None: no login.

    Raises:
        ConfigError: something of it cannot be used.
    """
    for address in (*to, *([sender] if sender else [])):
        if not _ADDRESS.fullmatch(address) or not address.isprintable():
            raise ConfigError(f"expected an e-mail address such as ops@example.org; found {address[:80]!r}; correct it")
    match = _SERVER.fullmatch(server)
    port = int(match["port"] or _PORTS[security]) if match else 0
    if not match or not 0 < port < 65536:
        raise ConfigError(
            "expected --smtp to be a host, or a host and a port, such as smtp.example.org:587, without user and "
            "password; found another text; correct it, and give --user and --password-from if a login is needed"
        )
    host = match["six"] or match["host"]
    if login and security == "none" and host not in _LOOPBACK:
        raise ConfigError(
            f"expected an encrypted connection for a login at {host}; found --security none; give --security "
            "starttls or tls"
        )
    user, password_from = login or ("", "")
    encryption: Security = next(each for each in SECURITIES if each == security)
    return Email(to, sender or to[0], host, port, encryption, user, password_from)


def _listed(refused: Mapping[str, Any]) -> str:
    return ", ".join(f"{address} ({answer[0]})" for address, answer in refused.items())
