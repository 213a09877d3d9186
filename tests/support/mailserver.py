"""A real SMTP server on loopback, which keeps what it accepts."""

from __future__ import annotations

import email
import email.policy
import socket
import ssl
import warnings
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

USER = "idxflow"


@dataclass
class MailServer:
    """Takes messages while the block runs."""

    starttls: ssl.SSLContext | None = None
    tls: ssl.SSLContext | None = None
    password: str = ""
    """What `USER` has to log in with; empty: nobody has to."""
    refused: tuple[str, ...] = ()
    """Recipients that it does not take."""
    messages: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    """Those of each message."""
    port: int = 0

    def __enter__(self) -> MailServer:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options: dict[str, Any] = {"tls_context": self.starttls, "require_starttls": bool(self.starttls)}
        if self.password:
            options |= {"auth_required": True, "authenticator": self._authenticated}
            # A connection that has been encrypted from the start is none that STARTTLS has encrypted.
            options |= {"auth_require_tls": bool(self.starttls)}
        self._controller = Controller(
            self, hostname="127.0.0.1", port=self.port, ssl_context=self.tls, ready_timeout=240, **options
        )
        # Of its own: about a login without STARTTLS, and about a name that it uses itself.
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", "Requiring AUTH while not requiring TLS", UserWarning)
        warnings.filterwarnings("ignore", "Session.login_data is deprecated", DeprecationWarning)
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()
        self._warnings.__exit__(None, None, None)

    @property
    def address(self) -> str:
        """What `--smtp` is given."""
        return f"127.0.0.1:{self.port}"

    def _authenticated(self, server: SMTP, session: Session, envelope: Envelope, method: str, data: Any) -> AuthResult:
        is_right = (data.login, data.password) == (USER.encode(), self.password.encode())
        # `handled`: an answer has been sent.
        return AuthResult(success=is_right, handled=False)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 no such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        message = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.messages.append(message)
        self.recipients.append([*envelope.rcpt_tos])
        return "250 OK"
