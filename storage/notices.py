"""Notices: what happened to a data set that is neither a run nor a decision, such as drift.

    <dataset>/ledger/notices/20261130T202311.123456Z-3f0c2a1b.json     sealed; added once, never changed

The name begins with the time, UTC. A notice is no record of the ledger: it has no number, and nothing is decided by it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from storage.errors import DamagedEntry
from storage.objects import sealed
from storage.store import Store, store_errors
from storage.store_format import FORMAT

NOTICES = "notices"
_FOLDER = f"ledger/{NOTICES}"


def note(store: Store, dataset: str, kind: str, values: Mapping[str, Any]) -> str:
    """Write a notice; return its name.

    Args:
        kind: what happened, such as `drifted`.
        values: JSON values.

    Raises:
        StoreError: it cannot be written.
    """
    now = datetime.now(UTC)
    name = f"{now:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}.json"
    record = {"kind": kind, "time": now.isoformat(timespec="milliseconds"), "format": FORMAT, "values": dict(values)}
    with store_errors(store.root / dataset / _FOLDER):
        sealed.create(store.objects, f"{store.key(dataset, _FOLDER)}/{name}", record)
    return name


def names(store: Store, dataset: str) -> list[str]:
    """Return the names of all notices about a data set, oldest first.

    Raises:
        StoreError: the folder cannot be read.
    """
    with store_errors(store.root / dataset / _FOLDER):
        found = store.objects.list(store.key(dataset, _FOLDER)).objects
    return sorted(each.name for each in found if each.name.endswith(".json"))


def read(store: Store, dataset: str, name: str) -> dict[str, Any]:
    """Return one notice: `kind`, `time` (ISO 8601, UTC), `format`, `values`.

    Raises:
        DamagedEntry: it cannot be read.
    """
    key = f"{store.key(dataset, _FOLDER)}/{name}"
    try:
        return sealed.read(store.objects, key)
    except (OSError, ValueError) as error:
        raise DamagedEntry(f"{store.objects.where(key)}: expected a notice; {error}; remove this file") from error
