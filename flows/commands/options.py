"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

Source = Annotated[
    str | None,
    Parameter(
        help="Folder or URL of the archives, tried before the mirrors. Put a URL with credentials into the "
        "environment variable instead. [env var: IDXFLOW_SOURCE]"
    ),
]
StoreFolder = Annotated[
    str | None,
    Parameter(
        help="Folder of the store, or its address such as `s3://bucket/prefix`. Default: `store` next to the source "
        "code. [env var: IDXFLOW_STORE]"
    ),
]
Recipe = Annotated[
    str,
    Parameter(
        help="Training recipe: `default`, `tutorial`, `fast`, `conv`, `best`, or `tuned`, which `idxflow tune` makes."
    ),
]
Settings = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        help="Set a training parameter, such as `epochs=5` or `hidden=[100,50]`. Can be repeated.",
        negative="",
        allow_leading_hyphen=True,
    ),
]
DatasetFile = Annotated[str | None, Parameter(help="Manifest (TOML) of your own data set, instead of DATASET.")]
DatasetFiles = Annotated[
    list[str] | None,
    Parameter(
        name="--dataset-file",
        help="Manifest (TOML) of your own data set, instead of DATASET. Can be repeated.",
        negative="",
    ),
]
AsOf = Annotated[
    str | None,
    Parameter(
        help="Use only archives of this day or earlier, such as 2026-11-30; those without a date have always been "
        "there. See docs/how-to/parts.md."
    ),
]
Quarantine = Annotated[
    str | None,
    Parameter(
        help="Bad rows to set aside instead of stopping: words from `blank`, `duplicate`, `conflict`, `leaked`, "
        "`label`, `suspect`, with commas between, or `none`. Default: `[quarantine] checks` of the manifest."
    ),
]
QuarantineLimit = Annotated[
    float | None,
    Parameter(
        help="Largest share of a split's rows to set aside, from 0 to 1. Default: `[quarantine] max_share` of the "
        "manifest, or 0.01.",
        validator=Number(gte=0, lte=1),
    ),
]
Workers = Annotated[
    str | None,
    Parameter(
        help="Who computes the parts of large data: a number of processes to start for this run, or the address of a "
        "Dask cluster, such as `tls://scheduler:8786`. Default: this process. [env var: IDXFLOW_WORKERS]"
    ),
]
InsecureWorkers = Annotated[
    bool,
    Parameter(
        negative="",
        help="Allow a scheduler on another machine that requires no certificate (`tcp://`): anyone who can reach it "
        "can run code on its workers. [env var: IDXFLOW_INSECURE_WORKERS]",
    ),
]
ModelVersion = Annotated[str, Parameter(help="`champion`, or a version number.")]
SplitName = Literal["train", "test"]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON value to standard output.")]
Timings = Annotated[
    bool,
    Parameter(negative="", help="Print where the seconds went: imports, Prefect, each kind of request, each step."),
]
Limit = Annotated[int, Parameter(help="Maximum number of lines.", validator=Number(gte=1))]
Reason = Annotated[str | None, Parameter(help="Reason, in one sentence. Required; recorded in the ledger.")]


def words(quarantine: str | None) -> tuple[str, ...] | None:
    """Return the words that `--quarantine` was given; None if it was not."""
    from storage.datasets.manifest import NOTHING

    if quarantine is None:
        return None
    words = tuple(word.strip() for word in quarantine.split(","))
    return () if words == (NOTHING,) else words
