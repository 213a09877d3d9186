"""What `idxflow predict` and `idxflow export` do and print. Only exports to Keras's formats load TensorFlow."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.commands.output import say_json
from storage.errors import ConfigError
from storage.files import check_local, kind_of
from storage.records import to_json
from storage.registry import Version
from storage.store import Store, store_root
from storage.words import counted
from tasks.serving import image_files
from tasks.serving.predict import Model, Row, find_version, load_champion, write_parquet

if TYPE_CHECKING:
    from tasks.serving.export import Export

SHOWN_WHOLE = 20
"""Up to so many rows, all are printed; of more, the counts and the first."""
SHOWN_FIRST = 10


@dataclass(frozen=True)
class Wanted:
    """What `idxflow predict` was asked for."""

    dataset: str
    files: tuple[Path, ...]
    version: str = "champion"
    out: Path | None = None
    resize: bool = False
    scale: bool = False
    invert: bool = False
    store: str | None = None


class _Remarks:
    """Says each remark once, to standard error, and keeps it for JSON."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, remark: str) -> None:
        remark = _as_text(remark)
        if remark not in self.said:
            self.said.append(remark)
            _warn(f"idxflow: warning: {remark}")


def predict_files(wanted: Wanted, as_json: bool) -> int:
    """Classify the images of files, print or write the answers, and return 0.

    Raises:
        IdxflowError: there is no such version, a file cannot be used, or the answers cannot be written.
    """
    remarks = _Remarks()
    version = _version(wanted)
    with Store(store_root(wanted.store)).in_use(wanted.dataset):
        rows = list(_rows(wanted, version, remarks))
    if wanted.out:
        write_parquet(wanted.out, rows)
    if as_json:
        say_json(_outcome(wanted, version, rows, remarks.said))
    else:
        _show(rows, version, wanted.out)
    return 0


def export_version(
    dataset: str, version: str, kind: str, out: Path | None, store: str | None, as_json: bool = False
) -> int:
    """Export a model, say where it is, and return 0.

    Raises:
        IdxflowError: there is no such version, its format or place is not possible, or it answers otherwise.
    """
    from tasks.serving.export import check_possible, export

    opened = Store(store_root(store))
    check_local("--out", out or "")
    found = find_version(opened, dataset, version)
    folder = (out or Path(f"{dataset}-v{found.number}-{kind}")).expanduser().absolute()
    check_possible(kind, folder)
    with opened.in_use(dataset):
        done = export(load_champion(dataset, opened, found), kind, folder)  # type: ignore[arg-type]
    if as_json:
        return say_json(_exported(done))
    _say(_sentence(done))
    return 0


def _version(wanted: Wanted) -> Version:
    """Check what can be checked in milliseconds, and return the version that is to answer."""
    for file in wanted.files:
        image_files.check_there(file)
    check_local("--out", wanted.out or "")
    if wanted.out and wanted.out.exists() and not wanted.out.is_file():
        raise ConfigError(f"expected --out to be a file; {wanted.out} is {kind_of(wanted.out)}; choose another name")
    if wanted.out and wanted.out.resolve() in [file.resolve() for file in wanted.files]:
        raise ConfigError(
            f"expected --out to differ from the files to read; found {wanted.out} in both; choose another"
        )
    return find_version(Store(store_root(wanted.store)), wanted.dataset, wanted.version)


def _rows(wanted: Wanted, version: Version, remarks: _Remarks) -> Iterator[Row]:
    model = load_champion(wanted.dataset, wanted.store, version)
    wish = image_files.Wish(model.image_shape, model.pixel_range, wanted.resize, wanted.scale, wanted.invert)
    for file in wanted.files:
        start, inverted = 0, 0
        for images in image_files.read(file, wish, remarks):
            inverted += int(model.looks_inverted(images).sum())
            yield from _answers(model, _as_text(str(file)), start, images)
            start += len(images)
        _say_if_inverted(file, inverted, start, wanted.invert, remarks)


def _answers(model: Model, file: str, start: int, images: np.ndarray) -> Iterator[Row]:
    found = model.predict(images)
    answers = zip(found.label.tolist(), found.name, found.probability.tolist(), strict=True)
    for row, (label, name, probability) in enumerate(answers, start):
        yield Row(file, row, label, name, probability, found.version)


def _say_if_inverted(file: Path, inverted: int, rows: int, after_invert: bool, remarks: _Remarks) -> None:
    # Most of a file, so that an odd image among thousands is no reason to doubt all.
    if 2 * inverted <= rows:
        return
    which = "the image" if rows == 1 else f"{inverted:,} of {rows:,} images"
    remedy = "without --invert they would match" if after_invert else "--invert inverts them"
    remarks(f"{file}: {which}: bright and dark look inverted, compared with the training images; {remedy}")


def _show(rows: Sequence[Row], version: Version, out: Path | None) -> None:
    shown = rows if len(rows) <= SHOWN_WHOLE else rows[:SHOWN_FIRST]
    places = [f"{_printable(row.file)}[{row.row}]" for row in shown]
    width, wide = max(map(len, places)), max(len(row.name) for row in shown)
    for place, row in zip(places, shown, strict=True):
        _say(f"{place:{width}}  {row.name:{wide}}  {row.probability:.4f}  v{row.version}")
    if len(rows) > len(shown):
        rest = "" if out else "; --out FILE.parquet or --json for all"
        _say(f"… {len(rows) - len(shown):,} more of {len(rows):,}{rest}")
        _show_counts(rows, version)
    if out:
        _say(f"{counted(len(rows), 'row')} written to {_printable(str(out))}")


def _show_counts(rows: Sequence[Row], version: Version) -> None:
    counts = Counter(row.label for row in rows)
    wide = max(map(len, version.classes))
    for label, name in enumerate(version.classes):
        _say(f"{name:{wide}}  {counts[label]:>9,}  {counts[label] / len(rows):6.1%}")


def _outcome(wanted: Wanted, version: Version, rows: Sequence[Row], remarks: Sequence[str]) -> dict[str, Any]:
    return {
        "dataset": version.dataset,
        "version": version.number,
        "rows": [
            {
                "file": row.file,
                "row": row.row,
                "label": row.label,
                "class": row.name,
                "probability": row.probability,
                "version": row.version,
            }
            for row in rows
        ],
        "remarks": list(remarks),
        "out": str(wanted.out.absolute()) if wanted.out else None,
        "error": None,
    }


def _exported(done: Export) -> dict[str, Any]:
    return {**to_json(done), "folder": str(done.folder), "error": None}


def _sentence(done: Export) -> str:
    return (
        f"v{done.version} as {done.format} in {_printable(str(done.folder))}: "
        f"probabilities of {counted(done.rows, 'image')} within {done.difference:.1g} of the model's own"
    )


def _as_text(text: str) -> str:
    """Write out the bytes of a file name that are not UTF-8: neither JSON nor Parquet can hold them."""
    return text.encode(errors="backslashreplace").decode()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _warn(line: str) -> None:
    sys.stderr.write(line + "\n")


def _printable(text: str) -> str:
    """Keep the control characters of a file name out of the terminal."""
    return text if text.isprintable() else ascii(text)
