"""CSV and TSV with a column for each pixel, as Kaggle has them: with or without a header, plain or gzip."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from storage.errors import FormatError
from tasks.adding.batches import LABELS, Reading, column, raise_if_full, refused
from tasks.adding.tables import AGAIN, Layout, Table, label_by_name

MAX_LINE_BYTES = 1 << 23
"""The longest line of a table."""
_BLOCK_BYTES = 1 << 22
_SAMPLE_LINES = 300
_GZIP = b"\x1f\x8b"
_BROKEN = (OSError, EOFError, ValueError, zlib.error, csv.Error)
_SHOWN = 40
MAX_COLUMNS = 1 << 17
"""The most columns of a table: reading them takes some kilobytes of memory for each."""


@dataclass(frozen=True)
class _Form:
    """How a file writes its table."""

    path: Path
    is_packed: bool
    delimiter: str
    names: list[str]
    has_header: bool
    empty_lines: int
    """Lines before the first one that has something."""
    longest: int
    """Bytes of the longest line among the first ones."""

    def open(self) -> gzip.GzipFile | io.BufferedReader:
        """Open the unpacked bytes."""
        return _opened(self.path, self.is_packed)


def table(path: Path, reading: Reading) -> Table:
    """Return the table in a file.

    Raises:
        FormatError: it is no table of numbers, or a column that the user named is not there.
    """
    form, sample = _looked_at(path)
    if not sample:
        raise refused(path, "a row for each image", "a header alone", AGAIN)
    what = f"a table {'with' if form.has_header else 'without'} a header"
    label = label_by_name(path, form.names, reading)
    if label is None and not form.has_header:
        label = _label_by_values(path, sample)
    if label is None:
        return Table(path, what, form.names, None, lambda: iter(()))
    group = column(path, form.names, reading.group_by) if reading.group_by else None
    pixels = tuple(place for place in range(len(form.names)) if place not in (label, group))
    layout = Layout(label, pixels, group=group)
    kind = pa.uint8() if reading.white == 255 else pa.float32()
    return Table(path, what, form.names, layout, lambda: _rows(form, layout, kind))


def _opened(path: Path, is_packed: bool) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if is_packed else path.open("rb")


def _looked_at(path: Path) -> tuple[_Form, list[list[str]]]:
    """Return how a file writes its table, and its first rows."""
    with path.open("rb") as stream:
        is_packed = stream.read(2) == _GZIP
    lines: list[bytes] = []
    delimiter, rows, lines_of_first = "", [], 1
    try:
        with _opened(path, is_packed) as stream:
            while len(lines) < _SAMPLE_LINES and (line := stream.readline(MAX_LINE_BYTES + 1)):
                if len(line) > MAX_LINE_BYTES:
                    raise refused(path, f"lines of at most {MAX_LINE_BYTES:,} bytes", "a longer one", "give a table")
                lines.append(line)
        texts = [line.decode("utf-8-sig" if not number else "utf-8").strip() for number, line in enumerate(lines)]
        if filled := [text for text in texts if text]:
            delimiter = max(",\t;", key=filled[0].count)
            reader = csv.reader(filled, delimiter=delimiter)
            rows, lines_of_first = [next(reader)], reader.line_num
            rows += reader
    except _BROKEN as error:
        raise refused(path, "a table of text in UTF-8", str(error), "save it so, or give another source") from error
    if not rows:
        raise refused(path, "a table with a row for each image", "an empty file", "give another file")
    _check_first(path, filled[0], rows[0], lines_of_first)
    has_header = _is_header(rows[0], rows[1] if len(rows) > 1 else [])
    names = rows[0] if has_header else [str(number) for number in range(len(rows[0]))]
    form = _Form(path, is_packed, delimiter, names, has_header, texts.index(filled[0]), max(map(len, lines)))
    return form, rows[has_header:]


def _check_first(path: Path, text: str, row: list[str], lines: int) -> None:
    """Check the first row of a file, which is taken for a table because it is nothing else."""
    if lines > 1:
        raise refused(path, "a first row in one line", f"one of {lines}", "write it in one line, without line breaks")
    if len(row) == 1:
        actual = f"one column, which begins with {text[:_SHOWN]!r}"
        raise refused(path, "a table with columns between commas, tabs or semicolons", actual, "give such a table")
    if len(row) > MAX_COLUMNS:
        remedy = "give smaller images, or arrays in an .npz file"
        raise refused(path, f"at most {MAX_COLUMNS:,} columns", f"{len(row):,}", remedy)


def _is_header(first: list[str], second: list[str]) -> bool:
    """Return whether the first row has names, of which those of pixels may be numbers."""
    texts = [place for place, cell in enumerate(first) if not _is_number(cell)]
    if len(texts) != 1:
        return bool(texts)
    place = texts[0]
    return first[place].strip().lower() in LABELS or (place < len(second) and _is_number(second[place]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii()


def _label_by_values(path: Path, rows: list[list[str]]) -> int | None:
    """Return the first or the last column of a table without header if only that one can be the label.

    The other is a corner of the images, which hardly ever changes.
    """
    whole = [row for row in rows if len(row) == len(rows[0])]
    likely = [place for place in (0, len(rows[0]) - 1) if len({row[place] for row in whole}) > 1]
    return likely[0] if len(likely) == 1 else None


def _rows(form: _Form, layout: Layout, pixel: pa.DataType) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table, batch by batch."""
    # By number, because names may occur twice.
    names = [f"f{place}" for place in range(len(form.names))]
    types = dict.fromkeys(names, pixel)
    types |= {names[place]: pa.string() for place in (layout.label, layout.group) if place is not None}
    with form.open() as stream:
        _skip_mark(stream)
        for _ in range(form.empty_lines + form.has_header):
            stream.readline()
        try:
            reader = pa_csv.open_csv(
                stream,
                pa_csv.ReadOptions(block_size=max(_BLOCK_BYTES, 4 * form.longest), column_names=names),
                pa_csv.ParseOptions(delimiter=form.delimiter),
                pa_csv.ConvertOptions(
                    column_types=types, include_columns=[names[place] for place in layout.used], null_values=[]
                ),
            )
            yield from reader
        except (pa.ArrowException, *_BROKEN) as error:
            raise_if_full(error)
            raise _explained(form, layout, pixel == pa.uint8(), error) from error


