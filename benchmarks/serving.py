"""Answering over HTTP: `python -m benchmarks.serving "idxflow serve"`.

Every server runs in a process of its own on loopback, and has the same champion of MNIST: the network of the tutorial,
after three epochs, as `idxflow serve` has it or as `idxflow export --format keras` writes it. 16 connections that stay
open each send one image after the other, as JSON, and wait for each answer. Before that, the answers to twenty images
are compared with those of the export.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import subjects
from benchmarks.job import BIN, START_SECONDS, checked, run_command
from benchmarks.subjects import Measured

OURS, BARE, MLFLOW = "idxflow serve", "FastAPI, model.predict", "MLflow"
EACH, P99 = "a request", "p99"
CONNECTIONS, REQUESTS, QUICK_REQUESTS = 16, 2000, 320
STORE, EXPORT, SAVED = "served-store", "served-export", "served-mlflow"
EPOCHS = 3
"""After one, the model is below the floor of its data set."""
STOP_SECONDS = 20


def row(name: str, figure: str) -> str:
    """Return the name of a row."""
    return f"{name}, {figure}"


def rows(name: str) -> tuple[str, str]:
    """Return the rows of a variant."""
    return row(name, EACH), row(name, P99)


@dataclass(frozen=True)
class Server:
    """How a server is started and asked."""

    command: Sequence[str]
    path: str
    """Where images are sent to."""
    body: Callable[[np.ndarray], Any]
    """The JSON value that asks about one image, uint8 of shape (28, 28)."""
    label: Callable[[Any], int]
    """The class in an answer."""


def measured(name: str, make: Callable[[int], Server]) -> Measured:
    """Start a server, and measure it.

    Raises:
        ValueError: it gives another answer than the export.
    """
    port = _free_port()
    server = make(port)
    images = subjects.load("test-images")
    with _running(server, port, images[0]):
        expected = _answers_of_export(images[:20])
        given = [server.label(_ask(port, server, image)) for image in images[:20]]
        if given != expected:
            raise ValueError(f"{name}: expected the labels {expected}; found {given}")
        count = QUICK_REQUESTS if subjects.quick() else REQUESTS
        bodies = [json.dumps(server.body(image)).encode() for image in images[:count]]
        asyncio.run(_load(port, server.path, bodies[: count // 10]))
        started = time.perf_counter()
        latencies = asyncio.run(_load(port, server.path, bodies))
        seconds = time.perf_counter() - started
    figures = {EACH: seconds / len(latencies), P99: statistics.quantiles(latencies, n=100)[98]}
    said = f"{len(latencies) / seconds:,.0f} requests a second"
    return Measured({row(name, figure): 1000 * value for figure, value in figures.items()}, said)


def ours() -> Measured:
    """`idxflow serve`, as it is by default, but for a limit on the rate."""
    store = _store()
    command = [str(BIN / "idxflow"), "serve", "mnist", "--store", str(store), "--max-rate", "1000000"]
    return measured(
        OURS,
        lambda port: Server(
            [*command, "--port", str(port)],
            "/v1/mnist/predict",
            lambda image: {"image": image.tolist()},
            lambda answer: answer["predictions"][0]["label"],
        ),
    )


def bare() -> Measured:
    """A FastAPI application of a dozen lines that calls `model.predict`."""
    model = _export() / "model.keras"
    return measured(
        BARE,
        lambda port: Server(
            [sys.executable, "-m", "benchmarks.bare_server", str(model), str(port)],
            "/predict",
            lambda image: {"image": image.tolist()},
            lambda answer: answer["label"],
        ),
    )


def mlflow() -> Measured:
    """`mlflow models serve`, in the environment that is there."""
    if find_spec("mlflow") is None:
        return Measured({}, missing="mlflow")
    saved = subjects.work_folder() / SAVED
    if not saved.exists():
        code = (
            "import sys, keras, mlflow.tensorflow, numpy\n"
            "model = keras.saving.load_model(sys.argv[1])\n"
            "image = numpy.zeros((1, 28, 28), 'float32')\n"
            "signature = mlflow.models.infer_signature(image, model.predict(image))\n"
            "mlflow.tensorflow.save_model(model, sys.argv[2], signature=signature)\n"
        )
        checked([sys.executable, "-c", code, str(_export() / "model.keras"), str(saved)])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-m", str(saved)]
    return measured(
        MLFLOW,
        lambda port: Server(
            [*command, "--port", str(port)],
            "/invocations",
            lambda image: {"inputs": [image.tolist()]},
            lambda answer: int(np.argmax(answer["predictions"][0])),
        ),
    )


def _store() -> Path:
    """Return a store with a champion of MNIST, made by the first that needs it."""
    store = subjects.work_folder() / STORE
    if not store.exists():
        checked(run_command(store, EPOCHS))
    return store


def _export() -> Path:
    folder = subjects.work_folder() / EXPORT
    if not folder.exists():
        words = ["export", "mnist", "--format", "keras", "--out", str(folder), "--store", str(_store())]
        checked([str(BIN / "idxflow"), *words])
    return folder


def _answers_of_export(images: np.ndarray) -> list[int]:
    code = (
        "import sys, keras, numpy\n"
        "images = numpy.load(sys.stdin.buffer).astype('float32')\n"
        "print(*keras.saving.load_model(sys.argv[1]).predict(images, verbose=0).argmax(axis=1))\n"
    )
    file = subjects.new_folder("images") / "images.npy"
    np.save(file, images)
    with file.open("rb") as stream:
        command = [sys.executable, "-c", code, str(_export() / "model.keras")]
        done = subprocess.run(command, stdin=stream, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _running(server: Server, port: int, image: np.ndarray) -> Iterator[None]:
    process = subprocess.Popen(server.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        _wait_until_ready(server, port, process, image)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: Server, port: int, process: subprocess.Popen[bytes], image: np.ndarray) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            _ask(port, server, image)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    sys.exit(f"{server.command[1]} did not start")


def _ask(port: int, server: Server, image: np.ndarray) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{server.path}", json.dumps(server.body(image)).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


async def _load(port: int, path: str, bodies: Sequence[bytes]) -> list[float]:
    """Send each body once, over all connections; return the seconds of each request."""
    left, latencies = iter(bodies), list[float]()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        # All take from one iterator, so a connection that is answered sooner sends more.
        for body in left:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            started = time.perf_counter()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await _answer(reader)
            latencies.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return latencies


async def _answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"expected 200; found {head[:100]!r}")
    lines = (line.partition(b":") for line in head.lower().splitlines()[1:])
    fields: Mapping[bytes, bytes] = {name: value.strip() for name, _, value in lines}
    await reader.readexactly(int(fields[b"content-length"]))


VARIANTS: subjects.Variants = {OURS: ours, BARE: bare, MLFLOW: mlflow}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
