"""Append images to a data set that `idxflow dataset add` has made, for `idxflow dataset add --append`.

They become one more archive of each role. All files are written before the manifest that names them, which is replaced
at once: until then, the data set is as it was.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from storage.datasets import catalog
from storage.datasets.catalog import DEFAULT_FILES, ROLES, ArchiveSpec, Dataset
from storage.errors import ConfigError, DataRefused
from storage.files import flush, sha256_of, write_bytes
from storage.formats import idx
from storage.records import SPLITS, SplitName
from storage.words import counted, times
from tasks.adding import splitting
from tasks.adding.add import (
    KINDS,
    UNPACKED,
    check_not_split,
    check_together,
    described,
    ink_of,
    next_command,
    pack_pair,
    plain_errors,
    plainly,
    read,
    scratch_of,
)
from tasks.adding.batches import Reading, Remarks, Source, refused
from tasks.adding.gather import Gathered, digest_of
from tasks.ui.progress import working

_TABLE = re.compile(r"^[ \t]*\[[ \t]*archives\.([a-z0-9]+-(?:images|labels))[ \t]*\]", re.MULTILINE)
_ROWS = 4096
_BYTE = 255


@dataclass(frozen=True)
class AppendOptions:
    """What to append to which data set, and how."""

    name: str
    source: Path
    folder: Path
    """Of the data set."""
    date: datetime.date
    """The day that the images are of."""
    reading: Reading = field(default_factory=Reading)
    test_fraction: float | None = None
    """Share of each class to draw for the test split; None: as the source is split, or all are for training."""
    seed: int = 0
    """Of that draw."""

    @property
    def manifest(self) -> Path:
        """The manifest that is changed."""
        return self.folder / f"{self.name}.toml"


@dataclass(frozen=True)
class Appended:
    """What was found, and what was made of it."""

    name: str
    source: str
    found: str
    """What the source is, in a few words."""
    date: str
    rows: dict[SplitName, int]
    """Number of images that were appended to each split."""
    known: int
    """How many of them were in the data set before."""
    archives: dict[SplitName, int]
    """Number of archives that each split has now."""
    remarks: tuple[str, ...]
    skipped: tuple[str, ...]
    """A sentence for each picture that was left out."""
    manifest: Path

    def values(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "manifest": str(self.manifest), "next": self.next_command}

    @property
    def next_command(self) -> str:
        """What to type next, in the same folder."""
        return next_command(self.manifest)


def append(options: AppendOptions, say: Callable[[str], None] = lambda _: None) -> Appended:
    """Append the images of a source to a data set, all of them or none.

    Args:
        say: called at once with each remark on how the source is understood.

    Raises:
        ConfigError: there is no such data set, its manifest cannot be changed, or an option cannot be used.
        FormatError: the source cannot be read, or its images are not like those of the data set.
        DataRefused: it has another class, or was appended before.
    """
    check_together(options.reading, options.test_fraction, options.seed)
    dataset = _dataset(options)
    with scratch_of(options.folder, inside=True) as scratch, plain_errors(options.source, options.folder):
        plain = partial(plainly, scratch / UNPACKED, options.source)
        remarks = Remarks(lambda line: say(plain(line)))
        source, found = read(options.source, options.reading, scratch, remarks)
        _check_alike(options, dataset, found)
        labels = _labels(options, dataset, source, found)
        with working("compare with the data set"):
            known = _Known.of(dataset, found)
        is_test = _test_rows(options, found, known)
        _remark(options, dataset, found, known, remarks)
        specs = _written(options, dataset, found, labels, is_test, scratch)
        _check_new(options, dataset, specs)
        appended = Appended(
            options.name,
            str(options.source),
            source.kind,
            options.date.isoformat(),
            {"train": int((~is_test).sum()), "test": int(is_test.sum())},
            int(known.any.sum()),
            {name: len(dataset.archives_of(f"{name}-images")) + (f"{name}-images" in specs) for name in SPLITS},
            tuple(map(plain, remarks.lines)),
            tuple(map(plain, remarks.skipped)),
            options.manifest,
        )
        _publish(options, dataset, specs, appended, scratch)
    return appended


def _dataset(options: AppendOptions) -> Dataset:
    """Return the data set, whose archives have to be beside its manifest."""
    if not options.manifest.is_file():
        raise ConfigError(
            f"expected the manifest of {options.name} at {options.manifest}, because --append adds to a data set that "
            "`idxflow dataset add` has made; found none; name its folder with --as, or make it first: without --append"
        )
    dataset = catalog.read(options.manifest)
    if dataset.name != options.name or dataset.source != options.folder.resolve():
        raise ConfigError(
            f"{options.manifest}: expected the manifest of {options.name} with its archives in the same folder, as "
            f"`idxflow dataset add` makes it; found that of {dataset.name} with them in {dataset.source}; name the "
            "data set and its folder: idxflow dataset add NAME FROM --append --as FOLDER"
        )
    if dataset.rows:
        raise ConfigError(
            f"{options.manifest}: expected no [rows], because the numbers change; found {dict(dataset.rows)}; remove it"
        )
    if dataset.transpose or dataset.label_column is not None:
        raise ConfigError(
            f"{options.manifest}: expected archives as `idxflow dataset add` writes them; found transpose or "
            "label_column; make a data set of its archives first: idxflow dataset add NEW FOLDER"
        )
    return dataset


def _check_alike(options: AppendOptions, dataset: Dataset, found: Gathered) -> None:
    """Check that the images are of the size and the ink of the data set."""
    height, width = dataset.image_shape
    if found.shape != dataset.image_shape:
        raise refused(
            options.source,
            f"images of {times(dataset.image_shape)} pixels, as {options.name} has them",
            times(found.shape),
            f"scale them: --size {height}x{width}",
        )
    ink = ink_of(found)
    if dataset.ink and ink != "unclear" and ink != dataset.ink:
        raise refused(
            options.source,
            f"{dataset.ink} ink, as {options.name} has it",
            f"{ink} ink",
            "invert the images: --invert, or leave that out",
        )


def _labels(options: AppendOptions, dataset: Dataset, source: Source, found: Gathered) -> np.ndarray:
    """Return the label of each image as archives have it, uint8 or int32 of shape (n,)."""
    known = _labels_of(options, dataset)
    labels = [known.get(label, known.get(source.names.get(label, label))) for label in found.classes]
    for label, name in zip(labels, found.classes, strict=True):
        if label is None:
            rows = int((found.labels == found.classes.index(name)).sum())
            raise DataRefused(
                f"{options.source}: expected images of the {len(dataset.classes)} classes of {options.name}; found "
                f"{counted(rows, 'image')} of {catalog.shown(name)}, which is none of them; leave them out, or make a "
                "data set with this class of all images: idxflow dataset add NEW FROM"
            )
    values = np.array(labels, np.int32)
    fit = values.astype(np.uint8) if 0 <= values.min() <= values.max() <= _BYTE else values
    chosen: np.ndarray = fit[found.labels]
    return chosen


def _labels_of(options: AppendOptions, dataset: Dataset) -> dict[str, int]:
    """Return the label in the archives for each label that a source may have: a class's name, or as it was found."""
    values = dataset.labels or tuple(range(len(dataset.classes)))
    by_name = dict(zip(dataset.classes, values, strict=True))
    try:
        described = json.loads((options.folder / f"{options.name}.json").read_bytes())
        found_as = {str(one["found_as"]): by_name[str(one["name"])] for one in described["classes"]}
    except (OSError, ValueError, KeyError, TypeError):
        # The file is for people, who may have removed it, or renamed the classes.
        return by_name
    return {**by_name, **found_as}


