"""The ledger: one small JSON file per run and per decision, appended and never changed.

    <dataset>/ledger/runs/<time>-<run>.json
    <dataset>/ledger/decisions/<time>-<run>.json

It is the memory of idxflow: Prefect's database can be wiped and no run, decision or report is lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from storage.errors import StoreError
from storage.files import create_json
from storage.store import Store, store_errors

Kind = Literal["runs", "decisions"]


class Ledger:
    """What happened to one data set, in order."""

    def __init__(self, store: Store, dataset: str) -> None:
        self._folder = store.dataset(dataset) / "ledger"

    def append(self, kind: Kind, run: str, values: Mapping[str, Any]) -> Path:
        """Write one record, with the time (UTC) and the run's id added.

        Raises:
            StoreError: it cannot be written, or this run has written one this very microsecond.
        """
        now = datetime.now(UTC)
        path = self._folder / kind / f"{now:%Y%m%dT%H%M%S.%fZ}-{run}.json"
        with store_errors(path):
            if not create_json(path, {**values, "run": run, "time": now.isoformat(timespec="milliseconds")}):
                raise StoreError(f"{path}: expected no such record yet; it exists")
        return path

    def read(self, kind: Kind) -> list[dict[str, Any]]:
        """Return all records of a kind, oldest first."""
        return [json.loads(path.read_bytes()) for path in sorted((self._folder / kind).glob("[!.]*.json"))]

    def last(self, kind: Kind) -> dict[str, Any] | None:
        """Return the newest record of a kind, if there is any."""
        paths = sorted((self._folder / kind).glob("[!.]*.json"))
        return json.loads(paths[-1].read_bytes()) if paths else None
