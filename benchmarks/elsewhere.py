"""Runs on a store in object storage, and on one in a folder: `python -m benchmarks.elsewhere "object storage"`.

The object storage is MiniStack, which keeps all in memory, on the same machine: what its answers take is what remains
of a network. Each run has the cache that the runs before it on this store have left.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks import subjects
from benchmarks.job import START_SECONDS, checked, epochs, run_command
from benchmarks.subjects import Measured

FOLDER, OBJECTS = "in a folder", "in object storage"
RUNS = ("first run", "unchanged run")
_KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark"}


def row(run: str, place: str) -> str:
    """Return the name of the row of a run on a store."""
    return f"{run}, {place}"


def rows(place: str) -> tuple[str, ...]:
    """Return the names of the rows of both runs."""
    return tuple(row(run, place) for run in RUNS)


def in_a_folder() -> Measured:
    """Both runs, with a store in a folder."""
    return _measured(FOLDER, str(subjects.new_folder("store")), {})


def in_object_storage() -> Measured:
    """Both runs, with a store in object storage."""
    with _object_storage(subjects.new_folder("server")) as port:
        address = f"s3://benchmark/store?endpoint=http://127.0.0.1:{port}&region=us-east-1"
        return _measured(OBJECTS, address, {**_KEYS, "IDXFLOW_CACHE": str(subjects.new_folder("cache"))})


def _measured(place: str, store: str, more: Mapping[str, str]) -> Measured:
    command = run_command(store, epochs())
    return Measured({row(run, place): checked(command, more)[0] for run in RUNS})


@contextmanager
def _object_storage(folder: Path) -> Iterator[int]:
    """Run MiniStack with a bucket `benchmark` while the block lasts; yield its port."""
    port = free_port()
    own = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3", "IOT_MTLS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ministack"], cwd=folder,
        env={**os.environ, **own, **_KEYS, "HOME": str(folder), "DOCKER_HOST": f"unix://{folder}/none"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _make_bucket(f"http://127.0.0.1:{port}/benchmark", process)
        yield port
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _make_bucket(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.put(url, trust_env=False).raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.1)
    sys.exit("the object storage did not start")


VARIANTS: subjects.Variants = {FOLDER: in_a_folder, OBJECTS: in_object_storage}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
