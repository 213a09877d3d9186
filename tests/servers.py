"""Real Prefect servers and workers for tests, each with its own home and port, ended with the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
START_SECONDS = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment as a new user has it: own HOME and PREFECT_HOME, nothing of idxflow or Prefect set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "IDXFLOW_"))}
    # Rich fits its output to the terminal; without one it would wrap at 80 columns.
    return {**kept, "HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "COLUMNS": "200", "NO_COLOR": "1", **more}


@contextmanager
def running(command: list[str], environment: Mapping[str, str], cwd: Path, log: Path) -> Iterator[subprocess.Popen]:
    """Run a service while the block lasts, in its own process group, so that its children end with it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    break
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    continue


@contextmanager
def prefect_server(home: Path) -> Iterator[dict[str, str]]:
    """Run `prefect server start` and yield the environment that reaches it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    # Without the URL in the server's own environment, its UI looks for it at the default port.
    environment = clean_environment(home, PREFECT_API_URL=url, PREFECT_SERVER_ANALYTICS_ENABLED="false")
    command = [str(BIN / "prefect"), "server", "start", "--port", str(port)]
    log = home / "server.log"
    with running(command, environment, ROOT, log) as process:
        wait_until_healthy(url, process, log)
        yield environment


def wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"the Prefect server did not start: {log.read_text()[-2000:]}")
