"""The images that a model must get right: a folder beside the manifest, with a folder for each class."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.datasets.catalog import Dataset
from storage.errors import ConfigError, FormatError
from storage.files import alike, canonical, kind_of
from storage.words import counted, meant
from tasks.serving import image_files
from tasks.serving.image_files import ImageOptions, Say

MOST_FILES = 1_000
"""Every run reads them."""
_KEY = "behaviour.must_be_right"
_SCALED_BY = "an image program"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """An image that a model must get right."""

    file: str
    """Its path from the folder of all, with that folder's name."""
    label: int
    """The class that its folder names."""
    pixels: np.ndarray
    """uint8 of shape (height, width)."""


def check(dataset: Dataset) -> None:
    """Read all images once, if there are some: what is wrong with them is to be said before anything is trained.

    Raises:
        ConfigError, FormatError: see `read`.
    """
    if dataset.behaviour and dataset.behaviour.must_be_right:
        remarks = list[str]()
        for _ in read(dataset, remarks.append):
            pass
        for remark in dict.fromkeys(remarks):
            _log.warning("%s: %s", dataset.name, remark)


def digest(dataset: Dataset) -> str:
    """Return the SHA-256 of all images: their names, classes and pixels; empty if there are none.

    Raises:
        ConfigError, FormatError: see `read`.
    """
    if not (dataset.behaviour and dataset.behaviour.must_be_right):
        return ""
    total = hashlib.sha256()
    for image in read(dataset):
        total.update(canonical([image.file, image.label]))
        total.update(image.pixels.tobytes())
    return total.hexdigest()


def read(dataset: Dataset, say: Say = lambda remark: None) -> Iterator[Image]:
    """Yield the images, one by one, in the order of classes and file names; none if the manifest names no folder.

    They are read as `idxflow predict` reads them.

    Args:
        say: called with a remark if an image was transformed, such as one in colour.

    Raises:
        ConfigError: the folder is missing, empty, has too many files, or something else than folders of classes.
        FormatError: a file is damaged, of an unknown kind, or not a single image of the data set's size.
    """
    named = dataset.behaviour.must_be_right if dataset.behaviour else ""
    if not named:
        return
    options = ImageOptions(dataset.image_shape, spelling=_SCALED_BY)
    folder = _folder(dataset, named)
    for path, label in _files(dataset, folder):
        pixels = _only_image(path, options, say)
        yield Image(_printable(f"{folder.name}/{path.parent.name}/{path.name}"), label, pixels)


def _printable(name: str) -> str:
    """Return a name for records and sentences: no line ends, no commands to a terminal, no bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _only_image(path: Path, options: ImageOptions, say: Say) -> np.ndarray:
    image_files.check_is_file(path)
    found = list[np.ndarray]()
    for block in image_files.read(path, options, say):
        found.extend(block[:2])
        # A file with millions of images is not read to its end.
        if len(found) > 1:
            raise FormatError(
                f"{path}: expected one image in each file of {_KEY}; found more; save each in a file of its own"
            )
    return found[0]


def _folder(dataset: Dataset, named: str) -> Path:
    try:
        folder = (dataset.manifest.parent / Path(named).expanduser()).resolve()
        is_folder = folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        # A NUL, a user that does not exist, a loop of links.
        raise _unusable(dataset, f"{named!r} ({error})") from error
    if not is_folder:
        raise _unusable(dataset, f"{kind_of(folder)} at {folder}{alike(folder)}")
    return folder


def _unusable(dataset: Dataset, found: str) -> ConfigError:
    return ConfigError(
        f"{dataset.manifest}: expected {_KEY} to be a folder with a folder of images for each class; found {found}; "
        "correct the path, or the folder"
    )


def _files(dataset: Dataset, folder: Path) -> list[tuple[Path, int]]:
    """Return the path and the class of each image, by class and name."""
    found = [(path, label) for label, inner in _folders(dataset, folder) for path in _listed(dataset, inner)]
    found.sort(key=lambda image: (image[1], image[0].name))
    if not found:
        raise ConfigError(
            f"{folder}: expected images that a model must get right ({_KEY}) in folders of classes; found none; put "
            f"some there, such as in {folder / dataset.classes[0]}"
        )
    if len(found) > MOST_FILES:
        raise ConfigError(
            f"{folder}: expected at most {MOST_FILES:,} images that a model must get right ({_KEY}); found "
            f"{counted(len(found), 'file')}; keep those that matter most"
        )
    return found


def _folders(dataset: Dataset, folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the folders of classes, each with its class."""
    by_name = {_composed(name): label for label, name in enumerate(dataset.classes)}
    by_name |= {name: label for label, name in enumerate(dataset.classes)}
    for path in _listed(dataset, folder, shown=by_name):
        if not path.is_dir():
            raise ConfigError(
                f"{path}: expected each image of {_KEY} in the folder of its class; found {kind_of(path)} beside "
                "these; move it into one"
            )
        label = by_name.get(path.name, by_name.get(_composed(path.name)))
        if label is None:
            raise ConfigError(
                f"{path}: expected the folders of {_KEY} to be named like classes of {dataset.name}; found "
                f"{path.name!r}{meant(path.name, dataset.classes)}; rename it"
            )
        yield label, path


def _composed(name: str) -> str:
    """Return a name with each accent in one character with its letter: some file systems and programs part them."""
    return unicodedata.normalize("NFC", name)


def _listed(dataset: Dataset, folder: Path, shown: Container[str] = ()) -> list[Path]:
    """Return what is in a folder, without hidden files; names of `shown` are not taken for hidden."""
    try:
        found = sorted(path for path in folder.iterdir() if path.name in shown or not path.name.startswith("."))
        # With permission to list a folder only, nothing in it can be looked at.
        for path in found:
            path.lstat()
    except OSError as error:
        raise _unusable(dataset, f"{folder} ({error.strerror})") from error
    return found
