"""Make four IDX archives and a manifest of what people have, for `idxflow dataset add`."""

from __future__ import annotations

import datetime
import errno
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip

from storage.datasets import catalog, own_files
from storage.datasets.catalog import DEFAULT_FILES, MAX_CLASSES
from storage.datasets.manifest import Limits
from storage.datasets.own_files import Stated
from storage.errors import ConfigError, DataRefused, FormatError
from storage.files import flush, kind_of, locked, make_folder
from storage.formats import idx
from storage.records import SPLITS, SplitName
from storage.words import counted
from tasks.adding import recognize, splitting
from tasks.adding.batches import Reading, Remarks, Source, is_full, refused
from tasks.adding.gather import Gathered, gathered, is_number
from tasks.report import contact_sheet
from tasks.ui.progress import working

_COMPRESSION = 3
"""The strongest of ISA-L, which compresses several times as fast as zlib does by default."""
_NAME_LENGTH = 200
UNPACKED = "unpacked"
KINDS = ("images", "labels")
"""The archives that belong together."""
_BRIGHT = 0.4
"""Where the border of the images is darker than this share of the range of pixels, ink is bright."""
_OPTIONS = {
    "label_column": "--label-column",
    "group_by": "--group-by",
    "white": "--white",
    "match": "--match",
    "skip_bad": "--skip-bad",
}
"""Options that only some kinds of sources use (`Source.uses`), by the names of their fields."""


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
    date: datetime.date | None = None
    """The day that the images are of; None: the manifest says nothing of it."""

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
    date: str = ""
    """The day that the images are of, if it was given."""

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
        return next_command(self.manifest)


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
    with scratch_of(options.folder) as scratch, plain_errors(options.source, options.folder):
        plain = partial(plainly, scratch / UNPACKED, options.source)
        remarks = Remarks(lambda line: say(plain(line)))
        source, found = read(options.source, options.reading, scratch, remarks)
        names = _names(options, source, found)
        is_test = _test_rows(options, found, names)
        made = scratch / "made"
        made.mkdir()
        added = _added(options, source, found, names, is_test, remarks)
        added = replace(added, remarks=tuple(map(plain, added.remarks)), skipped=tuple(map(plain, added.skipped)))
        _write(made, added, found, is_test)
        made.rename(options.folder)
    flush(options.folder.parent)
    return added


def next_command(manifest: Path) -> str:
    """Return the command that trains on a data set, to be typed in the current folder."""
    return f"idxflow run --dataset-file {shlex.quote(os.path.relpath(manifest))}"


def read(path: Path, reading: Reading, scratch: Path, remarks: Remarks) -> tuple[Source, Gathered]:
    """Recognize a source, and read all of it.

    Args:
        path: where it is.
        reading: how it is to be read.
        scratch: a folder, for what is unpacked and the pixels.
        remarks: where to note how it was understood.

    Raises:
        ConfigError: an option cannot be used.
        FormatError: it cannot be read.
    """
    unpacked = scratch / UNPACKED
    unpacked.mkdir()
    try:
        source = recognize.source(path, unpacked, reading, remarks)
        _check_used(path, reading, source)
        return source, gathered(path, source, reading, scratch / "pixels", remarks)
    except FormatError as error:
        raise FormatError(plainly(unpacked, path, str(error))) from error


def plainly(unpacked: Path, source: Path, text: str) -> str:
    """Return a text that names a source, where it names what was unpacked of it."""
    # That is gone when the message is read.
    return text.replace(f"{unpacked}{os.sep}", f"{source}: ").replace(str(unpacked), str(source))


@contextmanager
def plain_errors(source: Path, folder: Path) -> Iterator[None]:
    """Have an error of the operating system name what the user gave: it may name nothing, or a file that is gone."""
    try:
        yield
    except OSError as error:
        place = folder if is_full(error) else error.filename or source
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(place)) from error


def _check(options: AddOptions) -> None:
    """Check what takes no time, before anything is read."""
    own_files.check_name(options.name, "NAME")
    _check_outside(options)
    check_together(options.reading, options.test_fraction, options.seed)
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


def _check_outside(options: AddOptions) -> None:
    """Refuse to make the data set where the source is, which is only read: nobody is to remove that."""
    folder, source = Path(os.path.realpath(options.folder)), Path(os.path.realpath(options.source))
    if folder == source or source in folder.parents or folder in source.parents:
        raise ConfigError(
            f"expected to make the data set elsewhere than its source, {options.source}, which is only read; found "
            f"{options.folder}; choose another folder with --as"
        )


def check_together(reading: Reading, test_fraction: float | None, seed: int) -> None:
    """Refuse options that do nothing without another one."""
    if test_fraction is None and (seed or reading.group_by):
        raise ConfigError(
            "expected --seed and --group-by only where a test split is drawn; found no --test-fraction; draw one with "
            "--test-fraction 0.15, or leave them out"
        )
    if reading.size is None and reading.fit != "pad":
        raise ConfigError(
            f"expected --fit {reading.fit} only with the size of the images; found no --size; give it, such as "
            "--size 28x28, or leave --fit out"
        )


def _check_used(path: Path, reading: Reading, source: Source) -> None:
    """Refuse options that do nothing for this source, rather than ignore them."""
    usual = Reading()
    for name, option in _OPTIONS.items():
        if getattr(reading, name) != getattr(usual, name) and name not in source.uses:
            raise ConfigError(
                f"expected no {option}, because it does nothing for {path}, {source.kind}; found it; leave it out"
            )


