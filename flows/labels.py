"""Labels that people have found out later, read from their file and joined with the log of predictions by id."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import datasets, live
from flows.live import Live
from storage import later_labels, prediction_log
from storage.errors import ConfigError, FormatError
from storage.files import kind_of, open_regular
from storage.opening import open_store
from storage.registry import Version
from tasks.serving.predict import find_version

MAX_BYTES = 1 << 28
"""Of a file of labels."""
_SHOWN = 3


@dataclass(frozen=True)
class Added:
    """What became of the labels in a file."""

    dataset: str
    labels: int
    """Ids in the file."""
    new: bool
    """False if the same labels were added last, so that nothing was written."""
    logged: int
    """Ids of the file that the log has."""
    missing: tuple[str, ...]
    """Some of those that it does not have."""
    live: Live
    """The accuracy of the champion with all labels so far."""


def add(dataset: str, file: Path, store: str | None = None) -> Added:
    """Keep the labels in a file: CSV or JSON lines or Parquet, with the columns `id` and `label`.

    A label is the name of a class or its number, in a whole file one or the other.

    Raises:
        ConfigError: there is no such data set, no champion of it, or no such file.
        FormatError: the file cannot be used.
        StoreError: the labels cannot be kept.
    """
    opened = open_store(store)
    datasets.check_known(opened, dataset, opened.datasets())
    champion = find_version(opened, dataset)
    labels = _numbers(file, _rows(file, _bytes(file)), champion)
    new = later_labels.add(opened, dataset, labels)
    ids = {*prediction_log.read(opened, dataset, ("id",))["id"].to_pylist()}
    missing = [key for key in labels if key not in ids]
    found = live.of_champion(opened, dataset, champion)
    return Added(dataset, len(labels), new, len(labels) - len(missing), tuple(missing[:_SHOWN]), found)


def _bytes(file: Path) -> bytes:
    try:
        with open_regular(file) as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        found = error.strerror or kind_of(file)
        raise ConfigError(f"expected a file of labels at {file}; {found}; correct the path") from error
    if len(data) > MAX_BYTES:
        raise FormatError(f"{file}: expected at most {MAX_BYTES:,} bytes; it has more; add its rows in several files")
    return data


def _rows(file: Path, data: bytes) -> list[tuple[str, Any]]:
    """Return pairs of an id and a label."""
    try:
        if data.startswith(b"PAR1"):
            rows = _parquet(data)
        elif data.lstrip().startswith(b"{"):
            rows = [_pair(json.loads(line)) for line in data.decode().splitlines() if line.strip()]
        else:
            rows = [_pair(row) for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig")))]
    except (ValueError, KeyError, TypeError, OSError, RecursionError, csv.Error) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise FormatError(
            f"{file}: expected CSV with a header, JSON lines or Parquet, with id and label in each row; {why}; "
            "write it again in one of these"
        ) from error
    if not rows:
        raise FormatError(f"{file}: expected rows with id and label; found none; write them")
    return rows


def _parquet(data: bytes) -> list[tuple[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data), columns=["id", "label"])
    return [
        (str(key), label) for key, label in zip(*(table[name].to_pylist() for name in ("id", "label")), strict=True)
    ]


def _pair(row: Mapping[str, Any]) -> tuple[str, Any]:
    key = str(row["id"])
    # JSON can have half a character, which no file can.
    key.encode()
    return key, row["label"]


def _numbers(file: Path, rows: Sequence[tuple[str, Any]], champion: Version) -> dict[str, int]:
    """Return class numbers by id."""
    by_name = {name: number for number, name in enumerate(champion.classes)}
    by_number: dict[Any, int] = {
        key: number for number in range(len(champion.classes)) for key in (number, str(number))
    }
    # A name can look like a number: names first, if all are names.
    known = by_name if all(isinstance(label, str) and label in by_name for _, label in rows) else by_number
    for key, label in rows:
        # Lists and objects of JSON cannot be looked up.
        if isinstance(label, bool | list | dict) or label not in known:
            names = ", ".join(champion.classes[:_SHOWN])
            raise FormatError(
                f"{file}: expected each label to be the name of a class ({names}, …), or each a number of 0 to "
                f"{len(champion.classes) - 1}; found {label!r:.60} for the id {key!r:.60}; correct it"
            )
    return {key: known[label] for key, label in rows}
