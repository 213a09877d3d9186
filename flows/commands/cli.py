"""The `idxflow` command."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, Group, Parameter

from flows import environment
from flows.commands import (
    alerts,
    backfill,
    copy_command,
    dataset,
    datasets,
    diagnose,
    doctor,
    drift,
    export,
    figures,
    gc_command,
    labels,
    lineage,
    manifest,
    predict,
    prefect_command,
    promote,
    quarantine,
    registry,
    report,
    reproduce,
    rollback,
    run,
    runs,
    serve,
    share,
    status,
    suspects,
    tune,
    up,
    verify,
    watch,
)
from flows.interruption import Terminated, interruptible
from flows.settings import relax_garbage_collection
from flows.terminal.output import print_json, remark
from flows.terminal.streams import ReaderGone, guarded_streams
from storage.errors import EXIT_CODES, ConfigError, IdxflowError, shortage
from storage.records import Failure, to_json

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

OF_DATA = {
    **dict.fromkeys(("run", "backfill"), (3, 4, 5)),
    **dict.fromkeys(("validate", "watch", "tune"), (3, 4)),
    **dict.fromkeys(("manifest", "predict", "labels"), (3,)),
    "dataset": (3, 5),
    "drift": (3, 6),
    "reproduce": (7,),
}
"""Exit codes that only some commands have."""

_THEN = {
    **dict.fromkeys(
        ("run", "validate", "backfill", "tune", "watch", "diagnose", "gc", "copy"),
        "; run the same command again to resume",
    ),
    # Rolling back twice goes back two champions.
    **dict.fromkeys(
        ("promote", "rollback"), "; `idxflow registry history DATASET` shows whether the champion was changed"
    ),
}
"""What to do after a command was interrupted."""

app = App(
    name="idxflow",
    usage="Usage: idxflow [--help | --version] COMMAND",
    help="Retrain an image classifier, keep the better model, and report why.\n\n"
    "Start with `idxflow run`. `idxflow COMMAND --help` has options and examples.",
    help_format="markdown",
    # A flag that is off needs no default in its help.
    default_parameter=Parameter(show_default=lambda value: None if value is False else value),
    version=version("idxflow"),
    # `run_command` reports it.
    suppress_keyboard_interrupt=False,
)


GROUPS: dict[str, tuple[App | Callable[..., int], ...]] = {
    "Run": (run.run, run.validate, backfill.backfill, tune.tune, watch.watch),
    "Data": (
        dataset.app,
        datasets.datasets,
        manifest.manifest,
        figures.figures,
        suspects.suspects,
        quarantine.app,
        labels.app,
    ),
    "Models": (
        predict.predict,
        export.export,
        diagnose.diagnose,
        drift.drift,
        registry.app,
        lineage.lineage,
        promote.promote,
        rollback.rollback,
    ),
    "Reports": (status.status, runs.app, report.report, reproduce.reproduce, share.app),
    "Operate": (up.up, serve.serve, alerts.app, doctor.doctor, verify.verify, copy_command.copy, gc_command.gc),
}
"""The commands by purpose, as `idxflow --help` lists them."""


def _register() -> None:
    for number, (name, commands) in enumerate(GROUPS.items()):
        group = Group(name, sort_key=number, help_formatter=_print_group)
        for place, command in enumerate(commands):
            if isinstance(command, App):
                command.group, command.sort_key = (group,), place
                app.command(command)
            else:
                app.command(command, group=group, sort_key=place)
    # All arguments that follow belong to Prefect, including `--help`.
    app.command(prefect_command.prefect, group=group, sort_key=len(commands), help_flags=[], version_flags=[])
    for flag in (*app.help_flags, *app.version_flags):
        # The usage line shows them.
        app[flag].show = False


def _print_group(console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
    """Print the commands of a group for `idxflow --help`, one line each, with the same columns in all groups."""
    from rich.padding import Padding
    from rich.table import Table

    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(style="cyan", min_width=max(len(name) for name in app if not name.startswith("-")))
    rows.add_column()
    for entry in panel.entries:
        rows.add_row(entry.names[0], entry.description)
    console.print(panel.title, style="bold")
    console.print(Padding(rows, (0, 0, 0, 2), expand=False))


_register()


def _list_exit_codes() -> None:
    """Have the help of each command, and of its subcommands, list the exit codes that it can have."""
    app.help_epilogue = _epilogue(EXIT_CODES)
    for name in app:
        if not name.startswith("-"):
            app[name].help_epilogue = _epilogue((0, 1, 2, *OF_DATA.get(name, ()), 130, 143))


def _epilogue(codes: Iterable[int]) -> str:
    return f"Exit codes: {', '.join(f'{code} {EXIT_CODES[code]}' for code in codes)}."


_list_exit_codes()


def main(tokens: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run_command(tokens))


def run_command(tokens: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        tokens: the arguments after `idxflow`; None: as typed.
    """
    relax_garbage_collection()
    with guarded_streams():
        return _ended(sys.argv[1:] if tokens is None else tokens)


