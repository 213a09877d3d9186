"""The whole job, and running it again: `python -m benchmarks.job tutorial`.

Everything is measured as commands, from typing them to their end. Prefect's database is there and migrated before,
as it is on any machine but a new one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks import subjects
from benchmarks.subjects import Measured

BIN = Path(sys.executable).parent
EPOCHS, QUICK_EPOCHS = 50, 3
AGAIN = 3
"""How often a run is repeated unchanged."""
START_SECONDS = 120


def epochs() -> int:
    """Return how many epochs the whole job trains."""
    return QUICK_EPOCHS if subjects.quick() else EPOCHS


def run_command(store: Path | str, number: int) -> list[str]:
    """Return the command that retrains on the real archives as the tutorial does, with its report as JSON."""
    source = str(subjects.archive("train-images").parent)
    command = [str(BIN / "idxflow"), "run", "mnist", "--profile", "tutorial", "--source", source]
    return [*command, "--set", f"epochs={number}", "--store", str(store), "--json"]


def checked(command: list[str], more: Mapping[str, str] | None = None) -> tuple[float, str]:
    """Run a command, which must succeed; return its seconds and its output."""
    started = time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, **(more or {})},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{Path(command[0]).name} {command[1]} ended with {done.returncode}: {done.stderr or done.stdout}")
    return seconds, done.stdout


def accuracies(output: str) -> str:
    """Return what `--json` says about the model."""
    found = json.loads(output)
    return f"{found['train_accuracy']:.2%} on training, {found['test_accuracy']:.2%} on test"


def tutorial() -> Measured:
    """The tutorial's script, alone."""
    seconds, output = checked([sys.executable, "-m", "benchmarks.tutorial", str(epochs())])
    return Measured({"tutorial script": seconds}, output.strip())


def cold() -> Measured:
    """`idxflow run` with an empty store, which starts and ends a Prefect server of its own."""
    seconds, output = checked(run_command(subjects.new_folder("store"), epochs()))
    return Measured({"idxflow run": seconds}, accuracies(output))


def again() -> Measured:
    """`idxflow run` with an empty store and a Prefect server that runs, and then the same command again."""
    with prefect_server() as reach:
        command = run_command(subjects.new_folder("store"), epochs())
        first, output = checked(command, reach)
        repeated = [checked(command, reach) for _ in range(AGAIN)]
    if any(json.loads(text)["state"] != "unchanged" for _, text in repeated):
        sys.exit("the second run was not unchanged")
    seconds = {"first run": first, "unchanged run": statistics.median(seconds for seconds, _ in repeated)}
    return Measured(seconds, accuracies(output))


def warm_up() -> Measured:
    """Migrate Prefect's database and fill the caches that a machine in use has: no measurement."""
    store = subjects.new_folder("store")
    seconds, _ = checked([str(BIN / "idxflow"), "run", "digits", "--profile", "fast", "--store", str(store), "--json"])
    return Measured({"warm-up": seconds})


@contextmanager
def prefect_server() -> Iterator[dict[str, str]]:
    """Run a Prefect server while the block lasts; yield the variables that reach it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reach = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    command = [str(BIN / "prefect"), "server", "start", "--port", str(port)]
    process = subprocess.Popen(
        command, env={**os.environ, **reach}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        _wait_until_healthy(reach["PREFECT_API_URL"], process)
        yield reach
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    sys.exit("the Prefect server did not start")


VARIANTS: subjects.Variants = {
    "tutorial script": tutorial,
    "idxflow run": cold,
    "unchanged run": again,
    "warm-up": warm_up,
}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
