"""Where the seconds of four commands go, as `idxflow run --timings` tells: `python -m benchmarks.spending parts`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import subjects
from benchmarks.job import checked, epochs, prefect_server, run_command
from benchmarks.subjects import Measured

COMMANDS = ("first run", "unchanged run", "first run, warm server", "unchanged run, warm server")
COMMAND, SERVER = "this command", "Prefect's server, until it answers"
EXIT, ALL = "exit", "in all"
OTHER_IMPORTS = "imports of other libraries"
KINDS = {"import": OTHER_IMPORTS, "request": "requests to Prefect", "step": "steps"}
"""Names that begin with one of these words come together, unless they have a line of their own."""
LINES = (
    "starting Python",
    *(f"import {name}" for name in ("prefect", "great_expectations", "tensorflow", "keras", "idxflow")),
    OTHER_IMPORTS,
    "waiting for Prefect's server",
    "requests to Prefect",
    "Prefect's flow and task runs",
    "digests of source code",
    "steps",
    "sending Prefect the last logs and events",
    "stopping Prefect's server",
    "the rest",
    EXIT,
    ALL,
)
PREFECT = "to compare: `python -c 'import prefect'`"
SERVER_LINES = ("imports of other libraries", "making Prefect's application", "its database and services", "the rest")


def parts() -> Measured:
    """Run the four commands, each from typing it to its end."""
    cold, warm = subjects.new_folder("store"), subjects.new_folder("store")
    spent = {name: _spent(run_command(cold, epochs()), {}) for name in COMMANDS[:2]}
    with prefect_server() as reach:
        spent |= {name: _spent(run_command(warm, epochs()), reach) for name in COMMANDS[2:]}
    alone = subjects.timed(lambda: checked([sys.executable, "-c", "import prefect"]))
    lines = {name: {**lines, PREFECT: alone} for name, lines in spent.items()}
    return Measured({row(line, name): seconds for name, found in lines.items() for line, seconds in found.items()})


def row(line: str, command: str) -> str:
    """Return the name of the row that has the seconds of one line of one command."""
    return f"{line} | {command}"


def rows() -> tuple[str, ...]:
    """Return the names of all rows."""
    lines = (*LINES, PREFECT, *(_of_server(line) for line in SERVER_LINES))
    return tuple(row(line, command) for line in lines for command in COMMANDS)


def _spent(command: list[str], reach: Mapping[str, str]) -> dict[str, float]:
    seconds, output = checked([*command, "--timings"], reach)
    timings = json.loads(output)["timings"]
    lines = _lines(timings[COMMAND], LINES)
    lines |= {EXIT: seconds - sum(lines.values()), ALL: seconds}
    return lines | {_of_server(name): took for name, took in _lines(timings.get(SERVER, ()), SERVER_LINES).items()}


def _lines(spent: Iterable[Mapping[str, Any]], lines: tuple[str, ...]) -> dict[str, float]:
    """Return the seconds of each line; what has none is part of that of its kind, or of the rest."""
    seconds = dict.fromkeys(lines, 0.0)
    for each in spent:
        name = each["name"]
        kind = KINDS.get(name.partition(" ")[0], "the rest")
        seconds[name if name in seconds else kind] += each["seconds"]
    return {line: took for line, took in seconds.items() if took}


def _of_server(line: str) -> str:
    return f"meanwhile, Prefect's server: {line}"


VARIANTS: subjects.Variants = {"parts": parts}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
