"""Write the manifest of a user's own data set from its files: four, or several of images and as many of labels."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.datasets import catalog
from storage.datasets.catalog import MAX_CLASSES, MAX_LABEL, MAX_LABEL_COLUMNS, MAX_SIDE, MIN_LABEL, ROLES
from storage.datasets.manifest import Limits
from storage.errors import ConfigError, FormatError
from storage.files import alike, kind_of, sha256_of
from storage.formats import idx
from storage.records import SPLITS
from storage.words import counted, times

_PATTERNS = {
    "train-images": r"train.*images",
    "train-labels": r"train.*labels",
    "test-images": r"(t10k|test).*images",
    "test-labels": r"(t10k|test).*labels",
}
_NUMBER = re.compile(r"(?:images|labels)[-_.](\d+)(?:[-_.]|$)", re.IGNORECASE)
"""The number of a file among several of its kind, as in `train-images-000-idx3-ubyte.gz`."""
_BLOCK_BYTES = 1 << 22
"""Bytes to read at a time, for images of any size."""
_NAMES_SHOWN = 5
_WITH_CHANNEL = 3
"""Dimensions of an image that has one for its channels."""
_WRITE = "and write that: storage.formats.idx.encode(array) gives the bytes of an IDX file"


@dataclass(frozen=True)
class _Images:
    """Properties of the images of one split."""

    rows: int
    shape: tuple[int, ...]
    """Rows and columns as the file has them."""
    darkest: int
    brightest: int
    blank: int
    """Number of images with the same value in all pixels."""


@dataclass(frozen=True)
class _Split:
    images: _Images
    rows_by_label: Mapping[int, int]
    """Number of rows for each label in the file."""


@dataclass(frozen=True)
class Layout:
    """How four files are laid out, where that is not as in MNIST's."""

    label_column: int | None = None
    """The column of the class, if label files have several, as in QMNIST."""
    label_base: int | None = None
    """The label from which the labels must count up without a gap; None: they may be any."""
    transpose: bool = False
    """Whether the files have rows and columns of each image swapped, as EMNIST's have."""


@dataclass(frozen=True)
class Stated:
    """What a manifest says that is not read from the files."""

    names: Sequence[str] = ()
    """Names of the classes, in the order of their labels; empty: their labels."""
    source: str = ""
    """The folder as the manifest names it; empty: its full path."""
    ink: str = ""
    """`bright` or `dark`; empty: the manifest proposes it in a comment."""
    date: str = ""
    """The day that all images are of, as 2026-11-30; empty: not stated."""


def manifest_of(
    folder: Path,
    name: str | None = None,
    digests: bool = True,
    layout: Layout | None = None,
    stated: Stated | None = None,
) -> str:
    """Return a TOML manifest of the IDX files in `folder`, for `validate` and `run`.

    Args:
        folder: the folder of the files.
        name: name of the data set; None: the folder's name.
        digests: whether the manifest accepts only these archives.
        layout: how the files are laid out; None: as MNIST's.
        stated: what the files do not say; None: nothing.

    Raises:
        ConfigError: a file is missing, several files could be it, or its name or the given name is not valid in a
            manifest.
        FormatError: a file is not a complete IDX file, or no manifest could describe the four.
    """
    folder, layout, stated = folder.expanduser().absolute(), layout or Layout(), stated or Stated()
    if name is not None:
        check_name(name, "--name")
    files = _files(folder)
    splits = [_split(files[f"{split}-images"], files[f"{split}-labels"], layout.label_column) for split in SPLITS]
    labels = _labels(folder, splits)
    _check_base(folder, labels, layout.label_base)
    lines = [
        f"name = {_text(name or _name_of(folder))}",
        *_classes(labels, stated.names, layout.label_column),
        *_size(_shape(folder, splits), layout.transpose),
        "# Folder of the archives, relative to this file. --source and IDXFLOW_SOURCE take precedence.",
        f"source = {_text(stated.source or str(folder))}",
        '# licence = "…"',
        '# homepage = "https://…"',
        '# Whether what is drawn is "bright" on a darker ground, or "dark". If set, the other is refused.',
        f'ink = "{stated.ink}"' if stated.ink else '# ink = "bright"',
        "",
        "# With digests, other files are refused; `idxflow manifest --no-digests` is for files that change."
        if digests
        else "# Without digests, any files with these names are accepted.",
    ]
    for role, listed in files.items():
        table = f"[archives.{role}]" if len(listed) == 1 else f"[[archives.{role}]]"
        for file in listed:
            named = [f"bytes = {file.stat().st_size}", f'sha256 = "{sha256_of(file)}"'] if digests else []
            named += [f"date = {stated.date}"] if stated.date and role.endswith("images") else []
            lines += [table, f"file = {_text(file.name)}", *named, ""]
    lines += [
        *_limits(splits, labels),
        "# Minimum scores on the test split, the policy of the gate, and training parameters, for example:",
        "# [floors]",
        "# accuracy = 0.9",
        "# [gate]",
        '# policy = "better"',
        "# [training]",
        "# learning_rate = 0.01",
    ]
    return "\n".join(lines) + "\n"


