"""`idxflow predict`: classify images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.commands.options import AsJson, ModelVersion, StoreFolder
from flows.terminal.output import print_json, print_line, remark
from flows.terminal.text import printable
from storage.words import counted

if TYPE_CHECKING:
    from tasks.serving.classify_files import Classified

SHOWN_WHOLE = 20
"""Up to this many rows are all printed; for more, the counts and the first rows."""
SHOWN_FIRST = 10


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
    invert: Annotated[bool, Parameter(negative="", help="Invert the pixels (255 - x).")] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Classify images with the champion.

    Prints class, probability and model version of each image. Files can be IDX (plain or gzip), PNG, JPEG, BMP, TIFF,
    GIF, .npy or .npz (the array `images`, or the first array with three dimensions). Pixels are 8-bit grey, as in the
    archives.
    Exit code 3 if a file cannot be used.

    Examples: `idxflow predict mnist seven.png` · `idxflow predict mnist t10k-images-idx3-ubyte.gz --out all.parquet`

    Args:
        dataset: The data set whose model classifies the images.
        files: Image files.
    """
    from tasks.serving.classify_files import PredictOptions, classify

    options = PredictOptions(dataset, tuple(files), version, out, resize, scale, invert, store)
    classified = classify(options, lambda text: remark(f"warning: {text}"))
    if as_json:
        return print_json(classified.values())
    _print(classified)
    return 0


def _print(classified: Classified) -> None:
    rows = classified.rows
    shown = rows if len(rows) <= SHOWN_WHOLE else rows[:SHOWN_FIRST]
    places = [printable(f"{row.file}[{row.row}]") for row in shown]
    width, wide = max(map(len, places)), max(len(row.name) for row in shown)
    for place, row in zip(places, shown, strict=True):
        print_line(f"{place:{width}}  {row.name:{wide}}  {row.probability:.4f}  v{row.version}")
    if len(rows) > len(shown):
        rest = "" if classified.out else "; --out FILE.parquet or --json for all"
        print_line(f"… {len(rows) - len(shown):,} more of {len(rows):,}{rest}")
        _print_counts(classified)
    if classified.out:
        print_line(f"{counted(len(rows), 'row')} written to {classified.out}")


def _print_counts(classified: Classified) -> None:
    counts = Counter(row.label for row in classified.rows)
    wide = max(map(len, classified.version.classes))
    for label, name in enumerate(classified.version.classes):
        print_line(f"{name:{wide}}  {counts[label]:>9,}  {counts[label] / len(classified.rows):6.1%}")
