"""`idxflow manifest`: describe your own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.terminal.output import print_utf8


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
            help="Column with the class, counted from 0, if label files have several columns (QMNIST).",
            validator=Number(gte=0),
        ),
    ] = None,
    label_base: Annotated[
        int | None,
        Parameter(help="Label of the first class: labels that do not count up from it without a gap are refused."),
    ] = None,
    transpose: Annotated[
        bool, Parameter(negative="", help="The files have rows and columns of each image swapped (EMNIST).")
    ] = False,
) -> int:
    """Write a manifest for your own IDX files.

    It goes to standard output, in UTF-8. The files are recognized by their usual names (`train-images…`,
    `train-labels…`, `t10k-images…` or `test-images…`, `t10k-labels…` or `test-labels…`); image size, classes, labels,
    pixel range and digests are read from them.

    A split may have several files, with numbers after `images` and `labels`: `train-images-000-idx3-ubyte.gz` and
    `train-labels-000-idx1-ubyte.gz`, and so on. They are listed by number.

    Example: `idxflow manifest ~/letters > letters.toml`, then `idxflow run --dataset-file letters.toml`.

    Args:
        folder: Folder with the files.
    """
    from storage.datasets.own_files import Layout, manifest_of

    print_utf8(manifest_of(folder, name, digests, Layout(label_column, label_base, transpose)))
    return 0