@dataclass(frozen=True)
class _Known:
    """Which of the images found are in a data set already, bool of shape (n,) each."""

    train: np.ndarray
    test: np.ndarray

    @property
    def any(self) -> np.ndarray:
        either: np.ndarray = self.train | self.test
        return either

    @classmethod
    def of(cls, dataset: Dataset, found: Gathered) -> _Known:
        """Read all images of the data set, and compare them."""
        sides = []
        for name in SPLITS:
            is_known = np.zeros(found.rows, bool)
            for spec in dataset.archives_of(f"{name}-images"):
                is_known = is_known | np.isin(found.digests, _digests(dataset, spec, found.digests.dtype))
            sides.append(is_known)
        return cls(*sides)


def _digests(dataset: Dataset, spec: ArchiveSpec, kind: np.dtype) -> np.ndarray:
    """Return the digests of the images in an archive, shape (n,).

    Raises:
        ConfigError: it is not there.
    """
    path = (dataset.source or dataset.manifest.parent) / spec.file
    if not path.is_file():
        raise ConfigError(
            f"expected {path}, which {dataset.manifest} names; found none; restore it, because its images are compared"
        )
    with idx.Reader(path, str(path)) as reader:
        joined = b"".join(digest_of(image) for block in reader.blocks(_ROWS) for image in block)
    digests: np.ndarray = np.frombuffer(joined, kind)
    return digests


def _test_rows(options: AppendOptions, found: Gathered, known: _Known) -> np.ndarray:
    """Return whether each image goes to the test split.

    As the source has it; otherwise, an image that the data set has goes where it is, so that equal images stay on one
    side, and of the others a share of each class is drawn.
    """
    fraction = options.test_fraction
    check_not_split(options.source, found, fraction)
    if found.is_test.any():
        return found.is_test
    is_test, free = known.test.copy(), np.flatnonzero(~known.any)
    if fraction is not None and len(free):
        ties = [each[free] for each in found.ties]
        is_test[free] = splitting.drawn(found.labels[free], ties, fraction, options.seed)
    return is_test


