"""`idxflow datasets`: list the catalog."""

from __future__ import annotations

from typing import Any

from flows.commands.options import AsJson
from flows.terminal.output import print_json, print_table
from storage.datasets import catalog
from storage.datasets.catalog import Dataset
from storage.words import counted


def datasets(*, as_json: AsJson = False) -> int:
    """List the data sets of the catalog.

    Each of them can be run by its name: `idxflow run kmnist`. Your own data needs a manifest: `idxflow manifest`. The
    six of EMNIST are in one ZIP file of 562 MB, which is downloaded once.

    Example: `idxflow datasets --json`
    """
    entries = [catalog.find(name) for name in catalog.names()]
    if as_json:
        return print_json([_values(dataset) for dataset in entries])
    longest = max(len(dataset.name) for dataset in entries)
    print_table(_cells(dataset, longest) for dataset in entries)
    return 0


def _cells(dataset: Dataset, longest: int) -> tuple[str, str]:
    rows = " + ".join(f"{count:,}" for count in dataset.rows.values())
    height, width = dataset.image_shape
    mirrors = dataset.zipped.mirrors if dataset.zipped else dataset.archives[0].mirrors
    where = "embedded" if dataset.embedded else counted(len(mirrors), "mirror")
    return (
        f"{dataset.name:{longest}} {dataset.title:35}",
        f"{rows:>17} images of {height}×{width}, {counted(len(dataset.classes), 'class', 'classes')}, "
        f"{dataset.licence}, {where}",
    )


def _values(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "title": dataset.title,
        "rows": dict(dataset.rows),
        "image_shape": dataset.image_shape,
        "classes": dataset.classes,
        "embedded": dataset.embedded,
        "licence": dataset.licence,
        "homepage": dataset.homepage,
        "mirrors": sorted({url.rsplit("/", 1)[0] + "/" for url in _urls(dataset)}),
    }


def _urls(dataset: Dataset) -> list[str]:
    """Return the addresses of all files that a data set is published in."""
    return [*(url for a in dataset.archives for url in a.mirrors), *(dataset.zipped.mirrors if dataset.zipped else ())]
