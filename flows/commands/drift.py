"""`idxflow drift`: whether new images differ from what the champion was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.commands.destination import destination, write
from flows.commands.options import AsJson, DatasetFile, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.terminal.output import print_json, print_line, print_table, remark
from storage.errors import DRIFTED

if TYPE_CHECKING:
    from tasks.drifting.compare import Verdict


def drift(
    dataset: str,
    source: Annotated[Path, Parameter(name="from")],
    *,
    labels: Annotated[Path | None, Parameter(help="IDX file with the labels of the images, if FROM is a file.")] = None,
    resize: Annotated[bool, Parameter(negative="", help="Resize images of another size, with antialiasing.")] = False,
    scale: Annotated[
        bool, Parameter(negative="", help="Scale pixels of 0-255 to the pixel range of the training data.")
    ] = False,
    invert: Annotated[bool, Parameter(negative="", help="Invert the pixels (255 - x).")] = False,
    out: Annotated[
        Path | None,
        Parameter(
            help="The .html file for all tests and the images that differ most. Default: `DATASET-drift.html` in the "
            "current folder; with --json, none."
        ),
    ] = None,
    dataset_file: Annotated[
        DatasetFile, Parameter(help="Manifest (TOML) with the limits. Default: that of DATASET.")
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Compare new images with what the champion was trained on.

    Tests labels, if there are any, the champion's answers, measures of each image such as its ink, the mean image, and
    whether a classifier can tell new from old. A difference counts if chance does not explain it, and it is larger
    than its limit: `[drift]` of the manifest. See docs/how-to/drift.md.
    Exit code 0: within the limits; 6: drifted; 3: the images cannot be used, or are too few.

    Examples: `idxflow drift mnist scans/` · `idxflow drift mnist new-images.gz --labels new-labels.gz --json`

    Args:
        dataset: A data set of the store.
        source: A file of images, a folder of pictures, what `idxflow dataset add` reads, or the word `log`: the images
            that `idxflow serve --log-images` has kept.
    """
    from flows.drift import Asked, look
    from flows.terminal.bars import shown

    data = DatasetInStore.open(dataset, store)
    file = None
    if out or not as_json:
        file = destination("--out", out or Path(f"{dataset}-drift.html"), (".html",), data.store)
    manifest = Path(dataset_file) if dataset_file else None
    asked = Asked(source, labels, manifest, resize, scale, invert)
    with data.store.in_use(dataset), shown():
        found = look(data, asked, lambda text: remark(f"note: {text}"))
    if file:
        from tasks.report.drift_page import page

        write(file, page(found.values(), found.pictures()).encode())
    if as_json:
        print_json({**found.values(), "page": str(file) if file else None})
    else:
        longest = max(len(verdict.name) for verdict in found.comparison.verdicts)
        print_table(_cells(verdict, longest) for verdict in found.comparison.verdicts)
        print_line(found.sentence)
        print_line(f"pictures {file}")
    return DRIFTED if found.comparison.is_drifted else 0


def _cells(verdict: Verdict, longest: int) -> tuple[str, ...]:
    mark = "beyond" if verdict.is_beyond else "within"
    return (
        f"{mark}  {verdict.name:<{longest}}",
        f"{verdict.measure} {verdict.effect:.3f}",
        f"limit {verdict.limit:.2f}",
        # Smaller ones are zero as a float.
        f"p {verdict.corrected:.2g}" if verdict.corrected else "p < 1e-300",
    )
