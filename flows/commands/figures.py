"""`idxflow figures`: one example of each class of a data set, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands.destination import PICTURES, destination, write_picture
from flows.commands.options import SplitName, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.examples import examples
from flows.terminal.output import print_line, remark


def figures(
    dataset: str,
    *,
    out: Annotated[
        Path | None, Parameter(help="File to write, .png or .svg. Default: `DATASET.png` in the current folder.")
    ] = None,
    split: Annotated[SplitName, Parameter(help="Split to take the images from.")] = "train",
    force: Annotated[bool, Parameter(negative="", help="Overwrite a file of another kind.")] = False,
    store: StoreFolder = None,
) -> int:
    """Draw one example image of each class.

    The images are those of the newest run of the data set.

    Example: `idxflow figures mnist --out mnist.svg`

    Args:
        dataset: A data set of the store.
    """
    data = DatasetInStore.open(dataset, store)
    file = destination("--out", out or Path(f"{dataset}.png"), PICTURES, data.store, force)
    with data.store.in_use(dataset):
        sample = examples(data, split)
    write_picture(file, sample.images, [[name] for name in sample.names])
    if sample.without:
        remark(f"{dataset}: no {split} image of {', '.join(sample.without)}")
    total = len(sample.names) + len(sample.without)
    print_line(f"{file}: examples of {len(sample.names)} of {total} classes of {dataset}, {split} split")
    return 0
