"""The `idxflow` command."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from flows import doctor, environment, figures, registry, reports, runs, status, upkeep
from flows.interruption import Terminated, interruptible
from flows.output import ReaderGone, guarded_streams
from flows.service import configuration
from flows.service.up import up
from flows.settings import be_quiet, collect_less
from storage.errors import ConfigError, IdxflowError, PrefectFailed, shortage
from storage.files import WAITING
from storage.words import counted

if TYPE_CHECKING:
    from flows.console import Console
    from flows.job import Request
    from flows.service.temporary import TemporaryServer
    from storage.catalog import Dataset

_log = logging.getLogger(__name__)

EXIT_CODES = """Exit codes:

- 0: done: promoted, kept or unchanged
- 1: anything else went wrong
- 2: wrong usage or configuration
- 3: the data was refused
- 4: no source could be reached
- 5: the model is below a floor
- 130: interrupted
- 143: terminated
"""

app = App(
    name="idxflow",
    help="Retrain an image classifier from IDX archives, keep the better model, report why.",
    help_epilogue=EXIT_CODES,
    help_format="markdown",
    version=version("idxflow"),
    # `main` says it in words.
    suppress_keyboard_interrupt=False,
)

Source = Annotated[
    str | None,
    Parameter(
        help="Folder or URL to take the archives from, before the mirrors. An address with credentials goes into the "
        "variable. [env var: IDXFLOW_SOURCE]"
    ),
]
StoreFolder = Annotated[
    str | None,
    Parameter(help="Folder to keep everything in; default: `store` beside the source code. [env var: IDXFLOW_STORE]"),
]
DatasetFile = Annotated[str | None, Parameter(help="Manifest (TOML) of your own data set, instead of DATASET.")]
ModelVersion = Annotated[str, Parameter(help="`champion`, or the number of a version.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object to standard output.")]


@app.command
def run(
    dataset: str = "digits",
    *,
    profile: Annotated[str, Parameter(help="Training recipe: `default`, `tutorial` or `fast`.")] = "default",
    set_: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            help="One training parameter, such as `epochs=5` or `hidden=[100,50]`; may repeat.",
            negative="",
            allow_leading_hyphen=True,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        Parameter(
            help="What the pixels may take while training, such as `2GiB`; more rows come in shards. "
            "Default: `512MiB`. Short for `--set memory=…`."
        ),
    ] = None,
    force: Annotated[
        bool, Parameter(negative="", help="Train, evaluate and decide again even if nothing is new.")
    ] = False,
    source: Source = None,
    store: StoreFolder = None,
    dataset_file: DatasetFile = None,
    as_json: AsJson = False,
) -> int:
    """Fetch, decode, validate, train, evaluate, decide, and write a report.

    What is in the store already is verified and reused, so running again is resuming. Each line says what a step
    did, how long it took, and why it ran or that it was reused.

    Examples: `idxflow run` · `idxflow run mnist --source ~/archives` · `idxflow run mnist --set epochs=5 --json` ·
    `idxflow run --dataset-file mine.toml`

    Args:
        dataset: A data set of the catalog (`idxflow datasets`).
    """
    from flows.job import Request

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
        dataset: A data set of the catalog (`idxflow datasets`).
    """
    from flows.job import Request

    return _run_flow("validate_dataset", Request(dataset, dataset_file, source=source, store=store), as_json)


@app.command
def datasets(*, as_json: AsJson = False) -> int:
    """List the data sets of the catalog."""
    from storage import catalog

    known = [catalog.find(name) for name in catalog.names()]
    if as_json:
        print(json.dumps([_described(dataset) for dataset in known], ensure_ascii=False))
        return 0
    for dataset in known:
        rows = " + ".join(f"{count:,}" for count in dataset.rows.values())
        height, width = dataset.image_shape
        where = "embedded" if dataset.embedded else f"{counted(len(dataset.archives[0].mirrors), 'mirror')}"
        print(
            f"{dataset.name:14} {dataset.title:34} {rows:>15} images of {height}×{width}, "
            f"{counted(len(dataset.classes), 'class', 'classes')}, {dataset.licence}, {where}"
        )
    return 0


