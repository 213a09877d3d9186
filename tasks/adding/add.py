"""Make four IDX archives and a manifest of what people have, for `idxflow dataset add`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip

from storage.datasets import catalog, own_files
from storage.datasets.catalog import DEFAULT_FILES, MAX_CLASSES
from storage.datasets.own_files import Stated
from storage.errors import ConfigError, DataRefused, FormatError
from storage.files import check_local, flush, kind_of, locked, make_folder
from storage.formats import idx
from storage.records import SPLITS, SplitName
from storage.words import counted
from tasks.adding import recognize, splitting
from tasks.adding.batches import Reading, Remarks, Source, refused
from tasks.adding.gather import Gathered, gathered
from tasks.report import contact_sheet
from tasks.ui.progress import working

_COMPRESSION = 3
"""The strongest of ISA-L, which compresses several times as fast as zlib does by default."""
_NAME_LENGTH = 200
_BRIGHT = 0.4
"""Where the border of the images is darker than this share of the range of pixels, ink is bright."""
_ROWS_SHOWN = 3


@dataclass(frozen=True)
class AddOptions:
    """A data set to make: of what, where, and how."""

    name: str
    source: Path
    folder: Path
    """To create; it must not exist."""
    reading: Reading = field(default_factory=Reading)
    classes: tuple[str, ...] = ()
    """Names in the order of the labels; empty: those of the source."""
    label_base: int | None = None
    """The first label; all that follow must be there without a gap."""
    test_fraction: float | None = None
    """Share of each class to draw as test split; None: the source has one."""
    seed: int = 0
    """Of that draw."""

    @property
    def manifest(self) -> Path:
        """The manifest that is made."""
        return self.folder / f"{self.name}.toml"


@dataclass(frozen=True)
class ClassCount:
    """One class of the data set that was made."""

    label: int
    """In the archives."""
    name: str
    found_as: str
    """The label in the source."""
    train: int
    test: int


@dataclass(frozen=True)
class Added:
    """What was found, and what was made of it."""

    name: str
    source: str
    found: str
    """What the source is, in a few words."""
    image_shape: tuple[int, int]
    darkest: int
    brightest: int
    ink: str
    """`bright` on dark ground, as MNIST's, `dark`, or `unclear`."""
    drawn: bool
    """Whether the test split was drawn here."""
    classes: tuple[ClassCount, ...]
    remarks: tuple[str, ...]
    skipped: tuple[str, ...]
    """A sentence for each picture that was left out."""
    folder: Path
    manifest: Path
    pictures: Path
    """An example of each class."""

    @property
    def rows(self) -> dict[SplitName, int]:
        """Number of images in each split."""
        return {"train": sum(c.train for c in self.classes), "test": sum(c.test for c in self.classes)}

    def values(self) -> dict[str, Any]:
        """Return it as JSON values."""
        paths = {name: str(getattr(self, name)) for name in ("folder", "manifest", "pictures")}
        return {**asdict(self), **paths, "rows": self.rows, "next": self.next_command}

    @property
    def next_command(self) -> str:
        """What to type next, in the same folder."""
        return f"idxflow run --dataset-file {shlex.quote(os.path.relpath(self.manifest))}"


def add(options: AddOptions, say: Callable[[str], None] = lambda _: None) -> Added:
    """Make a data set, whole or not at all.

    Args:
        say: called at once with each remark on how the source is understood.

    Raises:
        ConfigError: the name, the folder or an option cannot be used.
        FormatError: the source cannot be read.
        DataRefused: it cannot be divided as asked for.
    """
    _check(options)
    remarks = Remarks(say)
    with _scratch(options.folder) as scratch:
        try:
            (scratch / "unpacked").mkdir()
            source = recognize.source(options.source, scratch / "unpacked", options.reading, remarks)
            found = gathered(options.source, source, options.reading, scratch / "pixels")
        except FormatError as error:
            # What was unpacked is gone when the message is read.
            inside = f"{scratch / 'unpacked'}{os.sep}"
            raise FormatError(str(error).replace(inside, f"{options.source}: ")) from error
        names = _names(options, source, found)
        is_test = _test_rows(options, found, names)
        made = scratch / "made"
        made.mkdir()
        added = _added(options, source, found, names, is_test, remarks)
        _write(made, added, found, is_test)
        made.rename(options.folder)
    flush(options.folder.parent)
    return added


