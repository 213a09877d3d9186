"""Read new images from where people have them, with their labels if they are known."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from storage.errors import ConfigError, FormatError
from storage.files import alike, kind_of
from storage.formats import idx
from storage.words import counted
from tasks.adding import idx_files, pictures, recognize
from tasks.adding.batches import BATCH_ROWS, Reading, Remarks
from tasks.drifting.sample import Blocks
from tasks.serving import image_files, picture
from tasks.serving.image_files import ImageOptions

_IMAGE_FILES = (*picture.BEGINNINGS, b"\x93NUMPY", b"\x1f\x8b", b"\0\0")
"""How files begin that have nothing but images: `dataset add` reads the others."""
_ZIP = b"PK"
_NUMBER = re.compile(r"\d+")
_UNKNOWN = -1


@dataclass(frozen=True)
class Naming:
    """How the classes of a champion are written."""

    names: tuple[str, ...]
    labels: tuple[int, ...] = ()
    """The label files' value for each class; empty: 0, 1, 2, …"""

    @property
    def values(self) -> tuple[int, ...]:
        return self.labels or tuple(range(len(self.names)))


@dataclass(frozen=True)
class NewImages:
    """Where new images are."""

    blocks: Blocks
    """To be read once."""
    files: Sequence[str] = ()
    """The name of each image's file, if each has its own and no folder for its class."""


def new_images(
    path: Path, labels: Path | None, options: ImageOptions, naming: Naming, say: Callable[[str], None]
) -> NewImages:
    """Return the images of a file or a folder.

    - A file that `idxflow predict` reads, with a file of labels in IDX if `labels` names one.
    - A folder of pictures.
    - What `idxflow dataset add` reads: IDX files with their labels, a folder of pictures for each class, a table. All
      of its images are read, those of both splits. If a label is no class of the champion, they have no labels.

    Args:
        options: the size of the champion's images, and how images may be changed.
        naming: the champion's classes.
        say: called with each remark.

    Raises:
        ConfigError: there is nothing at the path.
        FormatError: what is there, or while it is read, cannot be used.
    """
    if not path.exists():
        raise ConfigError(
            f"expected images in a file or a folder at {path}; found {kind_of(path)}{alike(path)}; correct the path"
        )
    only_images = path.is_file() and _has_only_images(path)
    if labels and not only_images:
        raise ConfigError(
            f"expected a file of images alone beside --labels; found {kind_of(path)} {path}, which has its own or "
            "none; leave --labels out"
        )
    if only_images:
        blocks = image_files.read(path, options, say)
        return NewImages(_labelled(path, blocks, labels, naming) if labels else ((images, None) for images in blocks))
    if path.is_dir() and (flat := _flat(path)):
        return NewImages(_of_pictures(flat, options, say), [file.name for file in flat])
    return NewImages(_recognized(path, options, naming, say))


def _has_only_images(path: Path) -> bool:
    start = image_files.beginning(path)
    if start.startswith(_ZIP):
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        # An .npz of one array has images alone.
        return len(names) == 1 and names[0].endswith(".npy")
    return start.startswith(_IMAGE_FILES)


def _labelled(
    path: Path, blocks: Iterator[np.ndarray], file: Path, naming: Naming
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    image_files.check_is_file(file)
    with idx.Reader(file, str(file)) as reader:
        values = reader.read()
    if values.ndim != 1:
        raise FormatError(
            f"{file}: expected labels, one a row; found {values.ndim} dimensions; give the file of labels"
        )
    classes, done = _classes(file, values, naming), 0
    for images in blocks:
        named = classes[done : done + len(images)]
        done += len(images)
        # Otherwise only counted, for the message.
        if len(named) == len(images):
            yield images, named
    if done != len(values):
        raise FormatError(
            f"{file}: expected as many labels as {path} has images, {done:,}; found {len(values):,}; give the file "
            "that belongs to it"
        )


def _classes(file: Path, values: np.ndarray, naming: Naming) -> np.ndarray:
    """Return the class of each label, int64 of shape (n,)."""
    known = np.array(naming.values, np.int64)
    order = np.argsort(known)
    places = order[np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)]
    wrong = known[places] != values
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise FormatError(
            f"{file}: expected labels that are classes of the champion, such as {known[0]}; found {values[row]} in row "
            f"{row:,}; correct it, or leave --labels out"
        )
    classes: np.ndarray = places.astype(np.int64)
    return classes


