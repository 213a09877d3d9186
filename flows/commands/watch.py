"""`idxflow watch`: retrain when new archives arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.commands.options import StoreFolder


def watch(
    folder: Path,
    *,
    dataset: Annotated[str | None, Parameter(help="A data set of the catalog.")] = None,
    dataset_file: Annotated[Path | None, Parameter(help="Manifest (TOML) of your own data set.")] = None,
    every: Annotated[float, Parameter(help="Polling interval in seconds.", validator=Number(gte=0.1))] = 5,
    once: Annotated[bool, Parameter(negative="", help="Check once: announce a new, complete set, then exit.")] = False,
    marker: Annotated[
        str | None,
        Parameter(
            help="Name of a file that the sender writes last; a set is complete only once it exists. Default: none."
        ),
    ] = None,
    store: StoreFolder = None,
) -> int:
    """Watch a folder and retrain when new archives are complete.

    Each complete set is copied into the store and gets a run of the deployment `retrain/inbox`, one set after the
    other; from then on the folder may change. It waits for sets that are still being copied, and runs the same set
    only once.

    Example: `idxflow watch ~/inbox --dataset-file letters.toml`, while `idxflow up` is running.

    Args:
        folder: Folder in which the archives arrive, under the file names of the manifest.
    """
    from flows.watcher import WatchOptions, watch_folder

    return watch_folder(WatchOptions(folder, dataset, dataset_file, every, once, marker, store))