def _classes(labels: list[int], names: Sequence[str], column: int | None) -> list[str]:
    """Return the lines with the names of the classes and their labels in the files."""
    shown = ", ".join(_text(name) for name in names or map(str, labels))
    lines = ["# Names of the classes, as shown to people.", f"classes = [{shown}]"]
    if labels != _counting(labels[0], labels):
        lines += ["# The label that each class has in the files.", f"labels = {labels}"]
    elif labels[0]:
        lines += ["# The labels in the files count up from this one.", f"label_base = {labels[0]}"]
    if labels[0] < 0:
        lines += ["# A label below 0 often marks rows without a class. If it does here, take them out of the files."]
    if column is not None:
        lines += ["# The column of the label files that is the class.", f"label_column = {column}"]
    return lines


def _counting(base: int, labels: list[int]) -> list[int]:
    """Return as many labels, counting up from `base`."""
    return list(range(base, base + len(labels)))


def _size(shape: tuple[int, ...], transpose: bool) -> list[str]:
    """Return the lines with the size of the images, whose rows and columns in the files are `shape`."""
    rows, columns = shape
    if not transpose:
        return [f"image_shape = [{rows}, {columns}]"]
    return [
        "# Height and width of the upright images. The files have rows and columns of each image swapped.",
        f"image_shape = [{columns}, {rows}]",
        "transpose = true",
    ]


def _labels(folder: Path, splits: list[_Split]) -> list[int]:
    """Return the labels of both splits, ascending."""
    labels = sorted({label for split in splits for label in split.rows_by_label})
    if not 2 <= len(labels) <= MAX_CLASSES:
        count = f"only the label {labels[0]}" if len(labels) == 1 else f"{len(labels):,} different ones"
        raise FormatError(
            f"{folder}: expected labels of 2 to {MAX_CLASSES} classes; found {count}; give files with that many classes"
        )
    return labels


def _check_base(folder: Path, labels: list[int], base: int | None) -> None:
    if base is None or labels == _counting(base, labels):
        return
    due, other = next((due, label) for due, label in zip(_counting(base, labels), labels, strict=True) if due != label)
    raise FormatError(
        f"{folder}: expected labels that count up from {base} without a gap, because of --label-base {base}; found "
        f"{labels[0]} to {labels[-1]}, and {other} in the place of {due}; remove --label-base, so that they "
        "are written as they are, or give the files that it is for"
    )


def _split(images: Sequence[Path], labels: Sequence[Path], column: int | None) -> _Split:
    """Return the properties of a split of one pair of files, or of several together."""
    pairs = [_pair(*files, column) for files in zip(images, labels, strict=True)]
    first, rows_by_label = pairs[0].images, Counter[int]()
    for path, pair in zip(images, pairs, strict=True):
        if pair.images.shape != first.shape:
            raise FormatError(
                f"{path}: expected images of {times(first.shape)} pixels, as in {images[0].name}; found "
                f"{times(pair.images.shape)}; give the files that belong together"
            )
        rows_by_label.update(pair.rows_by_label)
    described = [pair.images for pair in pairs]
    return _Split(
        _Images(
            sum(one.rows for one in described),
            first.shape,
            min(one.darkest for one in described),
            max(one.brightest for one in described),
            sum(one.blank for one in described),
        ),
        rows_by_label,
    )


def _pair(images: Path, labels: Path, column: int | None) -> _Split:
    described, counts = _images(images), _rows_by_label(labels, column)
    rows = sum(counts.values())
    if described.rows != rows:
        raise FormatError(
            f"{images} and {labels.name}: expected as many labels as images; found {described.rows:,} images and "
            f"{rows:,} labels; give the two files that belong together"
        )
    return _Split(described, counts)


