"""Numbers of every row of a split, in temporary files: to count them takes the same memory for any number of rows."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

ROWS = 1 << 16
"""Rows that are in memory at a time."""


class Column:
    """A number for each row.

    The file has no name, and goes with the last reference to it.

    Args:
        blocks: the numbers, in pieces of shape (n,).
        kind: the type to keep them as.

    Raises:
        OSError: the temporary file cannot be written.
    """

    def __init__(self, blocks: Iterable[np.ndarray], kind: type[np.generic]) -> None:
        self._kind = np.dtype(kind)
        with tempfile.TemporaryFile() as file:
            for numbers in blocks:
                file.write(np.ascontiguousarray(numbers, kind).data)
            self.rows = file.tell() // self._kind.itemsize
            file.flush()
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the numbers of at most `ROWS` rows at a time, each of shape (n,)."""
        for start in range(0, self.rows, ROWS):
            yield self.between(start, min(start + ROWS, self.rows))

    def between(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of some rows, shape (stop - start,): from a first one up to but not including another."""
        size, found = self._kind.itemsize, bytearray()
        # One call returns at most 2 GiB.
        while data := os.pread(self._file, (stop - start) * size - len(found), start * size + len(found)):
            found += data
        return np.frombuffer(found, self._kind)

    def ranked(self, ranks: Sequence[int]) -> list[float]:
        """Return the numbers that are at `ranks`, from 0, among the finite ones in ascending order; float64 only.

        It counts 8 bits of each number at a time, from the highest down, and so finds them in eight passes.
        """
        left, heads = [*ranks], [0] * len(ranks)
        for shift in range(56, -1, -8):
            counts = np.zeros((len(ranks), 256), np.int64)
            for numbers in self.blocks():
                keys = _keys(numbers[np.isfinite(numbers)]) >> shift
                for count, head in zip(counts, heads, strict=True):
                    digits = (keys[keys >> 8 == head] & 0xFF).astype(np.int64)
                    count += np.bincount(digits, minlength=256)
            for place, count in enumerate(counts):
                ends = np.cumsum(count)
                digit = int(np.searchsorted(ends, left[place], side="right"))
                left[place] -= int(ends[digit] - count[digit])
                heads[place] = heads[place] << 8 | digit
        found: list[float] = _numbers(np.array(heads, np.uint64)).tolist()
        return found


def together(*columns: Column | None) -> Iterator[tuple[np.ndarray, ...]] | None:
    """Return the blocks of the same rows of several columns; None if a column is missing or has other rows."""
    known = [column for column in columns if column is not None]
    if len(known) < len(columns) or len({column.rows for column in known}) > 1:
        return None
    return zip(*(column.blocks() for column in known), strict=True)


_SIGN = np.uint64(1 << 63)


def _keys(numbers: np.ndarray) -> np.ndarray:
    """Return uint64 in the order of `numbers`, float64: their bits, all of them inverted if negative."""
    bits = numbers.view(np.uint64)
    keys: np.ndarray = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return keys


def _numbers(keys: np.ndarray) -> np.ndarray:
    """Return the numbers of `_keys`."""
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float64)