def _remark(options: AppendOptions, dataset: Dataset, found: Gathered, known: _Known, remarks: Remarks) -> None:
    if number := int(known.any.sum()):
        where = "are in both again" if found.is_test.any() else "stay on the side where they were"
        how = f"{number:,} of {found.rows:,} images are already in {options.name}; they {where}"
        remarks.add(f"{how}: the checks of a run report duplicates")
    if any(spec.date is None for spec in dataset.archives_of(ROLES[0])):
        remarks.add(
            f"the archives so far have no date; windows of days and `idxflow backfill` need one: add it to them in "
            f"{options.manifest.name}"
        )
    # Tomorrow is today in some time zone.
    if options.date > datetime.date.today() + datetime.timedelta(days=1):
        remarks.add(f"{options.date} is in the future; a window of days counts back from the newest date")
    remarks.add_skipped()


def _written(
    options: AppendOptions,
    dataset: Dataset,
    found: Gathered,
    labels: np.ndarray,
    is_test: np.ndarray,
    scratch: Path,
) -> dict[str, ArchiveSpec]:
    """Write the archives of the splits that have images; return them by role."""
    specs: dict[str, ArchiveSpec] = {}
    with working("write the archives"):
        for split in SPLITS:
            rows = np.flatnonzero(is_test if split == "test" else ~is_test)
            if not len(rows):
                continue
            number = len(dataset.archives_of(f"{split}-images"))
            names = {kind: DEFAULT_FILES[f"{split}-{kind}"].replace(kind, f"{kind}-{number:03d}") for kind in KINDS}
            paths = {kind: scratch / name for kind, name in names.items()}
            pack_pair(paths, found, labels, rows)
            for kind, path in paths.items():
                role, day = f"{split}-{kind}", options.date if kind == "images" else None
                size, digest = path.stat().st_size, sha256_of(path)
                specs[role] = ArchiveSpec(role, path.name, size, digest, number=number, date=day)
    return specs


def _check_new(options: AppendOptions, dataset: Dataset, specs: dict[str, ArchiveSpec]) -> None:
    """Refuse archives that the data set has."""
    known = {(old.role, old.sha256): old for old in dataset.archives}
    if not {(spec.role, spec.sha256) for spec in specs.values()} <= known.keys():
        return
    first = next(iter(specs.values()))
    same = known[first.role, first.sha256]
    raise DataRefused(
        f"{options.source}: expected images that are new to {options.name}; found those of {same.file}, "
        f"which were appended before{f', of {same.date}' if same.date else ''}; give others"
    )


def _publish(
    options: AppendOptions, dataset: Dataset, specs: dict[str, ArchiveSpec], appended: Appended, scratch: Path
) -> None:
    """Put the archives beside the others, and have the manifest name them."""
    text = _with(options.manifest, specs)
    _check_reads(options, dataset, specs, text, scratch)
    for spec in specs.values():
        # One of the same name is of an append that was cut off: no manifest names it.
        os.replace(scratch / spec.file, options.folder / spec.file)
    number = max(spec.number for spec in specs.values())
    write_bytes(options.folder / f"{options.name}-{number:03d}.json", described(appended.values()))
    flush(options.folder)
    write_bytes(options.manifest, text.encode())


def _with(manifest: Path, specs: dict[str, ArchiveSpec]) -> str:
    """Return the text of a manifest with more archives, and otherwise as its owner has written it."""
    text = manifest.read_text(encoding="utf-8-sig")
    text = _TABLE.sub(lambda match: f"[[archives.{match[1]}]]" if match[1] in specs else match[0], text)
    lines = [text.rstrip("\n"), ""]
    for role, spec in specs.items():
        day = [f"date = {spec.date.isoformat()}"] if spec.date else []
        lines += [f"[[archives.{role}]]", f'file = "{spec.file}"', f"bytes = {spec.bytes}", f'sha256 = "{spec.sha256}"']
        lines += [*day, ""]
    return "\n".join(lines)


def _check_reads(
    options: AppendOptions, dataset: Dataset, specs: dict[str, ArchiveSpec], text: str, scratch: Path
) -> None:
    """Check that the new text of a manifest declares what the old one did, and the new archives.

    Raises:
        ConfigError: it does not, because its archives are not written as tables of their own.
    """
    expected = tuple(
        spec for role in ROLES for spec in (*dataset.archives_of(role), *([specs[role]] if role in specs else []))
    )
    path = scratch / options.manifest.name
    path.write_text(text, encoding="utf-8")
    try:
        declared = catalog.read(path)
    except ConfigError:
        declared = None
    if declared is None or declared.archives != expected:
        raise ConfigError(
            f"{options.manifest}: expected a table for each archive, such as [archives.{ROLES[0]}], as "
            "`idxflow dataset add` writes it; found another form; write them so"
        )