@app.command
def manifest(
    folder: Path,
    *,
    name: Annotated[str | None, Parameter(help="Name of the data set; default: the folder's name.")] = None,
    digests: Annotated[
        bool, Parameter(help="Name size and digest of each archive: no other archives are accepted then.")
    ] = True,
    label_column: Annotated[
        int | None,
        Parameter(
            help="Which column of the label files is the class, from 0 on, where they have several (QMNIST).",
            validator=Number(gte=0),
        ),
    ] = None,
) -> int:
    """Write a manifest for your own four IDX files to standard output, with their digests.

    The files are found by their usual names (`train-images…`, `train-labels…`, `t10k-images…` or `test-images…`,
    `t10k-labels…` or `test-labels…`); sizes, classes and their labels, the range of the pixels and digests are read
    from them.
    Example: `idxflow manifest ~/letters > letters.toml`, then `idxflow run --dataset-file letters.toml`.

    Args:
        folder: Where the four files are.
    """
    from flows.manifest import manifest_of

    print(manifest_of(folder, name, digests, label_column), end="")
    return 0


@app.command
def predict(
    dataset: str,
    files: Annotated[list[Path], Parameter(negative="")],
    *,
    version: ModelVersion = "champion",
    out: Annotated[Path | None, Parameter(help="Parquet file to write, a row per image.")] = None,
    resize: Annotated[bool, Parameter(negative="", help="Scale images of another size, with antialiasing.")] = False,
    scale: Annotated[
        bool, Parameter(negative="", help="Scale pixels of 0-255 to the range that the model was trained on.")
    ] = False,
    invert: Annotated[bool, Parameter(negative="", help="Exchange bright and dark, such as 255 - x.")] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Classify images by the champion: class, probability and model version of each.

    Files may be IDX (plain or gzip), PNG, JPEG, BMP, .npy or .npz (its array `images`, else its first of three
    dimensions). Pixels are 8-bit grey, as in the archives. Exit code 3 if a file cannot be used.

    Examples: `idxflow predict mnist seven.png` · `idxflow predict mnist t10k-images-idx3-ubyte.gz --out all.parquet`

    Args:
        dataset: The data set whose model answers.
        files: Files of images.
    """
    from flows.predict import Wanted, predict_files

    return predict_files(Wanted(dataset, tuple(files), version, out, resize, scale, invert, store), as_json)


@app.command
def export(
    dataset: str,
    *,
    version: ModelVersion = "champion",
    format_: Annotated[str, Parameter(name="--format", help="`keras`, `savedmodel` or `onnx`.")] = "keras",
    out: Annotated[
        Path | None, Parameter(help="Folder to make; it must not exist. Default: `DATASET-vN-FORMAT` here.")
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Write a model for use without idxflow: raw pixels in, probabilities out.

    Before the folder gets its name, the export is loaded and must give idxflow's own probabilities within 0.00001.

    Args:
        dataset: The data set whose model is written.
    """
    from flows.predict import export_version

    return export_version(dataset, version, format_, out, store, as_json)


@app.command
def watch(
    folder: Path,
    *,
    dataset: Annotated[str | None, Parameter(help="A data set of the catalog.")] = None,
    dataset_file: Annotated[Path | None, Parameter(help="Manifest (TOML) of your own data set.")] = None,
    every: Annotated[float, Parameter(help="Seconds between two looks.", validator=Number(gte=0.1))] = 5,
    once: Annotated[
        bool, Parameter(negative="", help="Announce what is there, if it is new and complete, and end.")
    ] = False,
    marker: Annotated[
        str | None,
        Parameter(help="Name of a file that the sender writes last: no set is complete before. Default: none."),
    ] = None,
    store: StoreFolder = None,
) -> int:
    """Watch a folder; when new archives in it are complete, have them retrained.

    A complete set is copied into the store, and a run of the deployment `retrain/inbox` is made for it, one after the
    other; then the folder may change. A set that is still being copied is waited for; the same set is run only once.

    Example: `idxflow watch ~/inbox --dataset-file letters.toml`, beside a running `idxflow up`.

    Args:
        folder: Where the archives arrive, with the names that the manifest gives them.
    """
    from flows.watch import Wanted, watch_folder

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

    environment = client.environment()
    command = server.prefect(*arguments)
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


def main(tokens: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(_main(tokens))


def _main(tokens: list[str] | None) -> int:
    with guarded_streams():
        return _ended(tokens)


def _ended(tokens: list[str] | None) -> int:
    try:
        environment.prepare()
        with interruptible():
            code = app(tokens, exit_on_error=False, print_error=True, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError:
        return ConfigError.exit_code
    except IdxflowError as error:
        print(f"idxflow: {error}", file=sys.stderr)
        return error.exit_code
    except Terminated:
        print("idxflow: terminated; the same command goes on from where it was", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print("idxflow: interrupted; the same command goes on from where it was", file=sys.stderr)
        return 130
    except (ImportError, RuntimeError, MemoryError, OSError) as error:
        words = shortage(error)
        if not words:
            raise
        print(f"idxflow: {words}", file=sys.stderr)
        return 1
    except ReaderGone:
        # Of our output (`idxflow datasets | head`): it has what it wanted.
        return 0
    return code if isinstance(code, int) else 0


def _run_flow(flow: str, request: Request, as_json: bool) -> int:
    """Run one of the flows of `flows.retrain` in this process, showing its steps as they end."""
    from flows.job import refusal
    from storage.store import store_root

    try:
        # Wrong usage is said in milliseconds, not after Prefect has started.
        request.resolve()
        store_root(request.store)
        outcome = _watch(flow, request, as_json)
    except IdxflowError as error:
        outcome = refusal(request, error)
        print(f"idxflow: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps(outcome, ensure_ascii=False))
    return outcome["error"]["exit_code"] if outcome["error"] else 0


def _watch(flow: str, request: Request, as_json: bool) -> dict[str, Any]:
    from flows.console import Console

    collect_less()
    # Before Prefect is imported.
    be_quiet()
    configuration.read()
    # Nor are log lines that could not be sent to its server worth a line each.
    logging.raiseExceptions = False
    with interruptible() as interruptions, Console(as_json) as console:
        outcome = console.watch(lambda: _call(flow, request, console))
        if interruptions and outcome["error"]:
            raise interruptions[0]
        return outcome


def _call(flow: str, request: Request, console: Console) -> dict[str, Any]:
    """Call the flow. What it needs is imported while Prefect's server, if it has to be started, starts."""
    with ExitStack() as stack:
        with console.waiting("importing Prefect") as waiting_for:
            server = stack.enter_context(_server())
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
def _server() -> Iterator[TemporaryServer | None]:
    """Have Prefect use the server it is configured with, else that of `idxflow up`, else one that is yielded."""
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
        with temporary.temporary_server() as server:
            yield server


def _called(flow: Callable[..., Any], request: Request) -> dict[str, Any]:
    from flows import retrain
    from flows.job import RunFailed

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
    outcome: dict[str, Any] = result
    return outcome


def _described(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "title": dataset.title,
        "rows": dict(dataset.rows),
        "image_shape": dataset.image_shape,
        "classes": dataset.classes,
        "embedded": dataset.embedded,
        "licence": dataset.licence,
        "homepage": dataset.homepage,
        "mirrors": sorted({url.rsplit("/", 1)[0] + "/" for a in dataset.archives for url in a.mirrors}),
    }


if __name__ == "__main__":
    main()
