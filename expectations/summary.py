"""Summarize a split for the expectations: a small table with one row per image instead of pixels, and smaller tables.

784 pixel columns would take Great Expectations minutes; these tables take milliseconds. Columns of the image table are
int64 or float64, the two types over which it does not loop in Python.

A split is read twice. The first pass (`survey`) keeps the data needed to compare images: 9 bytes per row. The second
(`images`) measures each image and yields the table in parts, so that millions of rows are never in memory at once.
Images of any size are converted to float32 in pieces of a few MB.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.datasets.catalog import Dataset
from storage.formats import parquet
from storage.records import Split, SplitName

Table = dict[str, np.ndarray]

IMAGE_COLUMNS: dict[str, type] = {
    "index": np.int64,  # row number in the split, from 0
    "label": np.int64,  # 0-255, as the archive has it
    "pixel_min": np.int64,  # 0-255
    "pixel_max": np.int64,  # 0-255
    "mean": np.float64,  # of the pixels, 0-255
    "digest": np.int64,  # BLAKE2b of the pixels, 64 bits: equal images have equal digests
    "blank": np.int64,  # 1: all pixels have one value
    "duplicate": np.int64,  # 1: the image occurs earlier in the same split
    "conflict": np.int64,  # 1: the image occurs in the same split with another label too
    "leaked": np.int64,  # 1: a test image that occurs in the training split
    "nearest": np.int64,  # class whose mean training image is nearest, this one left out; -1: there are no means
    "centroid_hit": np.int64,  # 1: that class is the label
}

_MEASURED = ("label", "pixel_min", "pixel_max", "mean", "blank", "nearest", "centroid_hit")
"""The columns measured from each image alone; the others compare it with its split, or with the training split."""

_LEAST_MATCHED = 30
"""Minimum number of rows for the normal approximation."""
_TELLING = 8
"""Standard deviations from chance at which a good part is sure to differ from it, however much parts differ."""
_PIECE_PIXELS = 1 << 20
"""How many pixels are converted to float32 at a time: 4 MB, which stays in a processor's cache."""


