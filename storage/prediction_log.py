"""The log of predictions: what `idxflow serve` has answered, if it was asked to keep that.

    <dataset>/predictions/2026-11-30-093015-5f0c9a3e-00000007.parquet   what one process wrote in some seconds
    <dataset>/predictions/2026-11-30-merged-77aa01bc.parquet            several of these, together

The columns are those of `COLUMNS`, and `height`, `width` and `image`, which are null unless images are kept. A file is
created as a whole and never changed. Small files become one: those of a process once there are 64 of a day, all of a
day when it is over. The merged file is created before the others are removed, so that nothing is lost if the process
ends in between; what is in two files then counts once, because `id`, `time` and `digest` together name a row.

The log is not a part of what is promised about a store: no result depends on it, `copy` leaves it out, and removing its
files is safe at any time.
"""

from __future__ import annotations

import hashlib
import io
import logging
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import DamagedEntry, StoreError
from storage.objects.protocol import Found
from storage.store import Store, store_errors

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("id", "time", "digest", "label", "probability", "version")
"""Of each row: its id (text), when it was answered (UTC, microseconds), the SHA-256 of its pixels (text), the class
that was answered (uint8), with which probability (float32), and by which version (int32)."""
IMAGE_COLUMNS = ("height", "width", "image")
"""Of a row with its image: the size (uint16), and the pixels in row-major order (binary)."""
FOLDER = "predictions"
FLUSH_SECONDS = 5.0
"""How long a row waits at most until it is written; a process that is killed loses as much."""
TIDY_SECONDS = 3600.0
"""Between two looks for what is too old, too much, or to be merged."""
MERGED_AT = 64
"""So many files of a process and a day become one."""
LARGEST_MERGED = 64 << 20
"""Bytes above which files are not merged any more: all of them are in memory at once."""
MOST_WAITING = 1 << 26
"""Bytes of images that wait to be written; more are dropped, and counted."""

_TRIES = 5
_DAY = len("2026-11-30")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogOptions:
    """What is kept, and for how long."""

    images: bool = False
    """Whether the pixels are kept, too."""
    days: int = 30
    """Days before today that are kept."""
    bytes: int = 1 << 30
    """Of the log of a data set; the oldest files are removed first."""


@dataclass(frozen=True)
class Answers:
    """What was answered to one request."""

    ids: Sequence[str]
    time: datetime
    """UTC."""
    images: np.ndarray
    """uint8 of shape (n, height, width), as the model took them."""
    labels: np.ndarray
    """uint8 of shape (n,)."""
    probabilities: np.ndarray
    """Of the labels, float32 of shape (n,)."""
    version: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class _Own:
    """What this process has written of the log of a data set."""

    day: str = ""
    keys: list[str] = field(default_factory=list)
    """Of the files of `day` that are not merged yet."""
    bytes: int = 0
    """Since the last look at the size of the log."""


