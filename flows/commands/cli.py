"""The `idxflow` command."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from flows import environment
from flows.commands import doctor, figures, registry, reports, runs, status, upkeep
from flows.commands.options import AsJson, DatasetFile, ModelVersion, Source, StoreFolder
from flows.commands.output import ReaderGone, guarded_streams, remark, say_json, say_table, say_utf8
from flows.interruption import Terminated, interruptible
from flows.service import configuration
from flows.service.up import up
from flows.settings import be_quiet, collect_less
from storage.errors import EXIT_CODES, ConfigError, IdxflowError, PrefectFailed, shortage
from storage.files import WAITING
from storage.records import Failure, to_json
from storage.store import Store, store_root

if TYPE_CHECKING:
    from flows.commands.console import Console
    from flows.run import Request
    from flows.service.temporary import TemporaryServer
    from storage.outcomes import Outcome

_log = logging.getLogger(__name__)

OF_DATA = {"run": (3, 4, 5), "validate": (3, 4), "watch": (3, 4), "manifest": (3,), "predict": (3,)}
"""The codes that only some commands end with."""

app = App(
    name="idxflow",
    help="Retrain an image classifier from IDX archives, keep the better model, and report why.",
    help_format="markdown",
    # A flag that is off needs no default in its help.
    default_parameter=Parameter(show_default=lambda value: None if value is False else value),
    version=version("idxflow"),
    # `main` says it in words.
    suppress_keyboard_interrupt=False,
)


@app.command
def run(
    dataset: str = "digits",
    *,
    profile: Annotated[str, Parameter(help="Training recipe: `default`, `tutorial` or `fast`.")] = "default",
    set_: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            help="Set a training parameter, such as `epochs=5` or `hidden=[100,50]`. Can be repeated.",
            negative="",
            allow_leading_hyphen=True,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        Parameter(
            help="Memory for pixels during training, such as `2GiB`; larger data is read in shards. "
            "Default: `512MiB`. Short for `--set memory=…`."
        ),
    ] = None,
    force: Annotated[
        bool, Parameter(negative="", help="Train, evaluate and decide again even if nothing has changed.")
    ] = False,
    source: Source = None,
    store: StoreFolder = None,
    dataset_file: DatasetFile = None,
    as_json: AsJson = False,
) -> int:
    """Fetch, decode, validate, train, evaluate, decide, and write a report.

    Results that are in the store are verified and reused, so running again resumes an interrupted run. Each line says
    what a step did, how long it took, and why it ran or that it was reused.

    Examples: `idxflow run` · `idxflow run mnist --source ~/archives` · `idxflow run mnist --set epochs=5 --json` ·
    `idxflow run --dataset-file mine.toml`

    Args:
        dataset: A data set of the catalog: see `idxflow datasets`.
    """
    from flows.run import Request

    settings = (*(set_ or ()), *([f"memory={memory}"] if memory else ()))
    # The profile is just a text until `Request.resolve` has checked it.
    request = Request(dataset, dataset_file, profile, {}, settings, source, store, force)  # type: ignore[arg-type]
    return _run_flow("retrain", request, as_json)


@app.command
def validate(
    dataset: str = "digits",
    *,
    source: Source = None,
    store: StoreFolder = None,
    dataset_file: DatasetFile = None,
    as_json: AsJson = False,
) -> int:
    """Fetch, decode and validate a data set, and stop there. Exit code 3 if it is refused.

    Args:
        dataset: A data set of the catalog: see `idxflow datasets`.
    """
    from flows.run import Request

    return _run_flow("validate_dataset", Request(dataset, dataset_file, source=source, store=store), as_json)


@app.command
def datasets(*, as_json: AsJson = False) -> int:
    """List the data sets of the catalog."""
    from flows.datasets import described, table
    from storage.datasets import catalog

    if as_json:
        return say_json([described(catalog.find(name)) for name in catalog.names()])
    say_table(table())
    return 0


@app.command
def manifest(
    folder: Path,
    *,
    name: Annotated[str | None, Parameter(help="Name of the data set. Default: the folder's name.")] = None,
    digests: Annotated[
        bool, Parameter(help="Include size and SHA-256 of each archive, so that only these are accepted.")
    ] = True,
    label_column: Annotated[
        int | None,
        Parameter(
            help="Column with the class, counted from 0, where label files have several columns (QMNIST).",
            validator=Number(gte=0),
        ),
    ] = None,
) -> int:
    """Write a manifest for your own four IDX files to standard output, in UTF-8.

    The files are found by their usual names (`train-images…`, `train-labels…`, `t10k-images…` or `test-images…`,
    `t10k-labels…` or `test-labels…`); image size, classes, labels, pixel range and digests are read from them.

    Example: `idxflow manifest ~/letters > letters.toml`, then `idxflow run --dataset-file letters.toml`.

    Args:
        folder: Folder with the four files.
    """
    from flows.commands.manifest import manifest_of

    say_utf8(manifest_of(folder, name, digests, label_column))
    return 0


@app.command
def predict(
    dataset: str,
    files: Annotated[list[Path], Parameter(negative="")],
    *,
    version: ModelVersion = "champion",
    out: Annotated[Path | None, Parameter(help="Parquet file to write, one row per image.")] = None,
    resize: Annotated[bool, Parameter(negative="", help="Resize images of another size, with antialiasing.")] = False,
    scale: Annotated[
        bool, Parameter(negative="", help="Scale pixels of 0-255 to the pixel range of the training data.")
    ] = False,
    invert: Annotated[bool, Parameter(negative="", help="Invert the pixels: bright becomes dark.")] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Classify images with the champion: print class, probability and model version of each.

    Files can be IDX (plain or gzip), PNG, JPEG, BMP, .npy or .npz (the array `images`, or else the first array with
    three dimensions). Pixels are 8-bit grey, as in the archives. Exit code 3 if a file cannot be used.

    Examples: `idxflow predict mnist seven.png` · `idxflow predict mnist t10k-images-idx3-ubyte.gz --out all.parquet`

    Args:
        dataset: The data set whose model classifies the images.
        files: Image files.
    """
    from flows.commands.predict import Wanted, predict_files

    return predict_files(Wanted(dataset, tuple(files), version, out, resize, scale, invert, store), as_json)