@dataclass(frozen=True)
class Centroids:
    """The mean image of each class that has images."""

    labels: np.ndarray
    """int64, shape (n,), ascending: the classes that have images."""
    means: np.ndarray
    """float32, shape (n, pixels), 0-255."""
    counts: np.ndarray
    """int64, shape (n,): number of images behind each mean."""
    exact: np.ndarray
    """float64, shape (n, pixels), 0-255: the means before they were rounded to float32."""

    def nearest(self, images: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """Return the label whose mean is nearest (least squares) to each of `images`; -1 if there are no means.

        Args:
            images: uint8, shape (rows, pixels).
            own: their labels, if the means are of these images: each image, unless it is alone in its class, is then
                left out of its class mean, which it would pull towards itself.

        Returns:
            int64, shape (rows,).
        """
        if not len(self.labels):
            return np.full(len(images), -1)
        pixels = images.astype(np.float32)
        # |x - c|² without |x|², which is the same for every c, halved and negated: the largest score is the nearest.
        scores = pixels @ self.means.T - (self.means**2).sum(axis=1) / 2
        if own is not None:
            # Without x, the mean of the n images of its class is n / (n - 1) times as far from x.
            away = np.where(self.counts > 1, self.counts / np.maximum(self.counts - 1, 1), 1).astype(np.float32) ** 2
            places = np.searchsorted(self.labels, own)
            rows = np.flatnonzero(np.isin(own, self.labels))
            halves, mine = (pixels[rows] ** 2).sum(axis=1) / 2, (rows, places[rows])
            scores[mine] = halves - away[places[rows]] * (halves - scores[mine])
        nearest: np.ndarray = self.labels[scores.argmax(axis=1)]
        return nearest


@dataclass(frozen=True)
class Survey:
    """The results of the first pass over a split."""

    labels: np.ndarray
    """uint8, shape (rows,)."""
    digests: np.ndarray
    """int64, shape (rows,): BLAKE2b of the pixels, 64 bits."""
    means: Centroids


def survey(blocks: Iterable[tuple[np.ndarray, np.ndarray]], classes: int) -> Survey:
    """Make the first pass over a split, given as the blocks of `storage.formats.parquet.blocks`.

    Labels that are not a class are left out of the means. The sums are exact, so the order of blocks does not matter.
    """
    sums, counts = np.zeros((classes, 1)), np.zeros(classes, np.int64)
    found, seen = bytearray(), bytearray()
    for flat, labels in pieces(blocks):
        sums = sums + class_sums(flat, labels, classes)
        counts += np.bincount(labels, minlength=256)[:classes]
        found += digests(flat)
        seen += labels.tobytes()
    return Survey(np.frombuffer(seen, np.uint8), np.frombuffer(found, "<i8"), class_means(sums, counts))


def class_sums(flat: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the sum of the images of each class in a piece of `pieces`, float64 of shape (classes, pixels), exact."""
    # A piece has at most 65,536 rows of at most 255: the sums are integers below 2²⁴, exact in float32.
    member = (labels == np.arange(classes)[:, None]).astype(np.float32)
    sums: np.ndarray = (member @ flat.astype(np.float32)).astype(np.float64)
    return sums


def class_means(sums: np.ndarray, counts: np.ndarray) -> Centroids:
    """Return the mean image of each class that has images.

    Args:
        sums: of the images of each class, shape (classes, pixels); whole numbers below 2⁵³.
        counts: number of these images, int64, shape (classes,).
    """
    present = np.flatnonzero(counts)
    exact = sums[present] / counts[present, None]
    return Centroids(present, exact.astype(np.float32), counts[present], exact)


def digests(flat: np.ndarray, person: bytes = b"") -> bytes:
    """Return BLAKE2b (64 bits) of each image of `flat`, uint8 of shape (rows, pixels): 8 bytes each, joined.

    Args:
        flat: the images.
        person: makes it another, independent function.
    """
    return b"".join(hashlib.blake2b(row, digest_size=8, person=person).digest() for row in flat)


def images(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    split_survey: Survey,
    train: Survey | None,
    part_rows: int,
) -> Iterator[Table]:
    """Yield the image table of one split in parts, with the columns of `IMAGE_COLUMNS`: at least one, even if empty.

    Args:
        blocks: of `storage.formats.parquet.blocks`, for the same split as `split_survey`.
        split_survey: the results of the first pass over the split.
        train: the same for the training split, used by `nearest` and `leaked`; None: this is the training split, and
            nothing is leaked.
        part_rows: minimum number of rows of each part but the last.
    """
    compared = _repeats(split_survey.digests, split_survey.labels)
    leaked = np.zeros(len(split_survey.digests), bool) if train is None else among(split_survey.digests, train.digests)
    compared |= {"digest": split_survey.digests, "leaked": leaked}
    return tables(pieces(blocks), compared, (train or split_survey).means, train is None, part_rows)


def tables(
    flat_pieces: Iterable[tuple[np.ndarray, np.ndarray]],
    compared: Mapping[str, np.ndarray],
    means: Centroids,
    of_them: bool,
    part_rows: int,
    first: int = 0,
) -> Iterator[Table]:
    """Yield an image table in parts: at least one, even if empty.

    Args:
        flat_pieces: of `pieces`.
        compared: the columns that compare an image with others, by name: `digest`, `duplicate`, `conflict`, `leaked`.
        means: of the training split.
        of_them: whether the images are those behind the means.
        part_rows: minimum number of rows of each part but the last.
        first: `index` of the first row.
    """
    start = 0
    for measured in _parts(flat_pieces, means, of_them, part_rows):
        stop = start + len(measured["label"])
        table = measured | {name: values[start:stop] for name, values in compared.items()}
        table |= {"index": np.arange(first + start, first + stop)}
        yield {name: table[name].astype(kind, copy=False) for name, kind in IMAGE_COLUMNS.items()}
        start = stop


def class_table(labels: np.ndarray, classes: int) -> Table:
    """Return one row per class: `index` (its label), `rows`, `share` of all rows, `imbalance`.

    `imbalance` is the rows of the largest class divided by the rows of this class, infinite for a class without rows.
    """
    return class_table_of(class_counts(labels, classes), len(labels))


def class_table_of(rows: np.ndarray, total: int) -> Table:
    """Return the same from the rows of each class, int64 of shape (classes,), and the number of all rows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share, imbalance = rows / max(total, 1), np.where(rows > 0, rows.max() / rows, np.inf)
    return {"index": np.arange(len(rows)), "rows": rows, "share": share, "imbalance": imbalance}


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the rows of each class, int64 of shape (classes,); labels that are not a class are left out."""
    return np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)


class Matches:
    """Counts how often the nearest class mean is that of the label, to compare with chance."""

    def __init__(self) -> None:
        self.hits = 0
        self.labels, self.nearest = np.zeros(256, np.int64), np.zeros(256, np.int64)

    def add(self, part: Table) -> None:
        """Count the rows of a part of an image table."""
        self.hits += int(part["centroid_hit"].sum())
        self.labels += np.bincount(part["label"], minlength=256)
        self.nearest += np.bincount(part["nearest"][part["nearest"] >= 0], minlength=256)

    def merge(self, hits: int, labels: np.ndarray, nearest: np.ndarray) -> None:
        """Add the counts of other rows."""
        self.hits += hits
        self.labels += labels
        self.nearest += nearest

    @property
    def by_chance(self) -> float:
        """The probability of at least this many hits, in [0, 1], if the same labels were assigned to images at random.

        The number of hits is then a sum of hypergeometric counts, whose distribution is approximated as normal. 0 below
        30 rows, too few for the approximation.
        """
        if self.rows < _LEAST_MATCHED:
            return 0.0
        expected, deviation = self._at_random()
        away = (self.hits - expected) / deviation if deviation > 0 else 0.0
        return math.erfc(away / math.sqrt(2)) / 2

    def unrelated(self, whole: Matches, most: float) -> bool:
        """Return whether the labels of this part match no more often than by chance, although those of its split do.

        A part that cannot tell is not: one of few rows, or of few classes. It can tell if the share of matches of the
        split, or more exactly its way from chance to certainty, were `_TELLING` standard deviations away from chance.

        Args:
            whole: those of the split.
            most: `by_chance` of a split may be at most this.
        """
        if self.by_chance <= most or whole.by_chance > most:
            return False
        expected, deviation = self._at_random()
        in_whole, _ = whole._at_random()
        way = (whole.hits - in_whole) / max(whole.rows - in_whole, 1)
        return 0 < _TELLING * deviation <= way * (self.rows - expected)

    @property
    def rows(self) -> int:
        return int(self.labels.sum())

    def _at_random(self) -> tuple[float, float]:
        """Return the mean and the standard deviation of the hits if the labels were assigned to images at random."""
        rows = self.rows
        # Python integers do not overflow.
        pairs = [(int(a), int(b)) for a, b in zip(self.labels, self.nearest, strict=True) if a and b]
        # Counts of a table with fixed margins: variance of one diagonal count, covariance of two.
        single = sum(a * b * (rows - a) * (rows - b) - (a * b) ** 2 for a, b in pairs)
        variance = (single + sum(a * b for a, b in pairs) ** 2) / (rows**2 * (rows - 1))
        return sum(a * b for a, b in pairs) / rows, math.sqrt(max(variance, 0))


def match_table(matches: Matches) -> Table:
    """Return one row: `by_chance`, see `Matches`."""
    return {"index": np.arange(1), "by_chance": np.array([matches.by_chance])}


def part_table(parts: Iterable[tuple[int, Matches]], whole: Matches, most: float) -> Table:
    """Return one row per part of a split: `index`, the number of its first row in the split, and `unrelated`, 0 or 1.

    Args:
        parts: the number of the first row of each part, and its matches.
        whole: the matches of the split.
        most: see `Matches.unrelated`.
    """
    found = [(start, matches.unrelated(whole, most)) for start, matches in parts]
    index, unrelated = np.array(found, np.int64).reshape(-1, 2).T
    return {"index": index, "unrelated": unrelated}


class PixelRange:
    """The darkest and the brightest pixel of a split."""

    def __init__(self) -> None:
        self.darkest, self.brightest = 255, 0

    def add(self, part: Table) -> None:
        """Take the rows of a part of an image table into account."""
        if len(part["index"]):
            self.merge(int(part["pixel_min"].min()), int(part["pixel_max"].max()))

    def merge(self, darkest: int, brightest: int) -> None:
        """Take other rows into account by their darkest and their brightest pixel."""
        self.darkest, self.brightest = min(self.darkest, darkest), max(self.brightest, brightest)


def ground_table(means: Centroids, image_shape: tuple[int, int], pixels: PixelRange) -> Table:
    """Return one row: `ground`, the mean of the border of the mean image, from 0 (darkest pixel) to 1 (brightest).

    The border is the outermost rows and columns. 0.5, which contradicts no ink, if all pixels have one value or no
    label is a class.
    """
    counts, span = means.counts, pixels.brightest - pixels.darkest
    share = 0.5
    if len(counts) and span > 0:
        mean = np.average(means.exact, axis=0, weights=counts).reshape(image_shape)
        border = np.ones(image_shape, bool)
        border[1:-1, 1:-1] = False
        share = float(mean[border].mean() - pixels.darkest) / span
    return {"index": np.arange(1), "ground": np.array([share])}


def archive_table(
    dataset: Dataset,
    splits: Iterable[Split],
    rows: Mapping[SplitName, int],
    footers: Mapping[SplitName, Mapping[str, Any]] | None = None,
) -> Table:
    """Return one row per split: the values declared in the manifest, recorded by decode and found in the file.

    Values that the manifest does not declare are None.

    Args:
        dataset: with the declared values.
        splits: as recorded by decode.
        rows: how many rows were read of each split.
        footers: `image_shape` and `digest` as found in the files of each split; None: read them.
    """
    split_rows = [
        _archive_row(dataset, split, footers[split.name] if footers else parquet.metadata(split.file), rows[split.name])
        for split in splits
    ]
    names = split_rows[0].keys()
    return {"index": np.arange(len(split_rows))} | {
        name: np.array([row[name] for row in split_rows], object) for name in names
    }


def _archive_row(dataset: Dataset, split: Split, footer: Mapping[str, Any], rows: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "split": split.name,
        "rows_declared": dataset.rows.get(split.name),
        "rows_decoded": split.rows,
        "rows_found": rows,
        "shape_declared": _times(dataset.image_shape),
        "shape_found": _times(footer["image_shape"]),
        "content_decoded": split.digest,
        "content_found": footer["digest"],
    }
    for kind in ("images", "labels"):
        role = f"{split.name}-{kind}"
        row[f"{kind}_declared"] = dataset.payload_sha256(role)
        row[f"{kind}_found"] = split.sources.get(role, "none")
    return row


def pieces(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images of shape (rows, pixels) and their labels, a few MB or one row at a time.

    Args:
        blocks: of `storage.formats.parquet.blocks`.
    """
    for block, labels in blocks:
        flat = block.reshape(len(block), -1)
        rows = max(1, min(_PIECE_PIXELS // flat.shape[1], 1 << 16))
        for start in range(0, len(flat), rows):
            yield flat[start : start + rows], labels[start : start + rows]


def _parts(
    flat_pieces: Iterable[tuple[np.ndarray, np.ndarray]], means: Centroids, of_them: bool, part_rows: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns measured from each image alone, in parts: at least one."""
    part: list[dict[str, np.ndarray]] = []
    rows = parts = 0
    for flat, labels in flat_pieces:
        part.append(_measured(flat, labels, means, of_them))
        rows += len(labels)
        if rows >= part_rows:
            yield _joined(part)
            part, rows, parts = [], 0, parts + 1
    if part or not parts:
        yield _joined(part)


def _joined(part: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        name: np.concatenate([np.empty(0, IMAGE_COLUMNS[name]), *(piece[name] for piece in part)]) for name in _MEASURED
    }


def _measured(flat: np.ndarray, labels: np.ndarray, means: Centroids, of_them: bool) -> dict[str, np.ndarray]:
    pixels = flat.shape[1]
    nearest = means.nearest(flat, labels if of_them else None)
    low, high = flat.min(axis=1), flat.max(axis=1)
    return {
        "label": labels,
        "pixel_min": low,
        "pixel_max": high,
        "mean": flat.sum(axis=1, dtype=np.int64) / pixels,
        "blank": low == high,
        "nearest": nearest,
        "centroid_hit": nearest == labels,
    }


def _repeats(digests: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns `duplicate` and `conflict` as bool; sorting makes equal images neighbours."""
    order = np.argsort(digests, kind="stable")
    ordered, labels = digests[order], labels[order]
    again = ordered[1:] == ordered[:-1]
    duplicate = np.zeros(len(digests), bool)
    duplicate[order[1:][again]] = True
    # If an image has two labels, they are adjacent somewhere in this order.
    twofold = ordered[1:][again & (labels[1:] != labels[:-1])]
    del order, ordered
    return {"duplicate": duplicate, "conflict": among(digests, twofold)}


def among(digests: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return which of `digests` are in `reference`, bool of shape (n,); `numpy.isin` takes several times the memory.

    Args:
        digests: int64 of shape (n,).
        reference: int64 of any length.
    """
    if not len(reference):
        return np.zeros(len(digests), bool)
    ordered = np.sort(reference)
    places = np.searchsorted(ordered, digests)
    places[places == len(ordered)] = 0
    matches: np.ndarray = ordered[places] == digests
    return matches


def _times(shape: Iterable[int]) -> str:
    return "×".join(str(n) for n in shape)
