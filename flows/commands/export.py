"""`idxflow export`: a model for use without idxflow. All formats but ONNX load TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.commands.options import AsJson, ModelVersion, StoreFolder
from flows.terminal.output import print_json, print_line
from flows.terminal.streams import without_log_warnings
from storage.opening import open_store
from storage.records import to_json
from storage.words import counted

if TYPE_CHECKING:
    from tasks.serving.export import Export


def export(
    dataset: str,
    *,
    version: ModelVersion = "champion",
    format_: Annotated[str, Parameter(name="--format", help="`keras`, `savedmodel`, `onnx` or `litert`.")] = "keras",
    out: Annotated[
        Path | None,
        Parameter(help="Folder to create; it must not exist. Default: `DATASET-vN-FORMAT` in the current folder."),
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Write a model for use without idxflow.

    It takes raw pixels and returns probabilities. The export is loaded and checked before it is published: its
    probabilities must be within 0.00001 of idxflow's own. The folder also gets a model card, `README.md`: what the
    model is for, how good it is for each class, what it was made from, and code that loads it.

    `onnx` (for ONNX Runtime) and `litert` (formerly TensorFlow Lite, for phones and small devices) need the extra
    `export`.

    Examples: `idxflow export mnist` · `idxflow export mnist --version 7 --format onnx --out model`

    Args:
        dataset: The data set whose model is exported.
    """
    from tasks.serving.export import export_version

    # The model card leaves out what cannot be read.
    with without_log_warnings():
        exported = export_version(open_store(store), dataset, version, format_, out)
    if as_json:
        return print_json({**to_json(exported), "folder": str(exported.folder), "error": None})
    print_line(_sentence(exported))
    return 0


def _sentence(exported: Export) -> str:
    return (
        f"v{exported.version} as {exported.format} in {exported.folder}: "
        f"probabilities of {counted(exported.rows, 'image')} within {exported.difference:.1g} of the model's own"
    )
