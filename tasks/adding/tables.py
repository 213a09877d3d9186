"""Tables with a label in each row, and an image: in a column of its own, or a pixel in each column."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.errors import FormatError
from storage.records import SplitName
from storage.words import counted
from tasks.adding import arrays
from tasks.adding.batches import (
    LABELS,
    Batch,
    Reading,
    Remarks,
    Source,
    as_images,
    as_pixels,
    column,
    present,
    refused,
    shown_of,
)
from tasks.adding.pictures import leave_out, note
from tasks.adding.sizing import Sized
from tasks.serving import picture
from tasks.ui.progress import Progress, advance

AGAIN = "write the table again"
_TEXTS = frozenset({"string", "large_string", "string_view"})


@dataclass(frozen=True)
class Layout:
    """Which columns of a table are what, by their places from 0."""

    label: int
    pixels: tuple[int, ...] = ()
    image: int | None = None
    """The column of images; None if there is one for each pixel."""
    group: int | None = None

    @property
    def used(self) -> list[int]:
        """The columns to read, in their order in the file."""
        more = {place for place in (self.label, self.image, self.group) if place is not None}
        return sorted({*more, *self.pixels})


@dataclass(frozen=True)
class Table:
    """A table in a file, before its rows are read."""

    path: Path
    form: str
    """What kind of table it is, in a few words."""
    columns: list[str]
    layout: Layout | None
    """None if no column is known to have the labels."""
    rows: Callable[[], Iterator[pa.RecordBatch]]
    """Reads the columns that the layout uses, in its order."""
    class_names: Mapping[str, str] = field(default_factory=dict)
    uses: frozenset[str] = arrays.USES
    """See `Source`."""

    @property
    def left_out(self) -> list[str]:
        """The names of the columns that are not read."""
        used = frozenset(self.layout.used if self.layout else ())
        return [name for place, name in enumerate(self.columns) if place not in used]

    @property
    def kind(self) -> str:
        """What it is, and which columns are what."""
        layout = self.layout
        if not layout:
            return self.form
        label = f"the label in column {self.columns[layout.label]!r}"
        image = f"the image in {self.columns[layout.image]!r}" if layout.image is not None else ""
        return f"{self.form}, {label}, {image or counted(len(layout.pixels), 'column') + ' of pixels'}"


def source(tables: list[tuple[SplitName | None, Table]], reading: Reading, remarks: Remarks) -> Source:
    """Return tables, each of a split, as one source. One without labels beside others is left out.

    Raises:
        FormatError: none has a column of labels.
    """
    labelled = [(split, table) for split, table in tables if table.layout]
    if not labelled:
        raise _no_label(tables[0][1])
    _check_alike([table for _, table in labelled])
    _remark_on(tables, labelled, remarks)
    first = labelled[0][1]
    kind = first.kind if len(labelled) == 1 else f"{len(labelled)} files, each {first.kind}"
    uses = frozenset().union(*(table.uses for _, table in labelled))
    return Source(kind, _batches(labelled, reading, remarks), first.class_names, uses=uses)


def _remark_on(
    tables: list[tuple[SplitName | None, Table]], labelled: list[tuple[SplitName | None, Table]], remarks: Remarks
) -> None:
    """Say what is left out, and what is taken together without the names of files saying so."""
    for _, table in tables:
        if not table.layout:
            remarks.add(f"{table.path.name} is left out, because it has no column of labels")
    without = [table.path.name for split, table in labelled if not split]
    if 0 < len(without) < len(labelled):
        remarks.add(f"of the train split are also, because their names do not say: {shown_of(without)}")
    if len(folders := list(dict.fromkeys(table.path.parent.name for _, table in labelled))) > 1:
        remarks.add(f"the tables of these folders are taken together (--match chooses some): {shown_of(folders)}")
    for _, table in labelled:
        if left := table.left_out:
            remarks.add(f"of the columns, these are left out: {shown_of(left)}")


def _check_alike(tables: list[Table]) -> None:
    """Refuse tables together whose images or classes are others.

    Raises:
        FormatError: they have other numbers of columns of pixels, or other names for the same labels.
    """
    first = tables[0]
    for table in tables[1:]:
        counts = [len(layout.pixels) for layout in (first.layout, table.layout) if layout]
        if counts[0] != counts[1]:
            expected, actual = (f"{counted(count, 'column')} of pixels" for count in counts)
            expected += f" as {first.path.name} has"
        elif first.class_names != table.class_names:
            expected, actual = f"the names of classes of {first.path.name}", "others for the same labels"
        else:
            continue
        raise refused(table.path, expected, actual, "choose tables that belong together: --match TEXT")


def _no_label(table: Table) -> FormatError:
    return refused(
        table.path,
        f"a column of labels, named {', '.join(LABELS[:4])} or the like",
        f"the columns {shown_of(table.columns)}" if table.columns else "no columns",
        "say which one it is, by its name or its number from 0: --label-column NAME",
    )


def label_by_name(path: Path, names: list[str], reading: Reading) -> int | None:
    """Return the place of the column of labels: the one that the user named, otherwise the one with a usual name.

    Raises:
        FormatError: there is no column as the user named it.
    """
    if reading.label_column is not None:
        return column(path, names, reading.label_column)
    lower = [name.strip().lower() for name in names]
    return next((lower.index(name) for name in LABELS if name in lower), None)


def _batches(tables: list[tuple[SplitName | None, Table]], reading: Reading, remarks: Remarks) -> Iterator[Batch]:
    sized, done = Sized(reading), 0
    for split, table in tables:
        if not table.layout:
            continue
        reader = _Rows(table, table.layout, sized, reading, remarks)
        for rows in table.rows():
            done += rows.num_rows
            yield from reader.batch(rows, split)
            advance(Progress("read", done, None, "rows"))


class _Rows:
    """Makes batches of the rows of a table."""

    def __init__(self, table: Table, layout: Layout, sized: Sized, reading: Reading, remarks: Remarks) -> None:
        self._path, self._layout = table.path, layout
        self._order = {place: number for number, place in enumerate(layout.used)}
        self._sized, self._reading, self._remarks = sized, reading, remarks
        self._done = 0

    def batch(self, rows: pa.RecordBatch, split: SplitName | None) -> Iterator[Batch]:
        """Yield the batch of some rows, if any of them can be read."""
        labels = self._texts(self._column(rows, self._layout.label))
        groups = None if self._layout.group is None else self._texts(self._column(rows, self._layout.group))
        read = self._images(rows)
        self._done += rows.num_rows
        kept = [place for place, image in enumerate(read) if image is not None]
        if kept:
            yield Batch(
                np.stack([image for image in read if image is not None]) if isinstance(read, list) else read,
                [labels[place] for place in kept],
                split,
                [groups[place] for place in kept] if groups else None,
            )

    def _column(self, rows: pa.RecordBatch, place: int) -> pa.Array:
        return rows.column(self._order[place])

    def _images(self, rows: pa.RecordBatch) -> np.ndarray | list[np.ndarray | None]:
        """Return the images of some rows; None for each picture that is left out."""
        if self._layout.image is not None:
            return self._from_column(self._column(rows, self._layout.image))
        columns = [self._column(rows, place).to_numpy(zero_copy_only=False) for place in self._layout.pixels]
        if not columns:
            raise refused(self._path, "columns of pixels beside the label", "none", AGAIN)
        pixels = as_pixels(self._path, np.column_stack(columns), self._reading, self._done)
        return self._sized.images(self._path, as_images(self._path, pixels, self._reading))

    def _from_column(self, values: pa.Array) -> np.ndarray | list[np.ndarray | None]:
        """Return the images in a column: files of pictures, as Hugging Face has them, or lists of numbers."""
        if pa.types.is_struct(values.type):
            values = values.field("bytes")
        if not is_nested(values.type):
            return [self._picture(place, value.as_py()) for place, value in enumerate(values)]
        shape = [len(values)]
        while is_nested(values.type):
            lengths = set(pa.compute.list_value_length(values).to_pylist())
            if len(lengths) != 1 or None in lengths:
                raise refused(self._path, "lists of one length as images", "lists of several lengths", AGAIN)
            shape.append(lengths.pop())
            values = values.flatten()
        array = values.to_numpy(zero_copy_only=False).reshape(shape)
        return self._sized.images(self._path, arrays.grey(self._path, array, self._reading, self._remarks, self._done))

    def _picture(self, place: int, data: bytes | None) -> np.ndarray | None:
        name = f"{self._path}, row {self._done + place:,}"
        try:
            found = picture.read(data or b"", name)
        except FormatError as error:
            leave_out(str(error), error, self._reading, self._remarks)
            return None
        note(found, self._remarks)
        return self._sized.image(name, found.pixels)

    def _texts(self, values: pa.Array) -> list[str]:
        """Return a column of labels or groups as text."""
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if values.null_count:
            missing = counted(values.null_count, "row")
            actual = f"{missing} without one after row {self._done:,}"
            raise refused(self._path, "a label or group in each row", actual, AGAIN)
        if str(values.type) in _TEXTS:
            return present(self._path, [str(text).strip() for text in values.to_pylist()])
        if not (
            pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
        ):
            raise refused(self._path, "labels and groups as whole numbers or texts", f"{values.type}", AGAIN)
        return arrays.texts(self._path, values.to_numpy(zero_copy_only=False))


def is_nested(kind: pa.DataType) -> bool:
    """Return whether values are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
