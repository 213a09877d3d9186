"""A real MLflow server with a database of its own, and what stands in front of it: a guard, or what kills a client."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.support.servers import HTTP, clean_environment, free_port, running_fork


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Start MLflow's server on loopback, with its database and files below `folder`; yield its address."""
    port = free_port()
    database, files, log = f"sqlite:///{folder}/mlflow.db", folder / "files", folder / "server.log"
    words = ["server", "--backend-store-uri", database, "--workers", "1"]
    words += ["--artifacts-destination", str(files), "--host", "127.0.0.1", "--port", str(port)]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    address = f"http://127.0.0.1:{port}"
    with running_fork("mlflow", words, clean_environment(folder, **settings), folder, log) as process:
        _wait(address, log, process.poll)
        yield address


def _wait(address: str, log: Path, ended: Callable[[], int | None]) -> None:
    # However busy the machine is: pytest ends a test that hangs.
    while ended() is None:
        try:
            if HTTP.get(f"{address}/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@dataclass
class Front:
    """What is in front of a server."""

    address: str
    server: str
    user: str = ""
    """`name:password`; without it, nobody is let in. Empty: everybody is."""
    before: Callable[[str, str], int | None] = lambda method, path: None
    """Called with each request that is let in; returns a status to answer with instead of passing it on."""
    asked: list[str] = field(default_factory=list)


class _Listener(ThreadingHTTPServer):
    front: Front


@contextmanager
def front_of(server: str) -> Iterator[Front]:
    """Stand in front of a server while the block runs."""
    with _Listener(("127.0.0.1", 0), _Handler) as listener:
        listener.front = Front(f"http://127.0.0.1:{listener.server_address[1]}", server)
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield listener.front
        finally:
            listener.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65_537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body, front = self._body(), self.server.front
        front.asked.append(f"{self.command} {self.path}")
        expected = f"Basic {base64.b64encode(front.user.encode()).decode()}"
        if front.user and self.headers.get("Authorization") != expected:
            self._answer(401, b"who are you?")
        elif status := front.before(self.command, self.path):
            self._answer(status, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "not today"}')
        else:
            kept = {name: value for name, value in self.headers.items() if name in ("Content-Type", "Range")}
            passed = HTTP.request(self.command, f"{front.server}{self.path}", content=body, headers=kept)
            self._answer(passed.status_code, passed.content, passed.headers.get("Content-Type", ""))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
