"""What workers cost for each part, and a run of thousands of parts: `python -m benchmarks.workers "one worker"`.

The simulation is a run of 6 G rows (docs/scale.md) through the real scheduler, but parts only sleep, and not for as
long. Their sizes differ, some take much longer than their size, and of one in a hundred the first try is lost: its
worker was shut down, or was killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

from benchmarks import subjects
from benchmarks.elsewhere import free_port
from benchmarks.job import START_SECONDS
from benchmarks.parts import Part, nothing, parts_of, sleep
from benchmarks.scaling import resident
from benchmarks.subjects import Measured
from storage.workers.opening import workers_for
from storage.workers.protocol import Workers

EMPTY = ("one worker", "two workers")
EMPTY_PARTS = 2000
PARTS = 5_723
"""6 G rows in parts of 2²⁰."""
SIMULATED, SLEEP = f"{PARTS:,} parts", "their sleep alone"
_PROCESSES, _THREADS = 2, 8
_END_SECONDS = 10


def empty(name: str, processes: int) -> Measured:
    """Have so many processes of this run compute empty parts; return the milliseconds for each part."""
    parts = 200 if subjects.quick() else EMPTY_PARTS
    workers = workers_for(str(processes))
    try:
        # Until all processes are there, and have compared their code.
        for _ in workers.each(nothing, range(200), "empty parts"):
            pass
        started = time.perf_counter()
        found = sorted(result for _, result in workers.each(nothing, range(parts), "empty parts"))
        seconds = time.perf_counter() - started
    finally:
        workers.close()
    _check(found == [*range(parts)], "each part once")
    return Measured({name: 1000 * seconds / parts}, f"{parts:,} parts, each once")


def simulated() -> Measured:
    """Run the simulation; return its seconds, and those that the sleep would take if nothing else took any."""
    parts = parts_of(PARTS // 20 if subjects.quick() else PARTS, str(subjects.new_folder("marks")))
    with _cluster(subjects.new_folder("cluster")) as workers:
        for _ in workers.each(nothing, range(200), "empty parts"):
            pass
        before = resident("self", "VmRSS")
        started = time.perf_counter()
        watched = Watched(parts)
        times = Counter[int]()
        for index, number in workers.each(sleep, watched, "simulation"):
            _check(index == number, "the result of the part")
            times[number] += 1
            watched.taken += 1
        seconds = time.perf_counter() - started
        after = resident("self", "VmRSS")
    _check(times == Counter(range(len(parts))), "each part once")
    lost = Counter(part.lost for part in parts)
    ideal = sum(part.seconds for part in parts) / (_PROCESSES * _THREADS)
    said = (
        f"each part once; {lost['stopped']} lost with a worker that stopped and {lost['killed']} with one that was "
        f"killed; at most {watched.most} on their way; the run's memory {before / 1e6:.0f} MB before, "
        f"{after / 1e6:.0f} MB after"
    )
    return Measured({SIMULATED: seconds, SLEEP: ideal}, said)


class Watched(Sequence[Part]):
    """Parts, of which is counted how many were given away and have not come back."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.taken = self.most = 0

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Part]: ...
    def __getitem__(self, index: int | slice) -> Part | Sequence[Part]:
        part = self._parts[index]
        if isinstance(part, Part):
            self.most = max(self.most, part.number + 1 - self.taken)
        return part


@contextmanager
def _cluster(folder: Path) -> Iterator[Workers]:
    """Start a scheduler and processes that are started again when they die, on loopback."""
    address = f"tcp://127.0.0.1:{free_port()}"
    scheduler = _dask(folder, "scheduler", "--host", address, "--no-dashboard", "--dashboard-address", "127.0.0.1:0")
    options = ["--nworkers", str(_PROCESSES), "--nthreads", str(_THREADS), "--no-dashboard", "--host", "127.0.0.1"]
    started = _dask(folder, "worker", address, *options, "--local-directory", str(folder))
    workers = workers_for(address)
    try:
        _wait(workers)
        yield workers
    finally:
        workers.close()
        for process in (started, scheduler):
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                # A worker that looks for its scheduler does not listen to signals.
                process.kill()
                process.wait()


def _dask(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments], cwd=folder, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _wait(workers: Workers) -> None:
    """Wait until all processes are there."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if workers.count == _PROCESSES:
                return
        except Exception:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)
    sys.exit("the cluster did not start")


def _check(true: bool, what: str) -> None:
    if not true:
        sys.exit(f"expected {what}; found something else")


VARIANTS: subjects.Variants = {
    EMPTY[0]: lambda: empty(EMPTY[0], 1),
    EMPTY[1]: lambda: empty(EMPTY[1], 2),
    SIMULATED: simulated,
}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