def _ended(tokens: list[str]) -> int:
    try:
        environment.prepare()
        with interruptible():
            if tokens[:1] != ["prefect"]:
                _refuse_empty(tokens)
            code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except ReaderGone:
        # As in `idxflow datasets | head`, which has read all it needs.
        return 0
    except (Exception, KeyboardInterrupt) as error:
        forced_run = tokens[:1] == ["run"] and "--force" in tokens
        # A forced training does not go on where it was; it begins again.
        failure = _failure(error, tokens[0] if tokens and not forced_run else "")
        if not failure:
            raise
        return _print_failure(failure, as_json="--json" in tokens)
    return code if isinstance(code, int) else 0


def _refuse_empty(tokens: list[str]) -> None:
    """Refuse empty values: `--store "$STORE"` with an unset variable must not act on the default store.

    Nor must `manifest "$FOLDER"` act on the current folder, which is what an empty path means.

    Raises:
        ConfigError: an option or an argument has an empty value.
    """
    for before, token in pairwise(("", *tokens)):
        empty = before if not token else token.rstrip("=") if re.fullmatch("--[a-z-]+=", token) else None
        if empty is not None:
            is_option = empty.startswith("--")
            what, remedy = (empty, ", or leave the option out") if is_option else ("each argument", "")
            raise ConfigError(
                f"expected a value for {what}; found an empty one, perhaps an unset variable; give a value{remedy}"
            )


def _failure(error: BaseException, command: str) -> Failure | None:
    """Return why a command failed; None for an unexpected error."""
    kind = type(error).__name__
    if isinstance(error, IdxflowError):
        return error.failure
    if isinstance(error, CycloptsError):
        help_of = " ".join(("idxflow", *(error.command_chain or ()), "--help"))
        return Failure(ConfigError.__name__, f"{error} See `{help_of}`.", ConfigError.exit_code)
    if isinstance(error, Terminated):
        return Failure(kind, f"terminated{_THEN.get(command, '')}", 128 + signal.SIGTERM)
    if isinstance(error, KeyboardInterrupt):
        return Failure("Interrupted", f"interrupted{_THEN.get(command, '')}", 128 + signal.SIGINT)
    if isinstance(error, RuntimeError) and (words := _of_path(error)):
        return Failure(ConfigError.__name__, words, ConfigError.exit_code)
    words = shortage(error) or _obstacle(error)
    return Failure(kind, words, IdxflowError.exit_code) if words else None


def _obstacle(error: BaseException) -> str | None:
    """Return which file or folder could not be used; None if `error` names none."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes):
        return None
    return f"cannot use {os.fsdecode(error.filename)}: {error.strerror}; correct that, or choose another place"


def _of_path(error: RuntimeError) -> str | None:
    """Return which path cannot be followed; None if the error is not one of `pathlib`, which has no type for these."""
    text = str(error)
    if text.startswith("Could not determine home dir"):
        return (
            "expected a path that begins with ~ to name a user with a home folder; found none; correct the name, or "
            "give the whole path"
        )
    if text.startswith("Symlink loop from "):
        loop = text.removeprefix("Symlink loop from ")
        return f"expected a path that leads somewhere; found links that lead in a circle at {loop}; give another path"
    return None


def _print_failure(failure: Failure, as_json: bool) -> int:
    """Print why a command failed: a line on standard error, and with `--json` an object on standard output."""
    if as_json:
        print_json({"error": to_json(failure)})
    remark(failure.sentence)
    return failure.exit_code


if __name__ == "__main__":
    main()