def _skip_mark(stream: gzip.GzipFile | io.BufferedReader) -> None:
    """Skip the byte order mark that some programs begin a file with."""
    if stream.peek(3)[:3] == b"\xef\xbb\xbf":
        stream.read(3)


def _explained(form: _Form, layout: Layout, whole: bool, error: Exception) -> FormatError:
    """Return what is wrong with a table, by its first bad row: read again, because Arrow does not say where."""
    try:
        with form.open() as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            lines = csv.reader(text, delimiter=form.delimiter)
            for row in lines:
                if lines.line_num == form.empty_lines + 1 and form.has_header:
                    continue
                if problem := _problem(form, layout, row, whole):
                    return refused(f"{form.path}, line {lines.line_num:,}", *problem)
    except (*_BROKEN, csv.Error) as worse:
        error = worse
    return refused(form.path, "an undamaged table", str(error).partition("\n")[0][:200], AGAIN)


def _problem(form: _Form, layout: Layout, row: list[str], whole: bool) -> tuple[str, str, str] | None:
    """Return what is wrong with a row: what was expected, what was found, and what to do; None if nothing is."""
    if not row:
        return None
    if len(row) != len(form.names):
        return f"{len(form.names):,} columns", f"{len(row):,}", "complete the row, or remove it"
    for place in layout.pixels:
        if not (_is_pixel(row[place]) if whole else _is_number(row[place])):
            expected = f"{'a whole number from 0 to 255' if whole else 'a number'} in column {form.names[place]!r}"
            remedy = "correct it, or take a column that is no pixel out of the table"
            if whole and _is_number(row[place]):
                remedy = "correct it, or say which value is white if it is not 255: --white 1"
            return expected, repr(row[place][:_SHOWN]), remedy
    return None


def _is_pixel(cell: str) -> bool:
    digits = cell.strip()
    value = digits.lstrip("0")[:4] or "0"
    return digits.isascii() and digits.isdecimal() and int(value) <= 255
