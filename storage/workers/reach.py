"""What is found at the address of a scheduler that could not be used, to say what is wrong with the address."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from contextlib import suppress
from typing import Literal
from urllib.parse import urlsplit

SECONDS = 2.0
"""How long to wait for an answer."""
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})
"""Reasons that OpenSSL gives when the other side has not answered with TLS."""

Spoken = Literal["tls", "plain", "unknown"]


async def is_nobody_there(address: str) -> OSError | None:
    """Return why no program listens at an address, if that is known at once; None if one does, or may."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(*_place(address)), SECONDS)
    except ConnectionRefusedError as error:
        # In the words of the system, not of asyncio.
        return ConnectionRefusedError(error.errno, os.strerror(error.errno or errno.ECONNREFUSED))
    except socket.gaierror as error:
        # A server of names that does not answer yet is waited for.
        return None if error.errno == socket.EAI_AGAIN else error
    except OSError:
        return None
    await _hang_up(writer)
    return None


async def spoken(address: str) -> Spoken:
    """Return whether the program that listens at an address begins with TLS, whomever it would admit then."""
    host, port = _place(address)
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    try:
        connecting = asyncio.open_connection(host, port, ssl=anybody, ssl_handshake_timeout=SECONDS)
        _, writer = await asyncio.wait_for(connecting, SECONDS)
    except ssl.SSLError as error:
        return "plain" if error.reason in _NOT_TLS else "tls"
    except OSError:
        return "unknown"
    await _hang_up(writer)
    return "tls"


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection now: to close it in the way of TLS, its other end would have to answer."""
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


def _place(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    return parts.hostname or "", parts.port or 0