def _flat(folder: Path) -> list[Path]:
    """Return the pictures of a folder of nothing else, sorted; empty if it has none.

    `dataset add` puts a picture of some images beside the IDX files that it writes.
    """
    if pictures.has_pictures(folder) or idx_files.has_files(folder, Reading()):
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in pictures.SUFFIXES and file.name[0] != ".")


def _of_pictures(
    files: Sequence[Path], options: ImageOptions, say: Callable[[str], None]
) -> Iterator[tuple[np.ndarray, None]]:
    notes = _Notes()
    for start in range(0, len(files), BATCH_ROWS):
        some = files[start : start + BATCH_ROWS]
        read = [image for file in some for image in image_files.read(file, options, partial(notes.add, file))]
        yield np.concatenate(read), None
    notes.say(say)


class _Notes:
    """Remarks about the pictures of a folder: one for all pictures that have the same, or it would be one a picture."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._counts = Counter[str]()

    def add(self, file: Path, text: str) -> None:
        """Note a remark; those that differ only in the file and in numbers, such as the range of pixels, are alike."""
        kind = _NUMBER.sub("", text.replace(str(file), ""))
        self._first.setdefault(kind, text)
        self._counts[kind] += 1

    def say(self, say: Callable[[str], None]) -> None:
        """Say each kind of remark once, and of how many pictures it holds."""
        for kind, text in self._first.items():
            more = self._counts[kind] - 1
            say(f"{text}; the same holds for {counted(more, 'more picture')}" if more else text)


def _recognized(
    path: Path, options: ImageOptions, naming: Naming, say: Callable[[str], None]
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    reading, remarks = Reading(size=options.image_shape if options.resize else None), Remarks(say)
    with tempfile.TemporaryDirectory(prefix="idxflow-drift-") as scratch:
        try:
            source = recognize.source(path, Path(scratch), reading, remarks)
            classes, has_said = _class_of(source.names, naming), False
            for batch in source.batches:
                numbers = np.array([classes.get(label, _UNKNOWN) for label in batch.labels], np.int64)
                unknown = np.flatnonzero(numbers == _UNKNOWN)
                if len(unknown) and not has_said:
                    has_said = True
                    say(
                        f"{path} has the label {batch.labels[unknown[0]]!r}, which is no class of the champion: the "
                        "labels are not compared"
                    )
                images = image_files.prepared(str(path), batch.images, options, say)
                yield images, None if len(unknown) else numbers
        except FormatError as error:
            if "--" not in str(error).replace("--resize", ""):
                raise
            raise FormatError(
                f"{error} (an option of `idxflow dataset add`, which makes IDX files of it: give their folder)"
            ) from error


def _class_of(names: Mapping[str, str], naming: Naming) -> dict[str, int]:
    """Return the class of each text that can be a label in the source."""
    by_value = {str(value): number for number, value in enumerate(naming.values)}
    by_name = {name: number for number, name in enumerate(naming.names)}
    of_source = {label: by_name[name] for label, name in names.items() if name in by_name}
    return by_value | by_name | of_source


def check_enough(total: int, least: int, where: object) -> None:
    """Check that there are enough images to compare.

    Raises:
        FormatError: there are not.
    """
    if total < least:
        raise FormatError(
            f"{where}: expected at least {counted(least, 'image')} to compare, as `min_images` of [drift] says; found "
            f"{total:,}; give more, or lower it in the manifest"
        )
