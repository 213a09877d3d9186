"""What looks at new images have found about a data set: only changes, so that each is acted on once.

    <dataset>/ledger/drifts/00000003.json              sealed; added once, never changed
    <dataset>/ledger/drifts/00000003-retraining.json   the retraining that it led to

A finding is about one champion: that images have drifted from what it was trained on, or, after that, that they are
within the limits again. Its number is taken by creating its file, which only one process can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from storage.errors import DamagedEntry
from storage.objects import sealed
from storage.store import Store, store_errors
from storage.store_format import FORMAT

DRIFTS = "drifts"
_FOLDER = f"ledger/{DRIFTS}"
_RETRAINING = "retraining"


@dataclass(frozen=True)
class Found:
    """A finding."""

    number: int
    champion: int
    is_drifted: bool
    is_new: bool
    """Whether it was just written."""


class Drifts:
    """The findings about one data set."""

    def __init__(self, store: Store, dataset: str) -> None:
        self._store = store
        self._folder = store.key(dataset, _FOLDER)
        self._where = store.root / dataset / _FOLDER

    def last(self) -> Found | None:
        """Return the newest finding; None before the first.

        Raises:
            DamagedEntry: it cannot be read.
            StoreError: the folder cannot be read.
        """
        numbers = self.numbers()
        return self._read(numbers[-1]) if numbers else None

    def numbers(self) -> list[int]:
        """Return the numbers of all findings, oldest first.

        Raises:
            StoreError: the folder cannot be read.
        """
        with store_errors(self._where):
            objects = self._store.objects.list(self._folder).objects
        names = (found.name.removesuffix(".json") for found in objects)
        return sorted(int(name) for name in names if name.isdecimal())

    def record(self, number: int) -> dict[str, Any]:
        """Return a finding: `champion`, `drifted`, `time` (ISO 8601, UTC), and `values` about the look.

        Raises:
            DamagedEntry: it cannot be read.
        """
        key = f"{self._folder}/{number:08d}.json"
        try:
            values = sealed.read(self._store.objects, key)
            return {**values, "champion": int(values["champion"]), "drifted": bool(values["drifted"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedEntry(
                f"{self._store.objects.where(key)}: expected what a look at new images has found; {error}; remove this "
                "file: the next look writes it again"
            ) from error

    def values(self, number: int) -> dict[str, Any]:
        """Return a finding for people and programs: JSON values.

        They are `time` (ISO 8601, UTC), `champion`, `drifted`, `sentence`, `source` and `retraining`, whether it has
        led to one.

        Raises:
            DamagedEntry: it cannot be read.
            StoreError: the folder cannot be read.
        """
        record = self.record(number)
        look = record.get("values") or {}
        return {
            "time": str(record.get("time")),
            "champion": record["champion"],
            "drifted": record["drifted"],
            "sentence": str(look.get("sentence") or ""),
            "source": str(look.get("from") or "unknown"),
            "retraining": self.retraining(number),
        }

    def of_champion(self, version: int) -> dict[str, Any] | None:
        """Return the newest finding (`values`) if it is about this champion, otherwise None.

        Raises:
            DamagedEntry: it cannot be read.
            StoreError: the folder cannot be read.
        """
        last = self.last()
        return self.values(last.number) if last and last.champion == version else None

    def note(self, champion: int, is_drifted: bool, values: Mapping[str, Any]) -> Found | None:
        """Write what a look has found, if that is a change; return the finding that counts now, if there is one.

        Args:
            champion: the version.
            is_drifted: whether the images are beyond the limits.
            values: JSON values about the look.

        Raises:
            DamagedEntry: the newest finding cannot be read.
            StoreError: it cannot be written.
        """
        while True:
            last = self.last()
            same = last is not None and (last.champion, last.is_drifted) == (champion, is_drifted)
            news = is_drifted or (last is not None and last.champion == champion)
            if same or not news:
                return last if same else None
            number = (last.number if last else 0) + 1
            record = {"champion": champion, "drifted": is_drifted, **_signed(), "values": dict(values)}
            if self._create(f"{number:08d}", record):
                return Found(number, champion, is_drifted, is_new=True)

    def retraining(self, number: int) -> bool:
        """Return whether a finding has led to a retraining.

        Raises:
            StoreError: the folder cannot be read.
        """
        with store_errors(self._where):
            objects = self._store.objects.list(self._folder).objects
        return f"{number:08d}-{_RETRAINING}.json" in {found.name for found in objects}

    def note_retraining(self, number: int, run: str) -> None:
        """Write that a finding has led to a retraining, a flow run.

        Raises:
            StoreError: it cannot be written.
        """
        self._create(f"{number:08d}-{_RETRAINING}", {"flow_run": run, **_signed()})

    def _create(self, name: str, values: Mapping[str, Any]) -> bool:
        with store_errors(self._where):
            return sealed.create(self._store.objects, f"{self._folder}/{name}.json", values)

    def _read(self, number: int) -> Found:
        values = self.record(number)
        return Found(number, values["champion"], values["drifted"], is_new=False)


def _signed() -> dict[str, Any]:
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "format": FORMAT}