@contextmanager
def scratch_of(folder: Path, inside: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside or inside `folder`, removed at the end, as is one that a killed process left.

    Files are renamed from there, which needs one file system: a folder that is there may be where another is mounted.
    """
    place = folder if inside else folder.parent
    scratch = place / f".{folder.name}.adding"

    def refuse() -> None:
        elsewhere = "" if inside else ", or choose another folder with --as"
        raise ConfigError(
            f"expected nobody else to write to {folder}; another `idxflow dataset add` does; wait until it has ended, "
            f"then repeat this one{elsewhere}"
        )

    with locked(place / f".{folder.name}.lock", refuse, passing=True):
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
    if found.is_test.all():
        remedy = "add images to train on, or name what has them train, if they are there"
        raise refused(options.source, "images to train on", "a test split alone", remedy)
    check_not_split(options.source, found, fraction)
    if not has_test and fraction is None:
        raise ConfigError(
            f"expected a training and a test split in {options.source}; found {counted(found.rows, 'image')} of no "
            "test split; draw one with --test-fraction 0.15"
        )
    is_test = found.is_test
    if fraction is not None:
        is_test = splitting.drawn(found.labels, found.ties, fraction, options.seed)
    for split, rows in (("training", ~is_test), ("test", is_test)):
        counts = np.bincount(found.labels[rows], minlength=len(names))
        if not counts.all():
            raise _too_few(options, found, int(np.argmin(counts)), split, names)
    return is_test


def check_not_split(source: Path, found: Gathered, fraction: float | None) -> None:
    """Refuse to draw a test split of a source that has one."""
    if fraction is not None and found.is_test.any():
        raise ConfigError(
            f"expected no --test-fraction, because {source} has a test split of "
            f"{counted(int(found.is_test.sum()), 'image')}; leave it out"
        )


def _too_few(options: AddOptions, found: Gathered, label: int, split: str, names: Sequence[str]) -> DataRefused:
    rows = found.labels == label
    different = len(np.unique(found.digests[rows]))
    how = f"{counted(int(rows.sum()), 'image')}, {different:,} different"
    if found.groups is not None:
        how += f", of {counted(len(np.unique(found.groups[rows])), 'group')}"
    fewer = "" if options.test_fraction is None else ", or draw another share of them: --test-fraction"
    return DataRefused(
        f"{options.source}: expected images of each class in both splits; found none of {names[label]!r} in the "
        f"{split} split, of {how} in all; add images of this class, or leave it out{fewer}"
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
    ink = ink_of(found)
    if ink == "dark":
        ground = f"border {found.ground:.0f} on average"
        remarks.add(f"ink is dark on bright ground ({ground}); --invert makes it as MNIST's")
    if "white" in source.uses and options.reading == replace(options.reading, white=255, invert=False):
        _remark_dim(found, remarks)
    if any(label.startswith("-") for label in found.classes if is_number(label)):
        remarks.add("a label below 0 often marks images without a class; if it does here, take them out")
    remarks.add_skipped()
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
        options.date.isoformat() if options.date else "",
    )


def _remark_dim(found: Gathered, remarks: Remarks) -> None:
    """Say so if no pixel is nearly white, as with pixels from 0 to 16."""
    if found.brightest < Limits().min_pixel_max:
        value = max(1, found.brightest)
        remarks.add(f"the brightest pixel is {found.brightest} of 255; if that is white, say so: --white {value}")


def ink_of(found: Gathered) -> str:
    """Return whether ink is `bright` or `dark`, by the border of the images; `unclear` if that is in between."""
    share = (found.ground - found.darkest) / max(1, found.brightest - found.darkest)
    return "bright" if share < _BRIGHT else "dark" if share > 1 - _BRIGHT else "unclear"


def _write(folder: Path, added: Added, found: Gathered, is_test: np.ndarray) -> None:
    """Write the archives, the manifest, the pictures and what was found into a folder, durably."""
    with working("write the archives"):
        for split in SPLITS:
            rows = np.flatnonzero(is_test if split == "test" else ~is_test)
            paths = {kind: folder / DEFAULT_FILES[f"{split}-{kind}"] for kind in KINDS}
            pack_pair(paths, found, found.labels.astype(np.uint8), rows)
    ink = "" if added.ink == "unclear" else added.ink
    stated = Stated([c.name for c in added.classes], ".", ink, added.date)
    manifest = own_files.manifest_of(folder, added.name, stated=stated)
    _put(folder / added.manifest.name, manifest.encode())
    _put(folder / added.pictures.name, _examples(added, found, is_test))
    _put(folder / f"{added.name}.json", described(added.values()))
    flush(folder)


def described(values: dict[str, Any]) -> bytes:
    """Return the file beside a manifest that says what was found."""
    # A path or a name that is not UTF-8 has parts that JSON can only escape.
    return f"{json.dumps(values, ensure_ascii=False, indent=1)}\n".encode(errors="backslashreplace")


def pack_pair(paths: Mapping[str, Path], found: Gathered, labels: np.ndarray, rows: np.ndarray) -> None:
    """Write the archives of some of the images and of their labels.

    Args:
        paths: of both, by `KINDS`.
        labels: of all images, as the archive is to have them.
        rows: numbers of the images.
    """
    pack(paths["images"], idx.Header(np.dtype(np.uint8), (len(rows), *found.shape)), found.images(rows))
    pack(paths["labels"], idx.Header(labels.dtype, (len(rows),)), [labels[rows]])


def pack(path: Path, header: idx.Header, blocks: Any) -> None:
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