class PredictionLog:
    """Writes the logs of the data sets of a store, in a thread. `add` never waits for that, and never fails.

    Args:
        clock: the time, UTC.
    """

    def __init__(
        self, store: Store, options: LogOptions, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store, self._options, self._clock = store, options, clock
        self._nonce = secrets.token_hex(4)
        self._number = 0
        self._waiting: dict[str, list[Answers]] = defaultdict(list)
        self._bytes = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._own: dict[str, _Own] = defaultdict(_Own)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.rows = 0
        """How many rows were written."""
        self.dropped = 0
        """How many were not, because too many waited."""
        self.problem: str | None = None
        """Why rows could not be written the last time, in a sentence."""

    def start(self) -> None:
        """Write every few seconds, in a thread, until `stop`."""
        self._thread = threading.Thread(target=self._keep_writing, name="log of predictions", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and end the thread."""
        self._stopped.set()
        if self._thread:
            self._thread.join()
        self.flush()

    def add(self, dataset: str, answers: Answers) -> None:
        """Have answers written soon; drop and count them if too many wait, such as because the disk is full."""
        with self._lock:
            if self._bytes + answers.images.nbytes > MOST_WAITING:
                self.dropped += len(answers)
                return
            self._bytes += answers.images.nbytes
            self._waiting[dataset].append(answers)

    def flush(self) -> None:
        """Write what waits. What cannot be written goes on waiting."""
        with self._writing:
            for dataset in list(self._waiting):
                with self._lock:
                    answers = self._waiting.pop(dataset, [])
                if answers:
                    self._write(dataset, answers)

    def tidy(self) -> None:
        """Remove what is too old or too much, and merge the files of past days, in the logs of all data sets."""
        with self._writing:
            for dataset in self._store.datasets():
                self._tidy(dataset)

    def _keep_writing(self) -> None:
        waited = TIDY_SECONDS
        while True:
            try:
                if waited >= TIDY_SECONDS:
                    waited = 0.0
                    self.tidy()
                self.flush()
            except Exception as error:
                # Whatever it was: what waits, waits, and the answers do not depend on it.
                self._say(f"the log of predictions could not be written: {error}")
            if self._stopped.wait(FLUSH_SECONDS):
                return
            waited += FLUSH_SECONDS

    def _write(self, dataset: str, answers: list[Answers]) -> None:
        now = self._clock()
        own, day = self._own[dataset], f"{now:%Y-%m-%d}"
        if own.day != day:
            own.day, own.keys = day, []
        self._number += 1
        key = f"{_folder(self._store, dataset)}/{now:%Y-%m-%d-%H%M%S}-{self._nonce}-{self._number:08d}.parquet"
        try:
            data = _encoded(_table(answers, self._options.images))
            with store_errors(self._store.root / FOLDER):
                self._store.objects.create(key, data)
        except (StoreError, OSError) as error:
            with self._lock:
                self._waiting[dataset][:0] = answers
            self._say(f"the log of predictions of {dataset} could not be written: {error}")
            return
        with self._lock:
            self._bytes -= sum(one.images.nbytes for one in answers)
        self.rows += sum(map(len, answers))
        self.problem = None
        own.keys.append(key)
        own.bytes += len(data)
        self._look_after(dataset, own)

    def _look_after(self, dataset: str, own: _Own) -> None:
        if len(own.keys) >= MERGED_AT:
            self._merge(dataset, own.day, own.keys)
            own.keys = []
        if own.bytes * 20 >= self._options.bytes:
            self._tidy(dataset)

    def _tidy(self, dataset: str) -> None:
        self._own[dataset].bytes = 0
        today = self._clock().date()
        oldest, last = f"{today - timedelta(days=self._options.days):%Y-%m-%d}", f"{today:%Y-%m-%d}"
        found = _files(self._store, dataset)
        past: dict[str, list[Found]] = defaultdict(list)
        removed, size = list[str](), 0
        for file in reversed(found):
            size += file.size
            if file.name >= oldest and size <= self._options.bytes:
                past[file.name[:_DAY]].append(file)
            else:
                removed.append(file.key)
        self._store.objects.delete(removed)
        for day, files in past.items():
            if day < last and len(files) > 1 and sum(file.size for file in files) <= LARGEST_MERGED:
                self._merge(dataset, day, [file.key for file in reversed(files)])

    def _merge(self, dataset: str, day: str, keys: list[str]) -> None:
        """Make one file of several. If another process has removed one of them meanwhile, it does the same."""
        try:
            tables = [_decoded(self._store, key, None) for key in keys]
        except FileNotFoundError:
            return
        except DamagedEntry as error:
            self._say(str(error))
            return
        merged = f"{_folder(self._store, dataset)}/{day}-merged-{secrets.token_hex(4)}.parquet"
        self._store.objects.create(merged, _encoded(_once(tables)))
        self._store.objects.delete(keys)

    def _say(self, problem: str) -> None:
        # Once: the next sentence names another temporary file, so it would be said every few seconds.
        if self.problem is None:
            _log.warning("%s", problem)
        self.problem = problem


def days(store: Store, dataset: str) -> list[str]:
    """Return the days that the log has, such as 2026-11-30, oldest first.

    Raises:
        StoreError: the log cannot be read.
    """
    with store_errors(store.root / FOLDER):
        return sorted({file.name[:_DAY] for file in _files(store, dataset)})


def read(
    store: Store, dataset: str, columns: Sequence[str] = COLUMNS, since: str = "", until: str = "9999"
) -> pa.Table:
    """Return the logged predictions of a data set, oldest first, each once.

    Args:
        columns: of `COLUMNS` and `IMAGE_COLUMNS`; a row without its image has null there.
        since: a day such as 2026-11-30; empty: all.
        until: the last day.

    Raises:
        DamagedEntry: a file is damaged.
        StoreError: the log cannot be read.
    """
    needed = list(dict.fromkeys((*columns, "id", "time", "digest")))
    with store_errors(store.root / FOLDER):
        for left in reversed(range(_TRIES)):
            keys = [file.key for file in _files(store, dataset) if since <= file.name[:_DAY] <= until]
            try:
                tables = [_decoded(store, key, needed) for key in keys]
                break
            except FileNotFoundError:
                # Merged, or removed as too old, since it was listed.
                if not left:
                    raise
    return _once(tables, needed).select(list(columns))


def images(table: pa.Table, shape: tuple[int, int]) -> np.ndarray:
    """Return the images of rows that have one of this height and width: uint8 of shape (n, height, width).

    Args:
        table: with `IMAGE_COLUMNS`, as `read` returns it.
    """
    rows = table.select(list(IMAGE_COLUMNS)).to_pylist()
    pixels = [row["image"] for row in rows if (row["height"], row["width"]) == shape]
    return np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, *shape)


def _folder(store: Store, dataset: str) -> str:
    return store.key(dataset, FOLDER)


def _files(store: Store, dataset: str) -> list[Found]:
    """Return the files of the log, oldest day first."""
    listed = store.objects.list(_folder(store, dataset)).objects
    return [file for file in listed if file.name.endswith(".parquet")]


def _schema() -> pa.Schema:
    import pyarrow as pa

    types: dict[str, Any] = {
        "id": pa.string(),
        "time": pa.timestamp("us", "UTC"),
        "digest": pa.string(),
        "label": pa.uint8(),
        "probability": pa.float32(),
        "version": pa.int32(),
        "height": pa.uint16(),
        "width": pa.uint16(),
        "image": pa.binary(),
    }
    return pa.schema(list(types.items()))


def _table(answers: Iterable[Answers], with_images: bool) -> pa.Table:
    import pyarrow as pa

    rows: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, *IMAGE_COLUMNS)}
    for one in answers:
        pixels = [image.tobytes() for image in one.images]
        count, (height, width) = len(one), one.images.shape[1:]
        rows["id"] += one.ids
        rows["time"] += [one.time] * count
        rows["digest"] += [hashlib.sha256(image).hexdigest() for image in pixels]
        rows["label"] += one.labels.tolist()
        rows["probability"] += one.probabilities.tolist()
        rows["version"] += [one.version] * count
        rows["height"] += [height if with_images else None] * count
        rows["width"] += [width if with_images else None] * count
        rows["image"] += pixels if with_images else [None] * count
    return pa.table(rows, _schema())


def _once(tables: list[pa.Table], columns: Sequence[str] = (*COLUMNS, *IMAGE_COLUMNS)) -> pa.Table:
    """Return the rows of all tables by their time, those that are in two of them once."""
    import pyarrow as pa

    schema = pa.schema([_schema().field(name) for name in columns])
    table = pa.concat_tables([schema.empty_table(), *(one.select(list(columns)) for one in tables)])
    numbered = table.select(["id", "time", "digest"]).append_column("row", pa.array(np.arange(len(table))))
    first = numbered.group_by(["id", "time", "digest"]).aggregate([("row", "min"), ("time", "min")])
    # By the row, too: sorting by the time alone would mix the rows of a request.
    order = first.sort_by([("time_min", "ascending"), ("row_min", "ascending")])["row_min"]
    return table.take(order)


def _encoded(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=1, write_page_checksum=True)
    return buffer.getvalue()


def _decoded(store: Store, key: str, columns: list[str] | None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = store.objects.get(key)
    try:
        return pq.read_table(io.BytesIO(data), columns=columns, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedEntry(
            f"{store.objects.where(key)}: expected a file of the log of predictions; {error}; remove it"
        ) from error
