"""A folder of pictures with a folder for each class, with or without folders of splits around these."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.errors import ConfigError, FormatError
from storage.records import SplitName
from storage.words import counted
from tasks.adding.batches import Batch, Reading, Remarks, Source, refused, rows_at_once, splits_of
from tasks.adding.sizing import Sized
from tasks.serving import picture
from tasks.ui.progress import Progress, advance

BEGINNINGS = picture.BEGINNINGS
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif"})
_SUFFIXES_SHOWN = 6
_GREY = "colour pictures are read as grey: 0.299 red, 0.587 green, 0.114 blue (ITU-R 601)"


@dataclass(frozen=True)
class File:
    """A picture's file, with what its place says of it."""

    path: Path
    label: str
    split: SplitName | None


def has_pictures(folder: Path) -> bool:
    """Return whether a sub-folder, or one of those in it, has a picture."""
    return next(_pictures(folder, "*/*"), None) is not None or next(_pictures(folder, "*/*/*"), None) is not None


def is_around_classes(folder: Path) -> bool:
    """Return whether a folder is not that of a class or a split, but around folders of classes."""
    said = splits_of([Path(folder.name)], Remarks())[0]
    return not said and has_pictures(folder) and next(_pictures(folder, "*"), None) is None


def _pictures(folder: Path, pattern: str) -> Iterator[Path]:
    return (path for path in folder.glob(pattern) if _is_picture(path))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "."


def source(folder: Path, reading: Reading, remarks: Remarks) -> Source:
    """Return the pictures in a folder as a source.

    Raises:
        FormatError: a link leads out of the folder, or a picture has no folder of its class.
    """
    files = [file for file in _files(folder, remarks) if reading.match in file.path.relative_to(folder).as_posix()]
    if not files and reading.match:
        raise refused(folder, f"pictures with {reading.match!r} in their paths", "none", "correct --match")
    classes = {file.label for file in files}
    kind = f"a folder of {counted(len(files), 'picture')} in {counted(len(classes), 'class', 'classes')}"
    batches = _batches(folder, files, reading, remarks)
    return Source(kind, batches, has_names=True, uses=frozenset({"group_by", "skip_bad"}))


def _files(folder: Path, remarks: Remarks) -> list[File]:
    """Return all pictures, by class and name, so that the same folder always gives the same order."""
    tops = _folders(folder)
    # A class may be named `test`: a split has folders of classes.
    if not any(_has_classes(top) for top in tops):
        return list(_of_split(folder, folder, None, remarks))
    splits = splits_of([Path(top.name) for top in tops], remarks)
    if not any(splits):
        return list(_of_split(folder, folder, None, remarks))
    for path in sorted(folder.iterdir()):
        if _is_picture(path):
            raise _beside(path)
    for top, split in zip(tops, splits, strict=True):
        if not split and _has_classes(top):
            remarks.add(f"{top.name} is left out, because by its name it is neither to train nor to test")
    of_splits = [(top, split) for top, split in zip(tops, splits, strict=True) if split]
    return [file for top, split in of_splits for file in _of_split(folder, top, split, remarks)]


def _has_classes(top: Path) -> bool:
    return next(_pictures(top, "*/*"), None) is not None


def _of_split(root: Path, folder: Path, split: SplitName | None, remarks: Remarks) -> Iterator[File]:
    for path in sorted(_walked(root, folder, remarks), key=_natural):
        parts = path.relative_to(folder).parts
        if len(parts) < 2:
            raise _beside(path)
        if len(parts) > 2:
            deeper = (
                f"pictures in folders deeper inside are of the class of the outer one, such as {path} of {parts[0]}"
            )
            remarks.add(deeper, "deeper")
        yield File(path, parts[0], split)


def _beside(path: Path) -> FormatError:
    return refused(path, "each picture in the folder of its class", "it beside these", "move it into one, or away")


def _walked(root: Path, folder: Path, remarks: Remarks) -> Iterator[Path]:
    """Yield the files of pictures in a folder, and remark on others. Nothing outside of `root` is read."""
    others = []
    _check_link(root, folder)
    for path in folder.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        _check_link(root, path)
        if _is_picture(path):
            yield path
        elif path.is_file():
            others.append(path)
    if others:
        suffixes = ", ".join(sorted({path.suffix.lower() or "none" for path in others})[:_SUFFIXES_SHOWN])
        remarks.add(f"{counted(len(others), 'file')} left out, which by their suffixes are no pictures: {suffixes}")


