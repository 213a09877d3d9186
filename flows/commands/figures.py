"""`idxflow figures`: one example of each class of a data set, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.commands.options import StoreFolder
from flows.commands.output import destination, remark, say, write
from flows.commands.registry import Place, open_place
from storage.errors import ConfigError, DamagedEntry
from storage.outcomes import steps_of
from storage.records import Split, SplitName

if TYPE_CHECKING:
    import numpy as np

PICTURES = (".png", ".svg")


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
    """Draw one example image of each class, from the newest run of a data set.

    Example: `idxflow figures mnist --out mnist.svg`

    Args:
        dataset: A data set of the store.
    """
    place = open_place(dataset, store)
    file = destination("--out", out or Path(f"{dataset}.png"), PICTURES, place.store, force)
    with place.store.in_use(dataset):
        found = _newest(place, split)
        images, names, without = _examples(place, found)
    draw_to(file, images, [[name] for name in names])
    if without:
        remark(f"{dataset}: no {split} image of {', '.join(without)}")
    say(f"{file}: {len(names)} of the {len(names) + len(without)} classes of {dataset}, {split}")
    return 0


def draw_to(file: Path, images: np.ndarray, captions: list[list[str]]) -> None:
    """Write a picture of images with captions, PNG or SVG by the file's suffix.

    Raises:
        ConfigError: it cannot be written.
    """
    from tasks.report.contact_sheet import draw

    write(file, draw(images, captions, "svg" if file.suffix.lower() == ".svg" else "png"))


def _newest(place: Place, split: str) -> Split:
    """Return the split that the newest run decoded which can still be read."""
    gone = 0
    for values in place.ledger.newest("runs"):
        key = next((step.key for step in steps_of(values) if (step.step, step.subject) == ("decode", split)), "")
        if not key:
            continue
        try:
            found = place.store.get(place.dataset, "decode", key, Split)
        except DamagedEntry:
            gone += 1
            continue
        if gone:
            remark(f"the images of the newest run were removed or are damaged; taken from run {values.get('run')}")
        return found
    there = "removed from the store or are damaged" if gone else "decoded by no run yet"
    raise ConfigError(
        f"expected decoded {split} images of {place.dataset}; they were {there}; {place.remedy} decodes them"
    )


def _examples(place: Place, split: Split) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the first image of each class, the names of these classes, and of those without images."""
    from storage.formats import parquet

    labels = parquet.labels(split.file).tolist()
    classes = _classes(place, split)
    first = {label: labels.index(label) for label in sorted(set(labels)) if label < len(classes)}
    if not first:
        raise ConfigError(
            f"expected images of the classes of {place.dataset}; found none in the {split.name} images; "
            "correct the labels, or classes in the manifest"
        )
    images = parquet.rows(split.file, list(first.values()))
    return images, [classes[label] for label in first], [n for label, n in enumerate(classes) if label not in first]


def _classes(place: Place, split: Split) -> list[str]:
    made: dict[str, Any] = place.store.made_from(place.dataset, "decode", split.folder.name)["parameters"]
    return [str(name) for name in made["classes"]]
