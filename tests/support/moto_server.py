"""A server of S3 on 127.0.0.1 (moto) that a test can write to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

BUCKET = "models"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


@dataclass(frozen=True)
class ObjectServer:
    """Object storage that runs, and how to reach it."""

    name: str
    address: str
    """Of an empty bucket."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The credentials, as environment variables."""


@contextmanager
def moto() -> Iterator[ObjectServer]:
    """Run moto with one empty bucket while the block runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"NO_COLOR": "1"},
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _create_bucket(server, f"{endpoint}/{BUCKET}")
        yield ObjectServer("moto", f"s3://{BUCKET}?endpoint={endpoint}", KEYS)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _create_bucket(server: subprocess.Popen, url: str) -> None:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=60):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"moto has ended with {server.returncode}")
