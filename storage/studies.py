"""What the ledger says of studies: which there were, and the training parameters that the last one found.

    <dataset>/ledger/studies/<number>-<study>.json

A study has a record from its beginning, so that `retention` keeps its trials, and one each time that it ends or is
interrupted. The newest with a winner is the profile `tuned` of the data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage.errors import ConfigError, DamagedEntry
from storage.ledger import Ledger, run_of
from storage.store import Store

TUNED = "tuned"
"""The name of the profile."""


@dataclass(frozen=True)
class Tuned:
    """The training parameters that a study has found."""

    study: str
    """Its key."""
    trial: int
    config: Mapping[str, Any]
    """All parameters but the memory budget, by name."""
    time: str
    """When it was recorded, ISO 8601, UTC."""


def newest(ledger: Ledger) -> Tuned | None:
    """Return what the newest study with a winner has found.

    Raises:
        DamagedEntry: a record of the ledger cannot be read.
    """
    for record in ledger.newest("studies"):
        if winner := record.get("winner"):
            try:
                return Tuned(str(record["run"]), int(winner["trial"]), dict(winner["config"]), str(record["time"]))
            except (KeyError, TypeError, ValueError) as error:
                raise DamagedEntry(
                    f"expected the winner of the study {record.get('run')} in the ledger; {type(error).__name__}: "
                    f"{error}; run `idxflow tune` again"
                ) from error
    return None


def tuned(store: Store, dataset: str, command: str) -> Tuned:
    """Return the profile `tuned` of a data set.

    Args:
        command: what makes one, for the message.

    Raises:
        ConfigError: there is none.
        StoreError: the store cannot be read.
    """
    found = newest(Ledger(store, dataset)) if store.exists() else None
    if not found:
        raise ConfigError(
            f"expected a study of {dataset} in the store {store.address} for the profile {TUNED}; found none; make one "
            f"first: `{command}`"
        )
    return found


def to_keep(ledger: Ledger, keep_last: int) -> set[str]:
    """Return the keys of the newest studies, and of that which is the profile `tuned`.

    Raises:
        DamagedEntry: a record of the ledger cannot be read.
    """
    keys = [*dict.fromkeys(run_of(name) for name in reversed(ledger.names("studies")))]
    profile = newest(ledger)
    return {*keys[:keep_last], *([profile.study] if profile else [])}


def is_of(key: str, study: str) -> bool:
    """Return whether an entry is a study or something of it, from the key of its folder."""
    return key.partition("-")[0] == study
