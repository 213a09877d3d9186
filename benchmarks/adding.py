"""Making a data set of what people have: `python -m benchmarks.adding "idxflow, CSV"`.

The sources hold the real MNIST: the training images as Kaggle's table has them (a header, the label, 784 pixels), and
all 70,000 as PNG files in a folder for each class.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import subjects
from benchmarks.subjects import Measured, load

TABLE_ROWS = 42_000
"""As many as Kaggle's table has."""
PICTURES = 70_000
QUICK = 2_000


def table() -> Path:
    """Return the table, written once for all processes."""
    path = subjects.work_folder() / "table.csv"
    if not path.exists():
        rows = QUICK if subjects.quick() else TABLE_ROWS
        cells = np.column_stack([load("train-labels")[:rows], load("train-images")[:rows].reshape(rows, -1)])
        header = ",".join(["label", *(f"pixel{number}" for number in range(cells.shape[1] - 1))])
        temporary = path.with_suffix(".tmp")
        np.savetxt(temporary, cells, "%d", ",", header=header, comments="")
        temporary.rename(path)
    return path


def pictures() -> Path:
    """Return the folder of pictures, written once for all processes."""
    from PIL import Image

    folder = subjects.work_folder() / "pictures"
    if not folder.exists():
        temporary, number = subjects.new_folder("pictures"), 0
        for split in ("train", "test"):
            for image, label in zip(load(f"{split}-images"), load(f"{split}-labels"), strict=True):
                if number < (QUICK if subjects.quick() else PICTURES):
                    place = temporary / str(label) / f"{number}.png"
                    place.parent.mkdir(exist_ok=True)
                    Image.fromarray(image).save(place)
                    number += 1
        temporary.rename(folder)
    return folder


def ours(name: str, source: Callable[[], Path]) -> Measured:
    """Add the source as `idxflow dataset add` does: read, checked, divided, packed, with manifest and picture."""
    from tasks.adding.add import AddOptions, add

    path, folder = source(), subjects.new_folder("added") / "mine"

    def once() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        add(AddOptions("mine", path, folder, test_fraction=0.15))

    return Measured({name: subjects.timed(once, 1)})


def pandas_table(name: str) -> Measured:
    """Read the table into a data frame, and no more."""
    import pandas as pd

    path = table()
    return Measured({name: subjects.timed(lambda: pd.read_csv(path), 1)})


def pillow_loop(name: str) -> Measured:
    """Read each picture as an array, and no more."""
    from PIL import Image

    files = sorted(pictures().glob("*/*.png"))
    return Measured({name: subjects.timed(lambda: [np.asarray(Image.open(file)) for file in files], 1)})


VARIANTS: subjects.Variants = {
    "idxflow, table": partial(ours, "idxflow, table", table),
    "pandas.read_csv": partial(pandas_table, "pandas.read_csv"),
    "idxflow, pictures": partial(ours, "idxflow, pictures", pictures),
    "Pillow loop": partial(pillow_loop, "Pillow loop"),
}

if __name__ == "__main__":
    subjects.answer(VARIANTS)
