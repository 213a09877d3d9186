"""Arrays of NumPy (.npy in a folder, .npz) and of MATLAB as EMNIST has them. No Python object in a file is loaded."""

from __future__ import annotations

import math
import re
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.records import SplitName
from storage.words import times
from tasks.adding.batches import (
    BATCH_ROWS,
    Batch,
    Reading,
    Remarks,
    Source,
    as_images,
    as_pixels,
    check_room,
    column,
    present,
    raise_if_full,
    refused,
    rows_at_once,
    shown_of,
    splits_of,
)
from tasks.adding.sizing import Sized
from tasks.serving.picture import BROKEN
from tasks.ui.progress import Progress, advance

MAX_BYTES = 1 << 38
"""Maximum inflated size of all arrays of one file."""
_LABELS = re.compile(r"(^|[^a-z])(y|labels?|targets?|classes)([^a-z]|$)", re.IGNORECASE)
_IMAGES = re.compile(r"(^|[^a-z])(x|images?|imgs?|data|pixels)([^a-z]|$)", re.IGNORECASE)
USES = frozenset({"label_column", "group_by", "white"})
"""What of `Reading` changes how arrays are read."""
WRITERS = "writers"
"""What groups EMNIST's images of a MATLAB file."""
_COLOUR = (0.299, 0.587, 0.114)
"""ITU-R 601."""
_EXACT = 1 << 53
"""Up to here, floating-point numbers have each whole number (IEEE 754, binary64)."""
_AGAIN = "write it again, in NumPy with np.savez(…, x_train=…, y_train=…, x_test=…, y_test=…) of arrays of uint8"


def npz_source(files: list[Path], scratch: Path, reading: Reading, remarks: Remarks) -> Source:
    """Return the arrays of .npz files as a source; they are unpacked into `scratch`, to be read in parts.

    In several files, each has one array, which has the file's name, as in Kuzushiji-49.

    Raises:
        FormatError: a file is damaged, or has other arrays.
    """
    found = {path: _unpacked(path, scratch / str(number)) for number, path in enumerate(files)}
    if len(files) == 1:
        return _source(files[0], found[files[0]], "an .npz file", reading, remarks)
    alone = {path.stem: next(iter(arrays.values())) for path, arrays in found.items() if len(arrays) == 1}
    return _source(files[0].parent, alone, ".npz files", reading, remarks)