def _check(options: AddOptions) -> None:
    """Check what takes no time, before anything is read."""
    own_files.check_name(options.name, "NAME")
    check_local("--as", options.folder)
    if options.folder.exists() or options.folder.is_symlink():
        raise ConfigError(
            f"expected no folder {options.folder} yet; found {kind_of(options.folder)}; remove it, or choose another "
            "with --as"
        )
    if not options.folder.parent.is_dir():
        raise ConfigError(
            f"expected a folder to make {options.folder} in; found {kind_of(options.folder.parent)}; make it, or "
            "choose another with --as"
        )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, removed at the end; one that a killed process left is removed, too."""
    scratch = folder.with_name(f".{folder.name}.adding")

    def refuse() -> None:
        raise ConfigError(
            f"expected nobody else to make {folder}; another `idxflow dataset add` does; wait for it, or choose "
            "another folder with --as"
        )

    with locked(folder.with_name(f".{folder.name}.lock"), refuse, passing=True):
        shutil.rmtree(scratch, ignore_errors=True)
        make_folder(scratch)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _names(options: AddOptions, source: Source, found: Gathered) -> tuple[str, ...]:
    """Return the name of each class, by the label in the archives."""
    labels = found.classes
    if len(labels) < 2:
        raise refused(
            options.source, f"2 to {MAX_CLASSES} classes", f"one, {labels[0]!r}", "give images of all classes"
        )
    if options.label_base is not None:
        _check_base(options, options.label_base, labels)
    if options.classes and len(options.classes) != len(labels):
        shown = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
        raise ConfigError(
            f"expected --classes to name the {len(labels)} classes of {options.source} ({shown}); found "
            f"{counted(len(options.classes), 'name')}; give one for each, in this order"
        )
    names = options.classes or tuple(source.names.get(label, label) for label in labels)
    for name in names:
        if not name or not name.isprintable() or len(name) > _NAME_LENGTH or names.count(name) > 1:
            raise ConfigError(
                f"expected different names of classes, printable, of at most {_NAME_LENGTH} characters; found "
                f"{catalog.shown(name)}; rename it, or name the classes with --classes"
            )
    return names


def _check_base(options: AddOptions, base: int, labels: Sequence[str]) -> None:
    expected = [str(base + number) for number in range(len(labels))]
    if list(labels) != expected:
        odd = next(label for label, right in zip(labels, expected, strict=True) if label != right)
        raise refused(
            options.source,
            f"labels {expected[0]} to {expected[-1]} (--label-base {base}, {len(labels)} classes)",
            odd,
            "correct the labels, or leave out --label-base to take them as they are",
        )


def _test_rows(options: AddOptions, found: Gathered, names: Sequence[str]) -> np.ndarray:
    """Return whether each row is of the test split: as the source has it, or drawn."""
    fraction, has_test = options.test_fraction, bool(found.is_test.any())
    if has_test and fraction is not None:
        raise ConfigError(
            f"expected no --test-fraction, because {options.source} has a test split of "
            f"{counted(int(found.is_test.sum()), 'image')}; leave it out"
        )
    if not has_test and fraction is None:
        raise ConfigError(
            f"expected a training and a test split in {options.source}; found {counted(found.rows, 'image')} of no "
            "test split; draw one with --test-fraction 0.15"
        )
    is_test = found.is_test
    if fraction is not None:
        ties = [found.digests, *([found.groups] if found.groups is not None else [])]
        is_test = splitting.drawn(found.labels, ties, fraction, options.seed)
    for split, rows in (("training", ~is_test), ("test", is_test)):
        counts = np.bincount(found.labels[rows], minlength=len(names))
        if not counts.all():
            raise _too_few(options, found, int(np.argmin(counts)), split, names)
    return is_test


def _too_few(options: AddOptions, found: Gathered, label: int, split: str, names: Sequence[str]) -> DataRefused:
    rows = found.labels == label
    different = len(np.unique(found.digests[rows]))
    how = f"{counted(int(rows.sum()), 'image')}, {different:,} different"
    if found.groups is not None:
        how += f", of {counted(len(np.unique(found.groups[rows])), 'group')}"
    return DataRefused(
        f"{options.source}: expected images of each class in both splits; found none of {names[label]!r} in the "
        f"{split} split, of {how} in all; add images of this class, or leave it out"
    )


def _added(
    options: AddOptions,
    source: Source,
    found: Gathered,
    names: Sequence[str],
    is_test: np.ndarray,
    remarks: Remarks,
) -> Added:
    train, test = (np.bincount(found.labels[rows], minlength=len(names)).tolist() for rows in (~is_test, is_test))
    counts = zip(names, found.classes, train, test, strict=True)
    classes = tuple(ClassCount(label, *values) for label, values in enumerate(counts))
    ink = _ink(found)
    if ink == "dark":
        ground = f"border {found.ground:.0f} on average"
        remarks.add(f"ink is dark on bright ground ({ground}); --invert makes it as MNIST's")
    if remarks.skipped:
        remarks.add(f"{counted(len(remarks.skipped), 'picture')} left out, because they cannot be read")
    return Added(
        options.name,
        str(options.source),
        source.kind,
        found.shape,
        found.darkest,
        found.brightest,
        ink,
        options.test_fraction is not None,
        classes,
        tuple(remarks.lines),
        tuple(remarks.skipped),
        options.folder,
        options.manifest,
        options.folder / f"{options.name}.png",
    )


def _ink(found: Gathered) -> str:
    """Return whether ink is `bright` or `dark`, by the border of the images; `unclear` if that is in between."""
    share = (found.ground - found.darkest) / max(1, found.brightest - found.darkest)
    return "bright" if share < _BRIGHT else "dark" if share > 1 - _BRIGHT else "unclear"


def _write(folder: Path, added: Added, found: Gathered, is_test: np.ndarray) -> None:
    """Write the archives, the manifest, the pictures and what was found into a folder, durably."""
    with working("write the archives"):
        for split in SPLITS:
            rows = np.flatnonzero(is_test if split == "test" else ~is_test)
            images = idx.Header(np.dtype(np.uint8), (len(rows), *found.shape))
            _pack(folder / DEFAULT_FILES[f"{split}-images"], images, found.images(rows))
            labels = idx.Header(np.dtype(np.uint8), (len(rows),))
            _pack(folder / DEFAULT_FILES[f"{split}-labels"], labels, [found.labels[rows].astype(np.uint8)])
    stated = Stated([c.name for c in added.classes], ".", "" if added.ink == "unclear" else added.ink)
    manifest = own_files.manifest_of(folder, added.name, stated=stated)
    _put(folder / added.manifest.name, manifest.encode())
    _put(folder / added.pictures.name, _examples(added, found, is_test))
    _put(folder / f"{added.name}.json", f"{json.dumps(added.values(), ensure_ascii=False, indent=1)}\n".encode())
    flush(folder)


def _pack(path: Path, header: idx.Header, blocks: Any) -> None:
    """Write an IDX file, compressed; the same data gives the same bytes: no time and no name in the header."""
    with path.open("xb") as file:
        with igzip.IGzipFile("", "wb", _COMPRESSION, file, mtime=0) as packed:
            packed.write(header.encode())
            for block in blocks:
                packed.write(np.ascontiguousarray(block).data)
        file.flush()
        os.fsync(file.fileno())


def _put(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _examples(added: Added, found: Gathered, is_test: np.ndarray) -> bytes:
    """Return a picture with the first training image of each class, its name and its counts."""
    rows = np.array([np.flatnonzero((found.labels == c.label) & ~is_test)[0] for c in added.classes])
    images = np.concatenate(list(found.images(rows)))
    captions = [[c.name, f"{c.train:,} + {c.test:,}"] for c in added.classes]
    return contact_sheet.draw(images, captions, "png")
