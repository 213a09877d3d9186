"""Write the manifest of a user's own data set from its four files."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage import catalog, idx
from storage.catalog import MAX_CLASSES, MAX_SIDE, ROLES, Limits
from storage.errors import ConfigError, FormatError
from storage.files import kind_of, sha256_of
from storage.records import SPLITS

_PATTERNS = {
    "train-images": r"train.*images",
    "train-labels": r"train.*labels",
    "test-images": r"(t10k|test).*images",
    "test-labels": r"(t10k|test).*labels",
}
_BLOCK_PIXELS = 1 << 24
"""How many pixels are read at a time, whatever the size of the images."""


@dataclass(frozen=True)
class _Images:
    """What the images of one split are like."""

    rows: int
    shape: tuple[int, ...]
    darkest: int
    brightest: int
    blank: int
    """How many have one value in all pixels."""


@dataclass(frozen=True)
class _Split:
    images: _Images
    rows_by_label: np.ndarray
    """How many rows have each label, from 0 on."""


def manifest_of(folder: Path, name: str | None = None, digests: bool = True) -> str:
    """Return the TOML manifest of the four IDX files in `folder`: one that `validate` and `run` can use.

    With `digests`, it accepts these archives and no others.

    Raises:
        ConfigError: a file is not there, there are several that it could be, or its name or the given one cannot
            stand in a manifest.
        FormatError: a file is not a complete IDX file, or no manifest could describe the four.
    """
    folder = folder.expanduser().absolute()
    _check_name(name)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder of four IDX files; found {kind_of(folder)}; correct the path")
    files = {role: _file_of(folder, role) for role in ROLES}
    splits = [_split(files[f"{split}-images"], files[f"{split}-labels"]) for split in SPLITS]
    shape = _shape(folder, splits)
    classes = max(len(split.rows_by_label) for split in splits)
    if classes < 2:
        raise FormatError(f"{folder}: expected labels of 2 classes or more; found only the label 0; add other images")
    lines = [
        f"name = {_text(name or _name_of(folder))}",
        "# The words to show for labels 0, 1, 2, …",
        f"classes = {json.dumps([str(n) for n in range(classes)])}",
        f"image_shape = [{shape[0]}, {shape[1]}]",
        "# Looked for here first; relative to this file. --source and IDXFLOW_SOURCE come before it.",
        f"source = {_text(str(folder))}",
        '# licence = "…"',
        '# homepage = "https://…"',
        "",
        "# With digests, other files are refused; `idxflow manifest --no-digests` is for files that change."
        if digests
        else "# Without digests, whatever has these names is the data.",
    ]
    for role, file in files.items():
        named = [f"bytes = {file.stat().st_size}", f'sha256 = "{sha256_of(file)}"'] if digests else []
        lines += [f"[archives.{role}]", f"file = {_text(file.name)}", *named, ""]
    lines += [
        *_limits(splits, classes),
        "# What a model must reach on the test split, and what differs from the default training, for example:",
        "# [floors]",
        "# accuracy = 0.9",
        "# [gate]",
        '# policy = "better"',
        "# [training]",
        "# learning_rate = 0.01",
    ]
    return "\n".join(lines) + "\n"


def _split(images: Path, labels: Path) -> _Split:
    found, counts = _images(images), _rows_by_label(labels)
    if found.rows != counts.sum():
        raise FormatError(
            f"{images} and {labels.name}: expected as many labels as images; found {found.rows:,} images and "
            f"{counts.sum():,} labels; give the two files that belong together"
        )
    return _Split(found, counts)


def _images(path: Path) -> _Images:
    with idx.Reader(path, str(path)) as reader:
        shape = reader.header.shape
        if len(shape) != 3 or reader.header.dtype != np.uint8 or max(shape[1:]) > MAX_SIDE:
            raise FormatError(
                f"{path}: expected images of three dimensions, uint8, of at most {MAX_SIDE}×{MAX_SIDE} pixels; found "
                f"{reader.header.dtype.name} of shape {shape} in the header; write the images as uint8"
            )
        darkest, brightest, blank = 255, 0, 0
        for block in reader.blocks(max(1, _BLOCK_PIXELS // math.prod(shape[1:]))):
            least, most = block.min(axis=(1, 2)), block.max(axis=(1, 2))
            darkest, brightest = min(darkest, int(least.min())), max(brightest, int(most.max()))
            blank += int((least == most).sum())
    return _Images(shape[0], shape[1:], darkest, brightest, blank)


def _rows_by_label(path: Path) -> np.ndarray:
    with idx.Reader(path, str(path)) as reader:
        if len(reader.header.shape) != 1 or reader.header.dtype.kind not in "ui":
            raise FormatError(
                f"{path}: expected labels of one dimension, whole numbers; found {reader.header.dtype.name} of shape "
                f"{reader.header.shape} in the header; write one label for each image, as uint8"
            )
        labels = reader.read()
    least, most = labels.min(), labels.max()
    if least < 0 or most >= MAX_CLASSES:
        raise FormatError(
            f"{path}: expected labels from 0 to at most {MAX_CLASSES - 1}; found {least} to {most}; "
            "number the classes from 0 on"
        )
    return np.bincount(labels)


def _shape(folder: Path, splits: list[_Split]) -> tuple[int, ...]:
    shapes = [split.images.shape for split in splits]
    if len(set(shapes)) > 1:
        raise FormatError(
            f"{folder}: expected images of one size in both splits; found {shapes[0]} for training and {shapes[1]} for "
            "the test; give the files that belong together"
        )
    return shapes[0]


def _limits(splits: list[_Split], classes: int) -> list[str]:
    """Return the lines about what the checks would refuse without them, though the files are meant to be so.

    How pixels are encoded is declared. What may as well be wrong with the data is only proposed.
    """
    usual = Limits()
    brightest = min(split.images.brightest for split in splits)
    darkest = max(split.images.darkest for split in splits)
    rows, blank = sum(split.images.rows for split in splits), sum(split.images.blank for split in splits)
    declared, proposed = [], []
    if brightest < usual.min_pixel_max:
        declared += [
            f"# The brightest pixel of a split is {brightest}. If 255 was meant, correct the images, not this.",
            f"min_pixel_max = {brightest}",
        ]
    if darkest > usual.max_pixel_min:
        declared += [
            f"# The darkest pixel of a split is {darkest}. If 0 was meant, correct the images, not this.",
            f"max_pixel_min = {darkest}",
        ]
    if blank == rows:
        declared += ["# All images have one value in all pixels.", "max_blank = 1"]
    elif blank:
        share = max(split.images.blank / split.images.rows for split in splits)
        proposed += [
            f"# {blank:,} of {rows:,} images have one value in all pixels, which is refused unless you say:",
            f"# max_blank = {_rounded_up(share)}",
        ]
    shares = [np.pad(s.rows_by_label, (0, classes - len(s.rows_by_label))) / s.images.rows for s in splits]
    least, most = min(float(s.min()) for s in shares), max(float(s.max()) for s in shares)
    if least == 0:
        labels = sorted({int(label) for s in shares for label in np.flatnonzero(s == 0)})
        proposed.append(f"# No row of a split has a label of {labels}, which is refused: number the classes from 0 on.")
    elif least < usual.least_class_share(classes):
        proposed += [
            "# The smallest class has a small share of a split, which is refused unless you say:",
            f"# min_class_share = {math.floor(1e4 * least) / 1e4}",
        ]
    if most > usual.max_class_share:
        proposed += [
            "# The largest class is nearly all of a split, which is refused unless you say:",
            f"# max_class_share = {_rounded_up(most)}",
        ]
    head = "[limits]" if declared else "# [limits]"
    return [head, *declared, *proposed, ""] if declared or proposed else []


def _rounded_up(share: float) -> float:
    return math.ceil(1e4 * share) / 1e4


def _file_of(folder: Path, role: str) -> Path:
    pattern = re.compile(_PATTERNS[role], re.IGNORECASE)
    there = sorted(p for p in folder.glob("*") if pattern.search(p.name) and p.name[0] != ".")
    found = [p for p in there if p.is_file()]
    packed = [p for p in found if p.suffix == ".gz"]
    chosen = packed if len(packed) == 1 else found
    if len(chosen) != 1:
        names = ", ".join(p.name if p.is_file() else f"{p.name}, which is {kind_of(p)}" for p in there) or "none"
        raise ConfigError(f"{folder}: expected one file of {role} (matching {_PATTERNS[role]}); found {names}")
    return chosen[0]


def _check_name(name: str | None) -> None:
    if name is not None and (not catalog.NAME.fullmatch(name) or name in catalog.names()):
        raise ConfigError(
            "--name: expected a-z, 0-9, - and _, at most 64 characters, starting with a letter or digit, and none of "
            f"the catalog's names ({', '.join(catalog.names())}); found {catalog.shown(name)}; choose another name"
        )


def _name_of(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.name.lower()).strip("-_")[:64] or "mine"
    return f"my-{name}" if name in catalog.names() else name


def _text(text: str) -> str:
    """Return a text as TOML.

    Raises:
        ConfigError: it has bytes that are not UTF-8, as names of files may, but no TOML file.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"expected names of files in UTF-8; found {text!a}; rename it") from error
    # JSON's text is TOML's, but for one control character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