def _unpacked(path: Path, folder: Path) -> dict[str, Path]:
    """Unpack an .npz file; return the file of each array."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if (size := sum(member.file_size for member in members)) > MAX_BYTES:
                raise ValueError(f"it declares {size:,} bytes, more than {MAX_BYTES:,}")
            check_room(folder, size)
            if twice := [name for name, count in Counter(archive.namelist()).items() if count > 1]:
                raise ValueError(f"two arrays named {twice[0]}")
            for number, member in enumerate(members):
                with archive.open(member) as packed, (folder / f"{number}.npy").open("xb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
    except (*BROKEN, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise_if_full(error)
        raise refused(path, "an undamaged .npz file", str(error), _AGAIN) from error
    return {member.filename.removesuffix(".npy"): folder / f"{n}.npy" for n, member in enumerate(members)}


def npy_source(folder: Path, files: list[Path], reading: Reading, remarks: Remarks) -> Source:
    """Return the .npy files of a folder as a source.

    Raises:
        FormatError: they are damaged, or no pairs of images and labels.
    """
    return _source(folder, {file.stem: file for file in files}, "a folder of .npy files", reading, remarks)


def _source(where: Path, arrays: Mapping[str, Path], kind: str, reading: Reading, remarks: Remarks) -> Source:
    pairs = _pairs(where, list(arrays), remarks)
    loaded = [
        (split, _mapped(where, images, arrays), _mapped(where, labels, arrays)) for split, images, labels in pairs
    ]
    kind = f"{kind} with {', '.join(f'{images} and {labels}' for _, images, labels in pairs)}"
    return Source(kind, _all_rows(where, loaded, reading, remarks), uses=USES)


def _pairs(where: Path, names: list[str], remarks: Remarks) -> list[tuple[SplitName | None, str, str]]:
    """Return for each split the names of the arrays of its images and of its labels."""
    splits = splits_of([Path(_words(name)) for name in names], remarks)
    pairs = []
    for split in dict.fromkeys(splits):
        own = [name for name, found in zip(names, splits, strict=True) if found == split]
        # Two of a split, such as those to train and to validate, differ in the rest of their names.
        alike = [[name for name in own if _rest(name) == rest] for rest in dict.fromkeys(map(_rest, own))]
        found = [pair] if (pair := _pair(own)) else [pair for names in alike if (pair := _pair(names))]
        pairs += [(split, *pair) for pair in found]
    if not pairs:
        shown = ", ".join(names[:8]) or "none"
        raise refused(where, "arrays named x_train, y_train, x_test and y_test, or x and y", shown, _AGAIN)
    used = {name for _, *pair in pairs for name in pair}
    if left := [name for name in names if name not in used]:
        remarks.add(
            f"of the arrays, these are left out, because it is not clear which belong together: {shown_of(left)}"
        )
    return pairs


def _pair(names: list[str]) -> tuple[str, str] | None:
    """Return the names of the images and of the labels among these, if one of them has images and one has labels."""
    labels = [name for name in names if _LABELS.search(_words(name))]
    images = [name for name in names if _IMAGES.search(_words(name)) and name not in labels]
    return (images[0], labels[0]) if len(labels) == len(images) == 1 else None


def _rest(name: str) -> str:
    """Return a name without the word that says whether it has images or labels, such as `train`."""
    words = _words(name).lower().split()
    return " ".join(word for word in words if not (_LABELS.search(word) or _IMAGES.search(word)))


def _words(name: str) -> str:
    """Return a name with its words apart: `XTrain`, `train_images2` and `y-test` have several."""
    return re.sub(r"([a-z])([A-Z])|[_\-.0-9]+", r"\1 \2", name)


def _mapped(where: Path, name: str, arrays: Mapping[str, Path]) -> np.ndarray:
    try:
        # Mapped, not read: a header with a false size is detected before memory is allocated.
        array: np.ndarray = np.load(arrays[name], mmap_mode="r", allow_pickle=False)
    except BROKEN as error:
        is_object = "pickle" in str(error) or "Object arrays" in str(error) or "Python objects" in str(error)
        problem = "Python objects (pickle), which could run code and are never loaded" if is_object else str(error)
        raise refused(where, f"numbers in the array {name}", problem, _AGAIN) from error
    return array


def mat_source(path: Path, reading: Reading, remarks: Remarks) -> Source:
    """Return a MATLAB file of EMNIST's form as a source: `dataset.train.images` with `labels`, the same of `test`.

    Its images are stored column by column, so they are turned upright unless `reading` says otherwise; each row of
    `dataset.mapping` has a label and the code of its character (https://arxiv.org/abs/1702.05373).

    Raises:
        FormatError: it is damaged, or has another form.
    """
    from scipy.io import loadmat

    try:
        content: Any = loadmat(path, simplify_cells=True)
        dataset = content["dataset"]
        loaded: list[tuple[SplitName | None, np.ndarray, np.ndarray]] = [
            (split, np.asarray(dataset[split]["images"]), np.asarray(dataset[split]["labels"]))
            for split in ("train", "test")
        ]
        writers = [np.asarray(dataset[split].get("writers", ())) for split in ("train", "test")]
        mapping = np.atleast_2d(dataset["mapping"])
        names = {str(int(row[0])): chr(int(row[1])) for row in mapping} if mapping.shape[1] == 2 else {}
    except Exception as error:  # scipy documents no set of its own
        raise refused(
            path,
            "a MATLAB file of EMNIST's form, with dataset.train.images, dataset.train.labels and the same of test",
            f"{type(error).__name__}: {error}",
            "save it in that form, or as .npz",
        ) from error
    reading = upright(reading, remarks)
    return Source("a MATLAB file of EMNIST", _all_rows(path, loaded, reading, remarks, writers), names, uses=USES)


def upright(reading: Reading, remarks: Remarks) -> Reading:
    """Return how to read EMNIST's files: transposed, unless the user says otherwise."""
    if reading.transpose is not None:
        return reading
    remarks.add("EMNIST's images are stored transposed; they are turned upright (--no-transpose leaves them)")
    return replace(reading, transpose=True)


def _all_rows(
    where: Path,
    loaded: list[tuple[SplitName | None, np.ndarray, np.ndarray]],
    reading: Reading,
    remarks: Remarks,
    writers: list[np.ndarray] | None = None,
) -> Iterator[Batch]:
    """Yield the rows of arrays, batch by batch."""
    sized, total, done = Sized(reading), sum(len(images) for _, images, _ in loaded if images.ndim), 0
    for number, (split, images, labels) in enumerate(loaded):
        _check_pair(where, images, labels)
        _check_not_one_hot(where, labels, reading)
        chosen, table = column_of(where, labels.shape, reading), labels.reshape(len(labels), -1)
        step = rows_at_once(images[0].nbytes)
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            pixels = grey(where, np.asarray(images[rows]), reading, remarks, start)
            grouped = groups_of(where, writers[number][rows] if writers else None, table[rows], reading)
            yield Batch(sized.images(where, pixels), texts(where, table[rows, chosen]), split, grouped)
            done += len(pixels)
            advance(Progress("read", done, total, "images"))


def _check_pair(where: Path, images: np.ndarray, labels: np.ndarray) -> None:
    if not images.ndim or not labels.ndim or len(images) != len(labels) or not len(images):
        raise refused(
            where,
            "as many labels as images, at least one",
            f"images of shape {times(images.shape) or '()'} and labels of shape {times(labels.shape) or '()'}",
            "give the arrays that belong together",
        )


def _check_not_one_hot(where: Path, labels: np.ndarray, reading: Reading) -> None:
    """Refuse labels of which each row has a 1 in the column of its class: no column of them is the class."""
    if reading.label_column is not None or labels.ndim != 2 or labels.shape[1] == 1 or labels.dtype.kind not in "uifb":
        return
    first = np.asarray(labels[:BATCH_ROWS])
    if (np.count_nonzero(first, axis=1) == 1).all() and (first.max(axis=1) == 1).all():
        raise refused(
            where,
            "one label for each image",
            f"one-hot labels of shape {times(labels.shape)}",
            "write the number of each class instead, in NumPy with y.argmax(axis=1)",
        )


def column_of(where: Path, shape: tuple[int, ...], reading: Reading) -> int:
    """Return the column of the class in labels of a shape: the only one, or the one that the user named.

    Raises:
        FormatError: it has no such column, or nobody knows which it is.
    """
    columns = math.prod(shape[1:])
    if len(shape) > 2 and columns > 1:
        remedy = "give the labels; these look like images"
    elif reading.label_column is not None:
        return column(where, [str(number) for number in range(columns)], reading.label_column)
    elif columns == 1:
        return 0
    else:
        remedy = "say which column is the class, such as --label-column 0"
    raise refused(where, "one label for each image", f"labels of shape {times(shape)}", remedy)


def groups_of(where: Path, writers: np.ndarray | None, table: np.ndarray, reading: Reading) -> list[str] | None:
    """Return the group of each row of a table of labels; `writers` are EMNIST's.

    Raises:
        FormatError: there is no such column.
    """
    if reading.group_by is None:
        return None
    if reading.group_by == WRITERS and writers is not None and len(writers) == len(table):
        return texts(where, writers.reshape(len(table), -1)[:, 0])
    return texts(where, table[:, column(where, [str(number) for number in range(table.shape[1])], reading.group_by)])


def grey(where: object, images: np.ndarray, reading: Reading, remarks: Remarks, first: int) -> np.ndarray:
    """Return arrays of images, of 2 to 4 dimensions, as uint8 of shape (n, height, width).

    Args:
        first: number of the first of these images in the source, for messages.

    Raises:
        FormatError: they are no images.
    """
    if images.ndim == 4 and 1 in (images.shape[1], images.shape[3]):
        images = images[..., 0] if images.shape[3] == 1 else images[:, 0]
    if images.ndim == 4 and images.shape[3] == 3:
        remarks.add("colour images are read as grey: 0.299 red, 0.587 green, 0.114 blue (ITU-R 601)")
        colours = as_pixels(where, images, reading, first).astype(np.float64)
        mixed: np.ndarray = np.rint(colours @ np.array(_COLOUR)).astype(np.uint8)
        return mixed
    if images.ndim == 2:
        return as_images(where, as_pixels(where, images, reading, first), reading)
    if images.ndim != 3:
        raise refused(
            where,
            "images of shape (n, height, width), (n, height, width, 1 or 3) or (n, pixels)",
            f"an array of shape {times(images.shape)}",
            "give grey images in one of these shapes",
        )
    return as_pixels(where, images, reading, first)


def texts(where: object, values: np.ndarray) -> list[str]:
    """Return labels as text: whole numbers without a fraction, and texts as they are.

    Raises:
        FormatError: they are neither, or one is missing.
    """
    actual = values.dtype.name
    if values.dtype.kind in "US":
        return present(where, _decoded(where, values))
    if values.dtype.kind in "uib":
        return [str(int(value)) for value in values.tolist()]
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (np.abs(values) <= _EXACT)
        whole[whole] = values[whole] == np.rint(values[whole])
        if whole.all():
            return [str(int(value)) for value in values.tolist()]
        actual = f"{values[~whole].flat[0]:g}"
    remedy = "correct the labels, or give the array of labels"
    raise refused(where, "labels as whole numbers or texts", actual, remedy)


def _decoded(where: object, values: np.ndarray) -> list[str]:
    """Return an array of text; that of bytes is UTF-8."""
    try:
        decoded = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    except UnicodeDecodeError as error:
        raise refused(where, "labels in UTF-8", str(error), "write the labels as numbers, or in UTF-8") from error
    return [str(value).strip() for value in decoded.tolist()]