def _images(path: Path) -> _Images:
    with idx.Reader(path, str(path)) as reader:
        header = reader.header
        shape = _plane(header)
        remedy = _of_other_images(header)
        if remedy:
            raise FormatError(
                f"{path}: expected images as uint8 of shape (n, height, width), of at most {MAX_SIDE}×{MAX_SIDE} "
                f"pixels; found {header.dtype.name} of shape {header.shape} in the header; {remedy}"
            )
        darkest, brightest, blank = 255, 0, 0
        for block in reader.blocks(max(1, _BLOCK_BYTES // header.row_bytes)):
            pixels = block.reshape(len(block), -1)
            least, most = pixels.min(axis=1), pixels.max(axis=1)
            darkest, brightest = min(darkest, int(least.min())), max(brightest, int(most.max()))
            blank += int((least == most).sum())
    return _Images(header.shape[0], shape, darkest, brightest, blank)


def _plane(header: idx.Header) -> tuple[int, ...]:
    """Return the shape of an image, without the dimension of its one channel if it has that: the last or the first."""
    shape = header.shape[1:]
    if len(shape) != _WITH_CHANNEL:
        return shape
    return shape[:-1] if shape[-1] == 1 else shape[1:] if shape[0] == 1 else shape


def _of_other_images(header: idx.Header) -> str:
    """Return the remedy if a header is not that of usable images; otherwise an empty string."""
    dimensions = len(header.shape)
    if dimensions == 1:
        return "give the archive of the images; this looks like one of labels"
    if dimensions == 2:
        return f"give each image its height and width, in NumPy with .reshape(-1, height, width), {_WRITE}"
    if len(_plane(header)) > 2:
        # Channels are fewer than rows or columns.
        axis = 1 if header.shape[1] < header.shape[3] else 3
        return f"turn colour images into grey ones, such as in NumPy with .mean(axis={axis}).astype(np.uint8), {_WRITE}"
    if header.dtype != np.uint8:
        return f"write the pixels as 0-255, in NumPy with .astype(np.uint8), {_WRITE}"
    return "write the images smaller" if max(_plane(header)) > MAX_SIDE else ""


def _rows_by_label(path: Path, column: int | None) -> Counter[int]:
    """Return the number of rows for each label. Memory does not grow with the file or the number of labels."""
    rows: Counter[int] = Counter()
    with idx.Reader(path, str(path)) as reader:
        _check_labels(path, reader.header, column)
        if reader.header.dtype.kind == "f":
            raise _not_integers(path, reader, column)
        for block in _blocks_of_labels(reader, column):
            values, counts = np.unique(block, return_counts=True)
            _check_values(path, np.union1d(values, np.array([*rows], values.dtype)), reader.header)
            rows.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return rows


def _check_values(path: Path, values: np.ndarray, header: idx.Header) -> None:
    """Refuse labels, given as their different values in ascending order, that are not classes."""
    if remedy := _of_other_labels(values, header):
        span = " to ".join(f"{value:,}" for value in dict.fromkeys(values[[0, -1]].tolist()))
        raise FormatError(
            f"{path}: expected labels of at most {MAX_CLASSES} classes; found {counted(len(values), 'value')}, {span}, "
            f"or more; {remedy}"
        )


def _blocks_of_labels(reader: idx.Reader, column: int | None) -> Iterator[np.ndarray]:
    """Yield the labels of a few MB of the file at a time, shape (n,)."""
    for block in reader.blocks(max(1, _BLOCK_BYTES // reader.header.row_bytes)):
        yield block if block.ndim == 1 else block[:, column]


def _not_integers(path: Path, reader: idx.Reader, column: int | None) -> FormatError:
    """Return the error about labels of a floating-point type, after a look at them: NaN, say, cannot be converted."""
    kind, start, least, most = reader.header.dtype.name, 0, MAX_LABEL, MIN_LABEL
    for values in _blocks_of_labels(reader, column):
        with np.errstate(invalid="ignore"):
            whole = (values >= MIN_LABEL) & (values <= MAX_LABEL) & (values == np.rint(values))
        if not whole.all():
            row = int(whole.argmin())
            return FormatError(
                f"{path}: expected labels that are integers; found {kind} with {values[row]} at row {start + row:,}; "
                "give each such row the number of its class, or take it out with its image; then write them as "
                f"integers, in NumPy with .astype(np.uint8), {_WRITE}"
            )
        least, most, start = min(least, int(values.min())), max(most, int(values.max())), start + len(values)
    integer = "uint8" if least >= 0 and most <= np.iinfo(np.uint8).max else "int32"
    return FormatError(
        f"{path}: expected labels that are integers; found {kind}, from {least:,} to {most:,}; write them as integers, "
        f"in NumPy with .astype(np.{integer}), {_WRITE}"
    )


def _check_labels(path: Path, header: idx.Header, column: int | None) -> None:
    shape, kind = header.shape, header.dtype.name
    if len(shape) > 2:
        remedy = "give the archive of the labels; this looks like one of images"
    elif len(shape) == 2 and column is None:
        remedy = "choose the column that is the class, such as the first, which it is in QMNIST: --label-column 0"
    elif len(shape) == 2 and not column < shape[1] <= MAX_LABEL_COLUMNS:  # type: ignore[operator]  # not None
        remedy = f"choose another --label-column than {column}, below {min(shape[1], MAX_LABEL_COLUMNS)}"
    else:
        return
    raise FormatError(
        f"{path}: expected one label for each image, an integer, or rows of at most {MAX_LABEL_COLUMNS:,} numbers "
        f"of which one is; found {kind} of shape {shape} in the header; {remedy}"
    )


def _of_other_labels(values: np.ndarray, header: idx.Header) -> str:
    """Return the remedy if labels are not classes; otherwise an empty string.

    Small numbers written little-endian (IDX is big-endian) are recognized by their values: 1 is read as 16,777,216.
    """
    if header.dtype.itemsize > 1 and values[-1] >= MAX_CLASSES:
        swapped = np.array(values, header.dtype).byteswap()
        if swapped.min() >= 0 and swapped.max() < MAX_CLASSES:
            return "write them big-endian, or as uint8; these look little-endian"
    return "give the file with the classes, not with other numbers" if len(values) > MAX_CLASSES else ""


def _shape(folder: Path, splits: list[_Split]) -> tuple[int, ...]:
    shapes = [split.images.shape for split in splits]
    if len(set(shapes)) > 1:
        raise FormatError(
            f"{folder}: expected images of one size in both splits; found {shapes[0]} for training and {shapes[1]} for "
            "the test; give the files that belong together"
        )
    return shapes[0]


def _limits(splits: list[_Split], labels: list[int]) -> list[str]:
    """Return the limits without which the checks would refuse or remark on properties that the files may intend.

    The encoding of pixels is declared. Limits for properties that may also be errors in the data are only proposed.
    """
    usual = Limits()
    brightest = min(split.images.brightest for split in splits)
    darkest = max(split.images.darkest for split in splits)
    rows, blank = sum(split.images.rows for split in splits), sum(split.images.blank for split in splits)
    declared, proposed = [], []
    if brightest < usual.min_pixel_max:
        declared += [
            f"# The brightest pixel of a split is {brightest}. If 255 was meant, correct the images instead.",
            f"min_pixel_max = {brightest}",
        ]
    if darkest > usual.max_pixel_min:
        declared += [
            f"# The darkest pixel of a split is {darkest}. If 0 was meant, correct the images instead.",
            f"max_pixel_min = {darkest}",
        ]
    if blank == rows:
        declared += ["# All images have one value in all pixels.", "max_blank = 1"]
    elif blank:
        share = max(split.images.blank / split.images.rows for split in splits)
        proposed += [
            f"# {blank:,} of {rows:,} images have one value in all pixels, which is refused unless you set:",
            f"# max_blank = {_rounded_up(share)}",
        ]
    proposed += _absent(splits, labels)
    shares = [split.rows_by_label.get(label, 0) / split.images.rows for split in splits for label in labels]
    least, most = min(shares), max(shares)
    if 0 < least < usual.least_class_share(len(labels)):
        proposed += [
            "# The smallest class has a small share of a split, which is refused unless you set:",
            f"# min_class_share = {math.floor(1e4 * least) / 1e4}",
        ]
    if most > usual.max_class_share:
        proposed += [
            "# The largest class is nearly all of a split, which is refused unless you set:",
            f"# max_class_share = {_rounded_up(most)}",
        ]
    head = "[limits]" if declared else "# [limits]"
    return [head, *declared, *proposed, ""] if declared or proposed else []


def _absent(splits: list[_Split], labels: list[int]) -> Iterator[str]:
    for name, split in zip(SPLITS, splits, strict=True):
        if absent := [label for label in labels if label not in split.rows_by_label]:
            yield (
                f"# The {name} split has no row with a label of {absent}, which is refused: "
                "add such rows to it, or take them out of the other split."
            )


def _rounded_up(share: float) -> float:
    return math.ceil(1e4 * share) / 1e4


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each role: one, or several with numbers, in their order.

    Raises:
        ConfigError: it is not a folder; a file is missing or not regular; or several files could be it.
    """
    if not folder.is_dir():
        raise _no_set(folder, f"{kind_of(folder)}{alike(folder)}", "correct the path")
    candidates = {role: files_of(folder, role) for role in ROLES}
    missing = [role for role, files in candidates.items() if not files]
    if missing:
        entries = sorted(_shown_entry(path) for path in folder.iterdir() if path.name[0] != ".")
        more = f" and {len(entries) - _NAMES_SHOWN:,} more" if len(entries) > _NAMES_SHOWN else ""
        among = f"none for {', '.join(missing)} among {', '.join(entries[:_NAMES_SHOWN]) or 'nothing'}{more}"
        inside = next((sub for sub in sorted(folder.glob("*/")) if all(files_of(sub, role) for role in ROLES)), None)
        remedy = (
            f"give {inside}, which has them"
            if inside
            else "give the folder that has them, or rename them accordingly; write pictures and tables as such files "
            "first: storage.formats.idx.encode(array) gives the bytes of one"
        )
        raise _no_set(folder, among, remedy)
    numbered = {role: _numbered(files) for role, files in candidates.items() if len(files) > 1}
    for role, by_number in numbered.items():
        if not by_number:
            files = candidates[role]
            names = ", ".join(path.name for path in files[:_NAMES_SHOWN])
            more = f" and {len(files) - _NAMES_SHOWN:,} more" if len(files) > _NAMES_SHOWN else ""
            raise ConfigError(
                f"{folder}: expected one file of {role}, or several with different numbers, such as "
                f"{role}-000.gz; found {len(files):,}: {names}{more}; move the others to another folder, or "
                "rename them"
            )
    for split in SPLITS:
        if not numbered.keys().isdisjoint((f"{split}-images", f"{split}-labels")):
            _check_numbers(folder, *(_numbered(candidates[f"{split}-{kind}"]) for kind in ("images", "labels")))
    return {
        role: [path for _, path in sorted(numbered[role].items())] if role in numbered else files
        for role, files in candidates.items()
    }


def _numbered(files: Sequence[Path]) -> dict[int, Path]:
    """Return files by their numbers; none if one has no number, or two have the same."""
    found: dict[int, Path] = {}
    for path in files:
        match = _NUMBER.search(path.name)
        if not match or int(match[1]) in found:
            return {}
        found[int(match[1])] = path
    return found


def _check_numbers(folder: Path, images: Mapping[int, Path], labels: Mapping[int, Path]) -> None:
    """Check that several files of images have labels of the same numbers.

    Raises:
        ConfigError: they have not.
    """
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        path = {**images, **labels}[alone[0]]
        raise ConfigError(
            f"{folder}: expected a file of images and one of labels with each number; found {path.name} alone; add the "
            "other, or move it to another folder"
        )


def files_of(folder: Path, role: str) -> list[Path]:
    """Return the files in a folder that could be that of `role`; a compressed one precedes the same uncompressed."""
    pattern = re.compile(_PATTERNS[role], re.IGNORECASE)
    paths = sorted(path for path in folder.glob("*") if pattern.search(path.name) and path.name[0] != ".")
    paths = [path for path in paths if path.is_file()]
    packed = [path for path in paths if path.suffix == ".gz"]
    return packed if len(packed) == 1 else paths


def _shown_entry(path: Path) -> str:
    return path.name if path.is_file() else f"{path.name} ({kind_of(path)})"


def _no_set(folder: Path, actual: str, remedy: str) -> ConfigError:
    return ConfigError(
        f"{folder}: expected a folder of four IDX files (the format of MNIST's archives, plain or gzip), with "
        "train-images, train-labels, t10k-images or test-images, t10k-labels or test-labels in their names; found "
        f"{catalog.one_line(actual)}; {remedy}"
    )


def check_name(name: str, what: str) -> None:
    """Check the name of a user's data set, which `what` gave.

    Raises:
        ConfigError: it is no name, or one of the catalog.
    """
    if not catalog.NAME.fullmatch(name) or name in catalog.names():
        raise ConfigError(
            f"{what}: expected a-z, 0-9, - and _, at most 64 characters, starting with a letter or digit, and none of "
            f"the catalog's names ({', '.join(catalog.names())}); found {catalog.shown(name)}; choose another name"
        )


def _name_of(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.name.lower()).strip("-_")[:64] or "mine"
    return f"my-{name}" if name in catalog.names() else name


def _text(text: str) -> str:
    """Return a text as TOML.

    Raises:
        ConfigError: it has bytes that are not UTF-8, which file names may contain but TOML files may not.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"expected names of files in UTF-8; found {text!a}; rename it") from error
    # JSON strings are TOML strings, except for one control character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
