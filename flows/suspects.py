"""The audit of the newest run that has one: its tables, with the names of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.dataset_in_store import DatasetInStore
from storage.errors import ConfigError, DamagedEntry
from storage.outcomes import steps_of
from storage.records import Audit

if TYPE_CHECKING:
    from tasks.auditing.tables import NearDuplicates, Suspects

COLUMNS = (
    "row",
    "label",
    "class",
    "suggested_label",
    "suggested_class",
    "probability",
    "suggested_probability",
    "flagged",
)


@dataclass(frozen=True)
class Audited:
    """An audit of a data set, the run that has it, and its tables."""

    run: str
    record: Audit
    suspects: Suspects
    near_duplicates: NearDuplicates
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    """The label files' value for each class; empty: 0, 1, 2, …"""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each suspect, most suspicious first, by `COLUMNS`.

        `row` counts from 0 in the order of the training archive; labels are as in the label file.
        """
        columns = (values.tolist() for values in self.suspects.columns().values())
        for row, label, suggested, probability, suggested_probability, flagged in zip(*columns, strict=True):
            values = (
                row,
                *self._class(label),
                *self._class(suggested),
                round(probability, 6),
                round(suggested_probability, 6),
                flagged,
            )
            yield dict(zip(COLUMNS, values, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return both tables as lists of objects: suspects by `COLUMNS`, near-duplicates, the nearest first."""
        columns = (values.tolist() for values in self.near_duplicates.columns().values())
        pairs = [
            {
                "test_row": test_row,
                "train_row": train_row,
                "distance": round(distance, 6),
                "test_class": self._class(test_label)[1],
                "train_class": self._class(train_label)[1],
            }
            for test_row, train_row, distance, test_label, train_label in zip(*columns, strict=True)
        ]
        return {"suspects": [*self.rows()], "near_duplicates": pairs}

    def _class(self, number: int) -> tuple[int, str]:
        """Return the label of a class in the label files, and its name, as far as the ledger has them."""
        label = self.labels[number] if number < len(self.labels) else number
        return label, self.classes[number] if number < len(self.classes) else f"class {number}"


def audited(data: DatasetInStore) -> Audited:
    """Return the audit of the newest run that has one.

    Raises:
        ConfigError: no run has one, or that of the newest was removed or is damaged.
    """
    from tasks.auditing.tables import NearDuplicates, Suspects

    problem = "no run has had one"
    record = next((run for run in data.ledger.newest("runs") if _key(run)), None)
    if record:
        try:
            found = data.store.get(data.name, "audit", _key(record), Audit)
            tables = Suspects.read(found.suspects), NearDuplicates.read(found.near_duplicates)
            facts = record.get("facts") or {}
            names = tuple(map(str, facts.get("classes") or ()))
            return Audited(str(record["run"]), found, *tables, names, tuple(facts.get("labels") or ()))
        except DamagedEntry:
            problem = f"that of run {record['run']} was removed or is damaged"
    raise ConfigError(
        f"expected an audit of {data.name} in the store; {problem}; make one: {data.command_with('--audit')}"
    )


def _key(run: Mapping[str, Any]) -> str:
    return next((step.key for step in steps_of(run) if step.step == "audit"), "")
