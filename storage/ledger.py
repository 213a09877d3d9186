"""The ledger: one small JSON file per run, decision and arrival of archives, appended and never changed.

    <dataset>/ledger/runs/<time>-<run>.json
    <dataset>/ledger/decisions/<time>-<run>.json
    <dataset>/ledger/arrivals/<time>-<mark>.json

It is the memory of idxflow: Prefect's database can be wiped and no run, decision or report is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from storage.errors import DamagedEntry, StoreError
from storage.files import create_json, listed, read_json
from storage.store import Store, store_errors

Kind = Literal["runs", "decisions", "arrivals"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_NAMED_BY = "%Y%m%dT%H%M%S.%fZ"


class Ledger:
    """What happened to one data set, in order."""

    def __init__(self, store: Store, dataset: str) -> None:
        self._folder = store.part(dataset, "ledger")

    def append(self, kind: Kind, run: str, values: Mapping[str, Any]) -> Path:
        """Write one record, with the time (UTC) and the run's id added.

        Raises:
            StoreError: it cannot be written, or this run has written one this very microsecond.
        """
        now = max(datetime.now(UTC), self._after_newest())
        path = self._folder / kind / f"{now:{_NAMED_BY}}-{run}.json"
        with store_errors(path):
            if not create_json(path, {**values, "run": run, "time": now.isoformat(timespec="milliseconds")}):
                raise StoreError(f"{path}: expected no such record yet; it exists")
        return path

    def read(self, kind: Kind) -> list[dict[str, Any]]:
        """Return all records of a kind, oldest first.

        Raises:
            DamagedEntry: one of them cannot be read.
        """
        return [_record(path) for path in self._paths(kind)]

    def last(self, kind: Kind) -> dict[str, Any] | None:
        """Return the newest record of a kind, if there is any.

        Raises:
            DamagedEntry: it cannot be read.
        """
        paths = self._paths(kind)
        return _record(paths[-1]) if paths else None

    def _after_newest(self) -> datetime:
        """Return the first moment after all records: their names are their order, also when the clock is put back."""
        names = [path.name for kind in KINDS for path in self._paths(kind)[-1:]]
        try:
            newest = datetime.fromisoformat(max(names, default="").split("-")[0])
        except ValueError:
            # No record yet, or a file that is none.
            return datetime.min.replace(tzinfo=UTC)
        return newest.replace(tzinfo=UTC) + timedelta(microseconds=1)

    def _paths(self, kind: Kind) -> list[Path]:
        with store_errors(self._folder):
            return listed(self._folder / kind, ".json")


def _record(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise DamagedEntry(
            f"{path}: expected a record of the ledger; {error}; restore it from a backup or move it out of the ledger"
        ) from error
