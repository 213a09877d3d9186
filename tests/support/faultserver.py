"""A web server on 127.0.0.1 that misbehaves on purpose, byte by byte.

with FaultServer({"/a.gz": good(b"..."), "/b.gz": in_turn(status(500), good(b"..."))}) as server:
    server.url("/a.gz")
    server.requests  # what was asked, in order
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""


@dataclass(frozen=True)
class Exchange:
    """One connection, its request read, nothing answered yet."""

    connection: socket.socket
    request: Request
    stopping: threading.Event

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def head(self, code: int, headers: Mapping[str, object] | None = None) -> None:
        lines = [f"HTTP/1.1 {code} {HTTPStatus(code).phrase}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))


Answer = Callable[[Exchange], None]
HANGING_SECONDS = 600
"""For so long an answer that never comes is not given, unless the server is stopped before."""


@dataclass
class FaultServer:
    answers: dict[str, Answer]
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    opening: Callable[[socket.socket], None] | None = None
    """What to do with a connection in place of any conversation, such as a handshake that ends half way."""
    openings: list[bytes] = field(default_factory=list)
    """The first byte of each connection: 0x16 begins TLS (RFC 8446, 5.1), a letter begins HTTP."""
    host: str = ""
    """Address and port."""

    def __enter__(self) -> FaultServer:
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=240)

    def url(self, path: str = "", user: str = "") -> str:
        return f"{'https' if self.tls else 'http'}://{user}{self.host}{path}"

    def request_count(self, path: str) -> int:
        return sum(request.path.partition("?")[0] == path for request in self.requests)

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        # What the client makes of a broken conversation is the client's test; here it just ends.
        with connection, suppress(OSError):
            connection.settimeout(5)
            self.openings.append(connection.recv(1, socket.MSG_PEEK))
            if self.opening:
                self.opening(connection)
            elif self.tls:
                with self.tls.wrap_socket(connection, server_side=True) as secure:
                    self._converse(secure)
            else:
                self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more or len(data) > 100_000:
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            more = connection.recv(65536)
            if not more:
                return
            body += more
        request = Request(re.sub(r"^http://[^/]*", "", first.split(" ")[1]), headers, body)
        self.requests.append(request)
        self.answers.get(request.path.partition("?")[0], status(404))(Exchange(connection, request, self._stopping))


def good(body: bytes, **headers: object) -> Answer:
    """The whole body. Underscores in header names stand for dashes; `Content_Length=None` leaves it out."""

    def answer(exchange: Exchange) -> None:
        all_headers = {"Content-Length": len(body)} | {k.replace("_", "-"): v for k, v in headers.items()}
        exchange.head(200, {name: value for name, value in all_headers.items() if value is not None})
        exchange.send(body)

    return answer


def status(code: int, body: bytes = b"", **headers: object) -> Answer:
    def answer(exchange: Exchange) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.head(code, {"Content-Length": len(body), **named})
        exchange.send(body)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """The first answer to the first request, and so on; the last one for ever."""
    remaining = list(answers)
    return lambda exchange: (remaining.pop(0) if len(remaining) > 1 else remaining[0])(exchange)


def cut(body: bytes, after: int, **headers: object) -> Answer:
    """Promises all of `body`, sends `after` bytes, ends the connection."""
    return good(body[:after], Content_Length=len(body), **headers)


def stall(body: bytes, after: int, **headers: object) -> Answer:
    """As `cut`, but the connection stays."""

    def answer(exchange: Exchange) -> None:
        good(body[:after], **{"Content_Length": len(body), **headers})(exchange)
        exchange.stopping.wait(HANGING_SECONDS)

    return answer


def reset(body: bytes, after: int, **headers: object) -> Answer:
    """As `cut`, but the connection is reset, not ended."""

    def answer(exchange: Exchange) -> None:
        cut(body, after, **headers)(exchange)
        exchange.stopping.wait(0.05)
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return answer


def chunked(body: bytes, size: int = 1000, ends: bool = True) -> Answer:
    def answer(exchange: Exchange) -> None:
        exchange.head(200, {"Transfer-Encoding": "chunked"})
        for start in range(0, len(body), size):
            piece = body[start : start + size]
            exchange.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if ends:
            exchange.send(b"0\r\n\r\n")

    return answer


def endless(**headers: object) -> Answer:
    def answer(exchange: Exchange) -> None:
        exchange.head(200, {name.replace("_", "-"): value for name, value in headers.items()})
        while not exchange.stopping.is_set():
            exchange.send(bytes(65536))

    return answer


def trickle(body: bytes, seconds: float = 0.01) -> Answer:
    """One byte at a time."""

    def answer(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Length": len(body)})
        _drip(exchange, body, seconds)

    return answer


def slow_head(seconds: float = 0.01) -> Answer:
    """A header that never ends, one byte at a time."""
    return lambda exchange: _drip(exchange, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, seconds)


def _drip(exchange: Exchange, data: bytes, seconds: float) -> None:
    for byte in data:
        if exchange.stopping.wait(seconds):
            return
        exchange.send(bytes([byte]))


def silent(exchange: Exchange) -> None:
    """Reads the request and never answers."""
    exchange.stopping.wait(HANGING_SECONDS)


def raw(data: bytes) -> Answer:
    return lambda exchange: exchange.send(data)


def headed(*lines: bytes, body: bytes = b"") -> Answer:
    """A good status line, then these lines of header as they are, then the body."""
    return raw(b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", body]))


def early_hints(exchange: Exchange) -> None:
    """One interim response (RFC 9110, 15.2) after another, and never a final one."""
    while not exchange.stopping.wait(0.001):
        exchange.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")


def redirect(to: str, code: int = 302) -> Answer:
    return status(code, Location=to)


def ranged(body: bytes, etag: str, first: int | None = None, sends: bytes | None = None) -> Answer:
    """Serves the rest that a `Range` asks for, if its `If-Range` has this ETag (RFC 9110, 13.1.5); else all of it.

    To lie: `first` is the position claimed in `Content-Range`, `sends` the file whose rest is sent.
    """

    def answer(exchange: Exchange) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", exchange.request.headers.get("range", ""))
        if not match or exchange.request.headers.get("if-range") != etag:
            return good(body, ETag=etag)(exchange)
        start = int(match[1])
        if start >= len(body):
            return status(416, Content_Range=f"bytes */{len(body)}")(exchange)
        rest = (sends or body)[start:]
        claimed = f"bytes {start if first is None else first}-{len(body) - 1}/{len(body)}"
        return status(206, rest, Content_Range=claimed, ETag=etag)(exchange)

    return answer
