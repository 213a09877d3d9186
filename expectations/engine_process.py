"""A process that imports Great Expectations and evaluates suites, while this one imports and decodes.

    python -m expectations.engine_process < requests > answers

A run then waits less for that import, and trains without the library in its memory. A request is a line of JSON with
the columns of objects and the number of bytes that follow: a NumPy archive with the columns of numbers. The answer is a
line of JSON. The process ends with its standard input, so at the latest with the process that started it.
"""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from expectations import engine
from expectations.engine import Result
from expectations.suites import Expectation, Suite
from expectations.summary import Table

_ROOT = Path(__file__).resolve().parent.parent

_turn = threading.Lock()
_process: subprocess.Popen[bytes] | None = None


def begin() -> None:
    """Start the process, unless there is one, or this process has imported Great Expectations already."""
    global _process
    with _turn:
        if _process is None and not engine.is_loaded():
            _process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is for the run.
                start_new_session=True,
            )


def end() -> None:
    """End the process; what is evaluated later, this one evaluates itself."""
    global _process
    with _turn:
        if _process:
            _process.kill()
            _process.communicate()
            _process = None


def evaluate(suite: Suite, table: Table) -> dict[int, Result]:
    """Return the result of each expectation by its index in the suite, from the process if there is one."""
    with _turn:
        answer = _answer(_process, suite, table) if _process else None
    return engine.evaluate(suite, table) if answer is None else answer


def _answer(process: subprocess.Popen[bytes], suite: Suite, table: Table) -> dict[int, Result] | None:
    """Return the answer of the process; None if it has ended, as when there is too little memory for both."""
    if not (process.stdin and process.stdout):
        return None
    try:
        _send(process.stdin, suite, table)
        line = process.stdout.readline()
    except BrokenPipeError:
        return None
    return {int(number): Result(**values) for number, values in json.loads(line).items()} if line else None


def _send(stream: IO[bytes], suite: Suite, table: Table) -> None:
    numbers, others = {}, {}
    for name, values in table.items():
        if values.dtype == object:
            others[name] = values.tolist()
        else:
            numbers[name] = values
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **numbers)
    request = {"suite": asdict(suite), "names": [*table], "others": others, "bytes": archive.getbuffer().nbytes}
    stream.write(json.dumps(request).encode() + b"\n")
    stream.write(archive.getbuffer())
    stream.flush()


def main() -> None:
    """Answer requests until standard input ends."""
    # Nothing that a library prints may come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # The import leaves no garbage.
    gc.disable()
    engine.prepare()
    gc.enable()
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        table = _table(request, sys.stdin.buffer.read(request["bytes"]))
        results = engine.evaluate(_suite(request["suite"]), table)
        answers.write(json.dumps({number: asdict(result) for number, result in results.items()}).encode() + b"\n")
        answers.flush()


def _suite(values: dict[str, Any]) -> Suite:
    expectations = tuple(Expectation(**each) for each in values.pop("expectations"))
    return Suite(expectations=expectations, **values)


def _table(request: dict[str, Any], archive: bytes) -> Table:
    with np.load(io.BytesIO(archive), allow_pickle=False) as numbers:
        columns = {name: numbers[name] for name in numbers.files}
    for name, values in request["others"].items():
        # Elements may be lists, of which `np.array` would make another dimension.
        columns[name] = np.empty(len(values), object)
        columns[name][:] = values
    return {name: columns[name] for name in request["names"]}


if __name__ == "__main__":
    main()
