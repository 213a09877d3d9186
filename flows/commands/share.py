"""`idxflow share`: what the store knows, for the tools that people already have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from flows.commands.destination import destination, write
from flows.commands.options import AsJson, ModelVersion, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.terminal import bars
from flows.terminal.output import print_json, print_line, print_utf8
from flows.terminal.streams import without_log_warnings
from storage.errors import ConfigError
from storage.opening import open_store
from storage.words import counted

if TYPE_CHECKING:
    from flows.sharing.mlflow_runs import Request, Sent

app = App(name="share", help="Send runs to MLflow or TensorBoard, or print a model card.")


@app.command
def tensorboard(
    dataset: str,
    *runs: str,
    logdir: Annotated[Path, Parameter(help="Folder that `tensorboard --logdir` is given; made if missing.")],
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Write event files of runs, for TensorBoard.

    Each run gets a folder LOGDIR/DATASET/RUN with loss and accuracy by epoch, learning rate, gradient norms, test
    scores, hyperparameters, the decision and the most confident mistakes. Writing again replaces only what has changed.
    Runs that changed nothing are left out. Needs the extra `tensorboard`.

    Examples: `idxflow share tensorboard mnist --logdir logs` · `idxflow share tensorboard mnist latest --logdir logs`

    Args:
        dataset: A data set of the store.
        runs: Ids of runs, or beginnings of them, `latest` or `champion`. Default: all.
    """
    from flows.sharing.tensorboard_files import write

    data = DatasetInStore.open(dataset, store)
    with bars.shown(), without_log_warnings():
        result = write(data, logdir, runs)
    if as_json:
        values = {"folder": str(result.folder), "written": result.written, "present": result.present}
        return print_json({"dataset": dataset, **values, "error": None})
    present = f"; {len(result.present):,} were there already" if result.present else ""
    print_line(f"{dataset}: event files of {counted(len(result.written), 'run')} written to {result.folder}{present}")
    return 0


@app.command
def mlflow(
    dataset: str,
    *runs: str,
    at: Annotated[
        str | None,
        Parameter(
            help="Address of a tracking server (`http://…`) or a database (`sqlite:///mlflow.db`), without "
            "credentials. [env var: MLFLOW_TRACKING_URI]"
        ),
    ] = None,
    name: Annotated[
        str | None, Parameter(help="Name of the experiment and of the registered model. Default: DATASET.")
    ] = None,
    files: Annotated[
        str | None,
        Parameter(
            help="Where a new experiment in a database keeps its files. Default: `mlartifacts` beside the file of "
            "SQLite."
        ),
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Send runs and models to an MLflow server or database.

    Each run becomes a run there, with parameters, metrics by epoch, test scores, both splits, its report and its model;
    each version becomes a version of a registered model, and the champion's gets the alias `champion`. Call it again
    after a run, a promotion or a rollback: it sends what is missing, and moves the alias. Runs that changed nothing are
    left out. Needs the extra `mlflow`.

    Credentials are those of MLflow's own variables, such as MLFLOW_TRACKING_TOKEN.

    Examples: `idxflow share mlflow mnist --at http://127.0.0.1:5000` · `idxflow share mlflow mnist latest`

    Args:
        dataset: A data set of the store.
        runs: Ids of runs, or beginnings of them, `latest` or `champion`. Default: all that are not there yet.
    """
    from flows.sharing.mlflow_place import place
    from flows.sharing.mlflow_runs import Request, send

    data = DatasetInStore.open(dataset, store)
    where = place(at)
    request = Request(data, where, _name(name or dataset), runs, files)
    with bars.shown(), without_log_warnings():
        result = send(request)
    if as_json:
        return print_json(_values(request, result))
    print_line(f"{dataset}: {'; '.join(_clauses(result, data.registry.standing().champion))}; at {where.shown}")
    return 0


def _name(name: str) -> str:
    """Return a name that MLflow takes for an experiment and a model, and that needs no quotes in its filters.

    Raises:
        ConfigError: it is another one.
    """
    if not re.fullmatch(r"[\w\-. ]{1,200}", name):
        raise ConfigError(
            f"expected --name to have letters, digits, spaces, `-`, `_` and `.`; found {name[:40]!r}; choose another"
        )
    return name


def _clauses(sent: Sent, newest: int | None) -> Iterator[str]:
    """Yield what was done.

    Args:
        newest: the champion's version here; None without a champion.
    """
    yield f"{counted(len(sent.sent), 'run')} sent"
    if sent.present:
        yield f"{len(sent.present):,} were there already"
    if sent.deleted:
        yield f"{len(sent.deleted):,} deleted there, which stay deleted"
    if sent.models.versions:
        yield counted(len(sent.models.versions), "version") + " in the registry"
    champion = sent.models.champion
    if champion:
        yield f"champion is v{champion} (version {sent.models.versions[champion]} there)"
    elif newest:
        # It was deleted there, or `gc` had removed its model before it was sent.
        yield f"the champion v{newest} is not there, so no version has the alias"


def _values(request: Request, sent: Sent) -> dict[str, Any]:
    models = sent.models
    return {
        "dataset": request.data.name,
        "at": request.place.shown,
        "experiment": request.name,
        "sent": sent.sent,
        "present": sent.present,
        "deleted": sent.deleted,
        "versions": [{"version": ours, "registered": theirs} for ours, theirs in models.versions.items()],
        "champion": models.champion,
        "alias_moved": models.moved,
        "error": None,
    }


@app.command
def card(
    dataset: str,
    *,
    version: ModelVersion = "champion",
    licence: Annotated[str, Parameter(help="Licence of the model, such as `Apache-2.0`. Default: none yet.")] = "",
    out: Annotated[Path | None, Parameter(help="Write it to this .md file instead.")] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Print the model card of a version.

    It is Markdown, with metadata for the Hugging Face Hub. It says what the model is for, how good it is for each class
    and slice, and what it was made from, as far as the store knows. Each `idxflow export` has it as `README.md`, with
    the code that loads the export.

    Examples: `idxflow share card mnist` · `idxflow share card mnist --version 7 --licence MIT --out card.md`

    Args:
        dataset: The data set whose model it is about.
    """
    from tasks.serving.card import card as card_of

    opened = open_store(store)
    file = destination("--out", out, (".md",), opened) if out else None
    with without_log_warnings():
        text = card_of(opened, dataset, version, licence)
    if file:
        write(file, text.encode())
    if as_json:
        return print_json({"dataset": dataset, "file": str(file) if file else None, "card": text, "error": None})
    if file:
        print_line(str(file))
    else:
        print_utf8(text)
    return 0
