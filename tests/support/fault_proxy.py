"""A proxy on 127.0.0.1 in front of an HTTP server that spoils what passes through it, by chance but with a seed.

with FaultProxy("127.0.0.1:9000", Faults(lost=0.1, busy=0.1), seed=1) as proxy:
    proxy.url    # to be used in place of the server's
    proxy.made   # how often it did what
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_CONFLICT = b"<Error><Code>ConditionalRequestConflict</Code><Message>Try again.</Message></Error>"
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """With its query."""
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Faults:
    """How probable each is for one request, 0 to 1; at most one of them happens."""

    lost: float = 0
    """The server does what it is asked to, but its answer never comes."""
    busy: float = 0
    """503, and the server never hears of it."""
    conflict: float = 0
    """409 to a conditional PUT, and the server never hears of it."""
    cut: float = 0
    """Half of the answer's body comes, then the connection ends."""
    late: float = 0
    """The answer comes 20 ms late."""
    first_put_lost: bool = False
    """The answer to the very first PUT is lost, whatever the probabilities."""


@dataclass
class FaultProxy:
    upstream: str
    """Address and port of the server."""
    faults: Faults = Faults()
    seed: int = 0
    without: str = ""
    """A header that the server never gets to see, in lower case."""
    instead: Callable[[Request], Answer | None] = lambda request: None
    """Answers in place of the server, where it returns something."""
    requests: list[Request] = field(default_factory=list)
    made: Counter[str] = field(default_factory=Counter)
    """How often each fault happened."""

    def __enter__(self) -> FaultProxy:
        self._random, self._lock, self._puts = random.Random(self.seed), threading.Lock(), 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault(self, request: Request) -> str:
        """Choose what happens to a request; the empty text for nothing."""
        with self._lock:
            self.requests.append(request)
            self._puts += request.method == "PUT"
            fault = self._chosen(request)
            self.made[fault] += 1
            return fault

    def _chosen(self, request: Request) -> str:
        if self.faults.first_put_lost and request.method == "PUT" and self._puts == 1:
            return "lost"
        point = self._random.random()
        for fault in ("lost", "busy", "conflict", "cut", "late"):
            point -= getattr(self.faults, fault)
            if point < 0:
                conditional = request.method == "PUT" and "if-none-match" in request.headers
                return "" if fault == "conflict" and not conditional else fault
        return ""

    def answer(self, request: Request) -> Answer:
        """Return what the server answers."""
        connection = HTTPConnection(self.upstream, timeout=300)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name not in (self.without, "connection"):
                    connection.putheader(name, value)
            connection.endheaders(request.body)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), dict(answer.getheaders()))
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def do_GET(self) -> None:
        self._pass_on()

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        fault = self.proxy.fault(request)
        if fault in ("busy", "conflict"):
            return self._send(Answer(503, _BUSY) if fault == "busy" else Answer(409, _CONFLICT))
        answer = self.proxy.instead(request) or self.proxy.answer(request)
        if fault == "lost":
            self.close_connection = True
            return None
        if fault == "late":
            time.sleep(0.02)
        return self._send(answer, cut=fault == "cut")

    def _send(self, answer: Answer, cut: bool = False) -> None:
        length = str(len(answer.body))
        if self.command == "HEAD":
            length = {name.lower(): value for name, value in answer.headers.items()}.get("content-length", "0")
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        # Half of nothing is all of it.
        self.close_connection = cut