def _check_link(root: Path, path: Path) -> None:
    """Refuse a link that leads out of the source, to a folder, or to nothing. The source may be a link itself."""
    if path == root or not path.is_symlink():
        return
    target = Path(os.path.realpath(path))
    if path.is_file() and target.is_relative_to(root.resolve()):
        return
    remedy = "put there what it links to, or give the folder that has it" if path.exists() else "remove the link"
    raise refused(path, f"pictures in {root}", f"a link to {target}", remedy)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Return a key by which 2.png comes before 10.png, also of folders."""
    words = re.split(r"([0-9]+)", str(path))
    return [(0, int(word)) if word.isascii() and word.isdigit() else (1, word) for word in words]


def _folders(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."), key=_natural)


def _batches(folder: Path, files: Sequence[File], reading: Reading, remarks: Remarks) -> Iterator[Batch]:
    sized, some, bytes_of_some = Sized(reading), list[tuple[File, np.ndarray]](), 0
    for done, file in enumerate(files, 1):
        if (image := _read(file, sized, reading, remarks)) is not None:
            some.append((file, image))
            bytes_of_some += image.nbytes
        if done == len(files) or len(some) >= rows_at_once(bytes_of_some // max(1, len(some))):
            yield from _in_splits(folder, some, reading)
            some, bytes_of_some = [], 0
            advance(Progress("read", done, len(files), "pictures"))


def _in_splits(folder: Path, some: Sequence[tuple[File, np.ndarray]], reading: Reading) -> Iterator[Batch]:
    """Yield batches of pictures, each of one split."""
    for split in dict.fromkeys(file.split for file, _ in some):
        chosen = [file for file, _ in some if file.split == split]
        names = [str(file.path.relative_to(folder)) for file in chosen]
        images = np.stack([image for file, image in some if file.split == split])
        yield Batch(images, [file.label for file in chosen], split, groups(names, reading.group_by))


def _read(file: File, sized: Sized, reading: Reading, remarks: Remarks) -> np.ndarray | None:
    """Return the pixels of a picture; None if it cannot be read and may be left out."""
    try:
        found = picture.read_file(file.path)
    except FormatError as error:
        leave_out(str(error), error, reading, remarks)
        return None
    except OSError as error:
        problem = f"expected the file of a picture; found that it cannot be read: {error.strerror}; correct that"
        leave_out(f"{file.path}: {problem}", error, reading, remarks)
        return None
    note(found, remarks)
    return sized.image(file.path, found.pixels)


def leave_out(problem: str, error: Exception, reading: Reading, remarks: Remarks) -> None:
    """Note that a picture is left out because it cannot be read, if the user allows that.

    Raises:
        FormatError: the user does not.
    """
    if not reading.skip_bad:
        raise FormatError(f"{problem}; or leave out and list what cannot be read: --skip-bad") from error
    remarks.skipped.append(problem)


def note(found: picture.Picture, remarks: Remarks) -> None:
    """Remark on what of a picture is not used."""
    if found.was_colour:
        remarks.add(_GREY)
    if found.warning:
        remarks.add(f"a picture is not quite in order, but can be read: {found.warning}", "warning")
    if found.frames > 1:
        remarks.add("of pictures with several frames, the first one is read")


def groups(names: Iterable[str], pattern: str | None) -> list[str] | None:
    """Return the group of each picture: what a regular expression finds in its path, or its first group in brackets.

    Raises:
        ConfigError: it is no regular expression.
        FormatError: it finds nothing in a path.
    """
    if pattern is None:
        return None
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise ConfigError(
            f"--group-by: expected a regular expression that finds the group in a path, such as writer([0-9]+); found "
            f"{pattern!r}: {error}; correct it"
        ) from error
    found = []
    for name in names:
        match = search(name)
        group = match and (match[1] if match.groups() else match[0])
        if not group:
            raise refused(name, f"a group by {pattern!r} in each path", "none", "correct --group-by")
        found.append(group)
    return found
