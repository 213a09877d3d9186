"""`idxflow run` with several data sets: their steps as they end, then a table of how each ended."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.terminal.output import print_json, remark
from storage.datasets import catalog
from storage.errors import ConfigError, error_class
from storage.words import counted

if TYPE_CHECKING:
    from flows.run import Request

_DEFAULT = "digits"


def chosen(
    names: Sequence[str], files: Sequence[str], everything: bool, timings: bool = False
) -> list[tuple[str, str | None]]:
    """Return the data sets to retrain, each as its name and its manifest, which replaces the name.

    Raises:
        ConfigError: it is not clear which ones are meant, or `timings` are wanted of several.
    """
    if everything and names:
        raise ConfigError(
            f"expected --all or the names of data sets; found both (--all, {', '.join(names)}); leave one of them out"
        )
    # One manifest stands in place of one name.
    if names and files and len(names) + len(files) > 2:
        raise ConfigError(
            f"expected names of the catalog or manifests; found both ({', '.join((*names, *files))}); run them apart, "
            "or give --all with the manifests"
        )
    of_catalog = catalog.names() if everything else [] if files else names or [_DEFAULT]
    given = [*((name, None) for name in of_catalog), *(((*names, _DEFAULT)[0], file) for file in files)]
    if timings and len(given) > 1:
        raise ConfigError(
            f"expected one data set with --timings; found {len(given)}; leave --timings out, or give one data set"
        )
    return given


def run_several(requests: Sequence[Request], at_once: int, as_json: bool) -> int:
    """Retrain the data sets, at most `at_once` at a time, and return the exit code.

    Raises:
        ConfigError: a request is wrong, or two are of the same data set; nothing was started.
        OutputFailed: a line could not be printed; the runs went on to their ends.
    """
    from flows.several import by_name

    return carry_out(by_name(requests), at_once, as_json)


def carry_out(
    named: Mapping[str, Request],
    at_once: int,
    as_json: bool,
    more: Mapping[str, Any] | None = None,
    again: str = "",
) -> int:
    """Carry out runs by their names, at most `at_once` at a time; show a table, and return the exit code.

    Args:
        more: what to print with `--json` besides the runs.
        again: the command that goes on with the rest, to be named if this is interrupted.

    Raises:
        OutputFailed: a line could not be printed; the runs went on to their ends.
    """
    from flows.several import Several
    from flows.terminal.console import Console

    with Console(as_json) as console:
        runs = Several(named, _run_here, console)
        try:
            runs.carry_out(at_once)
        except KeyboardInterrupt:
            if again:
                remark(f"{runs.ended} of {counted(len(named), 'run')} ended before this; go on with the rest: {again}")
            raise
        finally:
            # Also if it is interrupted: some may have ended before.
            console.table([*_rows(runs.outcomes)])
    ended = ", ".join(f"{name} {_how(outcome)}" for name, outcome in runs.outcomes.items())
    console.check_printed(f"the runs themselves ended: {ended}")
    if as_json:
        print_json({**runs.to_json(), **(more or {})})
    return runs.exit_code


def _run_here(request: Request) -> None:
    """Be the process of one run: `idxflow run NAME --json`."""
    from flows.commands.cli import run_command
    from idxflow_start import end

    words = shlex.split(request.command("run"))[1:]
    end(run_command([*words, *(["--force"] if request.force else []), "--json"]))


def _rows(outcomes: Mapping[str, Mapping[str, Any] | None]) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table: how each run ended, and its report or why it failed."""
    width = max(map(len, outcomes))
    for name, outcome in outcomes.items():
        ended = outcome or {}
        version, accuracy = ended.get("version"), ended.get("test_accuracy")
        seconds = f"{ended['seconds']:,.1f} s" if ended else "–"
        yield (
            f"{name:{width}}  {_how(outcome):13}  {f'v{version}' if version else '–':4}  "
            f"{f'{accuracy:.2%}' if accuracy is not None else '–':>7}  {seconds:>10}",
            ended["error"]["sentence"] if ended.get("error") else _where(ended.get("report")),
        )


def _where(report: str | None) -> str:
    return f"report {report}" if report else "no report"


def _how(outcome: Mapping[str, Any] | None) -> str:
    """Return how a run ended, in a word or two: `promoted`, `data refused`."""
    if outcome is None:
        return "not started"
    refused = outcome["error"] and error_class(outcome["error"]["kind"]).refuses
    return f"{refused} refused" if refused else str(outcome["state"])