@app.command
def export(
    dataset: str,
    *,
    version: ModelVersion = "champion",
    format_: Annotated[str, Parameter(name="--format", help="`keras`, `savedmodel` or `onnx`.")] = "keras",
    out: Annotated[
        Path | None,
        Parameter(help="Folder to create; it must not exist. Default: `DATASET-vN-FORMAT` in the current folder."),
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Write a model for use without idxflow: raw pixels in, probabilities out.

    The export is loaded and checked before it is published: its probabilities must be within 0.00001 of idxflow's own.

    Args:
        dataset: The data set whose model is exported.
    """
    from flows.commands.predict import export_version

    return export_version(dataset, version, format_, out, store, as_json)


@app.command
def watch(
    folder: Path,
    *,
    dataset: Annotated[str | None, Parameter(help="A data set of the catalog.")] = None,
    dataset_file: Annotated[Path | None, Parameter(help="Manifest (TOML) of your own data set.")] = None,
    every: Annotated[float, Parameter(help="Seconds between two checks of the folder.", validator=Number(gte=0.1))] = 5,
    once: Annotated[
        bool, Parameter(negative="", help="Check once: announce what is new and complete, then exit.")
    ] = False,
    marker: Annotated[
        str | None,
        Parameter(
            help="Name of a file that the sender writes last; a set is complete only once it is there. Default: none."
        ),
    ] = None,
    store: StoreFolder = None,
) -> int:
    """Watch a folder and retrain when new archives in it are complete.

    Each complete set is copied into the store and gets a run of the deployment `retrain/inbox`, one set after the
    other; from then on the folder may change. Sets that are still being copied are waited for, and the same set is run
    only once.

    Example: `idxflow watch ~/inbox --dataset-file letters.toml`, while `idxflow up` is running.

    Args:
        folder: Folder in which the archives arrive, under the file names of the manifest.
    """
    from flows.commands.watch import Wanted, watch_folder

    return watch_folder(Wanted(folder, dataset, dataset_file, every, once, marker, store))


@app.command(name="prefect", help_flags=[], version_flags=[])
def prefect_command(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run a command of Prefect's own against the server of `idxflow up`.

    It passes on the address of that server and its auth string, so nothing has to be exported. Where no server
    answers, it ends with an error; Prefect by itself would start one that asks nobody for a password.

    Examples: `idxflow prefect deployment run retrain/digits --watch` · `idxflow prefect flow-run ls`

    Args:
        arguments: What follows `prefect`; `idxflow prefect --help` lists Prefect's commands.
    """
    from flows.service import client, server

    command = server.prefect(*arguments)
    environment = os.environ if "--help" in arguments else client.environment()
    sys.stdout.flush()
    os.execve(command[0], command, environment)


app.command(registry.app)
app.command(registry.promote)
app.command(registry.rollback)
app.command(reports.report)
app.command(runs.app)
app.command(figures.figures)
app.command(status.status)
app.command(doctor.doctor)
app.command(upkeep.verify_store, name="verify")
app.command(upkeep.gc)
app.command(up)


def _list_exit_codes() -> None:
    """Have the help of each command list the codes that it can end with; of its subcommands, too."""
    app.help_epilogue = _epilogue(EXIT_CODES)
    for name in app:
        if not name.startswith("-"):
            app[name].help_epilogue = _epilogue((0, 1, 2, *OF_DATA.get(name, ()), 130, 143))


def _epilogue(codes: Iterable[int]) -> str:
    return f"Exit codes: {', '.join(f'{code} {EXIT_CODES[code]}' for code in codes)}."


_list_exit_codes()


def main(tokens: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(_main(tokens))


def _main(tokens: list[str] | None) -> int:
    collect_less()
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
        # Of our output (`idxflow datasets | head`): it has what it wanted.
        return 0
    except (Exception, KeyboardInterrupt) as error:
        failure = _failure(error, tokens[0] if tokens else "")
        if not failure:
            raise
        return _say_failure(failure, as_json="--json" in tokens)
    return code if isinstance(code, int) else 0


def _refuse_empty(tokens: list[str]) -> None:
    """Refuse empty values: `--store "$STORE"`, where that is not set, must not act on the default store.

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
                f"expected a value for {what}; found an empty one, such as a variable that is not set leaves; "
                f"give a value{remedy}"
            )


def _failure(error: BaseException, command: str) -> Failure | None:
    """Return why a command did not do what it was asked; None for an error that nobody expected."""
    kind = type(error).__name__
    # Rolling back twice goes back two champions.
    history = "`idxflow registry history DATASET` shows whether the champion was changed"
    then = history if command == "rollback" else "the same command resumes"
    if isinstance(error, IdxflowError):
        # What could not be opened for want of a descriptor is not damaged.
        starved = getattr(error.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE)
        words = shortage(error.__cause__) if starved and error.__cause__ else None
        return Failure(kind, words or str(error), error.exit_code)
    if isinstance(error, CycloptsError):
        help_of = " ".join(("idxflow", *(error.command_chain or ()), "--help"))
        return Failure(ConfigError.__name__, f"{error} See `{help_of}`.", ConfigError.exit_code)
    if isinstance(error, Terminated):
        return Failure(kind, f"terminated; {then}", 128 + signal.SIGTERM)
    if isinstance(error, KeyboardInterrupt):
        return Failure("Interrupted", f"interrupted; {then}", 128 + signal.SIGINT)
    words = shortage(error) or _obstacle(error)
    return Failure(kind, words, IdxflowError.exit_code) if words else None


def _obstacle(error: BaseException) -> str | None:
    """Return in words which file or folder the system has refused, if that is what `error` is about."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes):
        return None
    return f"expected to use {os.fsdecode(error.filename)}; {error.strerror}; correct that, or choose another place"


def _say_failure(failure: Failure, as_json: bool) -> int:
    """Say in a sentence why a command failed, with `--json` as an object on standard output, too."""
    if as_json:
        say_json({"error": to_json(failure)})
    remark(failure.sentence)
    return failure.exit_code


def _run_flow(flow: str, request: Request, as_json: bool) -> int:
    """Run one of the flows of `flows.retrain` in this process, showing its steps as they end."""
    from flows.run import refusal

    try:
        # Wrong usage is said in milliseconds, not after Prefect has started.
        request.resolve()
        store_root(request.store)
        outcome = _watch(flow, request, as_json)
    except IdxflowError as error:
        outcome = refusal(request, error)
        remark(str(error))
    if as_json:
        say_json(outcome.to_json())
    return outcome.exit_code


def _watch(flow: str, request: Request, as_json: bool) -> Outcome:
    from flows.commands.console import Console

    # Before Prefect is imported.
    be_quiet()
    configuration.read()
    # Nor are log lines that could not be sent to its server worth a line each.
    logging.raiseExceptions = False
    with interruptible() as interruptions, Console(as_json) as console:
        outcome = console.watch(lambda: _call(flow, request, console))
        if interruptions and outcome.error:
            raise interruptions[0]
        return outcome


def _call(flow: str, request: Request, console: Console) -> Outcome:
    """Call the flow. What it needs is imported while Prefect's server, if it has to be started, starts."""
    with ExitStack() as stack:
        with console.waiting("importing Prefect") as waiting_for:
            server = stack.enter_context(_server(Store(store_root(request.store))))
            from flows import retrain
            from flows.preload import preload

            if server:
                waiting_for("importing what the run needs, while Prefect's server starts")
                if flow == "retrain":
                    preload(request, server.is_decided)
                waiting_for("waiting for Prefect's server")
                server.wait()
        return _called(getattr(retrain, flow), request)


@contextmanager
def _server(store: Store) -> Iterator[TemporaryServer | None]:
    """Have Prefect use the server it is configured with, else that of `idxflow up`, else one that is yielded.

    Args:
        store: what can be collected where that one finds its disk full.
    """
    from flows.service import client, temporary

    if configuration.url():
        with client.used_as_configured():
            yield None
    elif running := client.server_of_up():
        _log.info("using the Prefect server of `idxflow up` at %s", running.ui, extra=WAITING)
        with client.used(running):
            yield None
    else:
        _log.info("starting Prefect for this run (the first time takes longest)", extra=WAITING)
        with temporary.temporary_server(store.command("gc")) as server:
            yield server


def _called(flow: Callable[..., Any], request: Request) -> Outcome:
    from flows import retrain
    from flows.run import RunFailed

    parameters: dict[str, Any] = {
        "dataset": request.dataset,
        "source": request.source,
        "store": request.store,
        "dataset_file": request.dataset_file,
    }
    if flow is retrain.retrain:
        parameters |= {"profile": request.profile, "training": request.overrides, "force": request.force}
    try:
        state = flow(**parameters, return_state=True)
    except Exception as error:
        # The flow returns its own failures as states, so this is Prefect's.
        place = configuration.source()
        remedy = f"is the server at {configuration.url()} up? Start it, or remove {place}" if place else "try again"
        raise PrefectFailed(f"expected Prefect to run the flow; {type(error).__name__}: {error}; {remedy}") from error
    result = state.result(raise_on_failure=False)
    if isinstance(result, RunFailed):
        return result.outcome
    if isinstance(result, BaseException):
        raise result
    outcome: Outcome = result
    return outcome


if __name__ == "__main__":
    main()
