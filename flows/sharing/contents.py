"""What other tools get to know of a run: its parameters, its scores by epoch and on the test split, and its texts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from flows.dataset_in_store import DatasetInStore
from flows.endings import settle
from flows.reports import report_of
from storage.records import HTML, JSON

_SAME_AS_BEFORE = ("unchanged", "superseded")
"""States of runs that have no results of their own."""
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)
"""What neither MLflow nor TensorBoard takes in the name of a series."""


@dataclass(frozen=True)
class Point:
    """A value at the end of an epoch."""

    group: str
    """`train` or `validation`; empty for what is of neither."""
    name: str
    epoch: int
    """Counted from 1."""
    time: float
    """Seconds since 1970, UTC."""
    value: float

    @property
    def whole_name(self) -> str:
        return f"{self.group}/{self.name}" if self.group else self.name


@dataclass(frozen=True)
class Contents:
    """A run as its record in the ledger and its report tell it."""

    record: Mapping[str, Any]
    """Of the ledger."""
    report: Mapping[str, Any]
    """What `report.json` has; see docs/report.md."""
    page: bytes
    """`report.html`."""

    @property
    def run(self) -> str:
        return str(self.record["run"])

    @property
    def state(self) -> str:
        """How it ended, see `storage.outcomes`."""
        return str(self.record.get("state") or "unknown")

    @property
    def sentence(self) -> str:
        return str(self.record.get("sentence") or self.state)

    @cached_property
    def started(self) -> float:
        """Seconds since 1970, UTC."""
        return datetime.fromisoformat(str(self.record.get("started") or self.record["time"])).timestamp()

    @property
    def ended(self) -> float:
        """Seconds since 1970, UTC."""
        return self.started + float(self.record.get("seconds") or 0)

    @property
    def parameters(self) -> dict[str, Any]:
        """The complete training configuration, as JSON values."""
        return dict(self.record.get("config") or {})

    @property
    def chosen_epoch(self) -> int:
        """The epoch whose weights were kept, counted from 1; 0 if nothing was trained."""
        return int((self.report.get("training") or {}).get("chosen_epoch") or 0)

    def points(self) -> Iterator[Point]:
        """Yield the values of all epochs, in order.

        The store keeps how long an epoch took, but not when it was: its time is counted from the start of the run.
        """
        time = self.started
        for epoch in (self.report.get("training") or {}).get("epochs") or ():
            time += epoch["seconds"]
            for group, name, value in _of_epoch(epoch):
                if value is not None:
                    yield Point(group, name, epoch["epoch"], time, value)

    def scores(self) -> dict[str, float]:
        """Return the scores of the model that was kept, by name, those of single classes last."""
        training, test = self.report.get("training") or {}, self.report.get("test") or {}
        decision = self.report.get("decision") or {}
        named = {
            "test/accuracy": test.get("accuracy"),
            "test/accuracy_low": test.get("low"),
            "test/accuracy_high": test.get("high"),
            "test/loss": test.get("loss"),
            "test/calibration_error": (test.get("calibration") or {}).get("ece"),
            "kept/train_accuracy": training.get("train_accuracy"),
            "kept/train_loss": training.get("train_loss"),
            "champion_before/test_accuracy": decision.get("champion_accuracy"),
        }
        by_class = sorted(test.get("per_class") or (), key=lambda score: score["label"])
        for measure in ("recall", "precision"):
            named |= {safe_name(f"test/{measure}/{score['name']}"): score[measure] for score in by_class}
        return {name: float(value) for name, value in named.items() if value is not None}

    def facts(self) -> dict[str, str]:
        """Return what identifies the run and its results, by name; what is not known is left out."""
        lineage, decision = self.report.get("lineage") or {}, self.report.get("decision") or {}
        digests = lineage.get("digests") or {}
        code = lineage.get("code")
        named = {
            "run": self.run,
            "version": self.record.get("version"),
            "state": self.state,
            "decision": self.sentence,
            "champion": decision.get("champion"),
            "asked_by": self.record.get("asked_by"),
            "profile": self.record.get("profile"),
            "as_of": self.record.get("as_of"),
            "study": self.record.get("study"),
            "command": lineage.get("command"),
            "weights": digests.get("weights"),
            "train_split": digests.get("train split"),
            "test_split": digests.get("test split"),
            "code": _digest(code) if code else None,
            "python": lineage.get("python"),
            "packages": ", ".join(f"{name} {version}" for name, version in (lineage.get("packages") or {}).items()),
        }
        return {name: str(value) for name, value in named.items() if value not in (None, "")}


def own_runs(data: DatasetInStore, runs: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the ledger's records of runs with results of their own, oldest first.

    Args:
        runs: by the names that `DatasetInStore.run` takes; empty: all.

    Raises:
        ConfigError: there is no such run.
    """
    if runs:
        chosen = {str(record["run"]): record for record in map(data.run, runs)}
        return [chosen[run] for run in sorted(chosen)]
    settle(data.store, data.name)
    return [record for record in data.ledger.read("runs") if record.get("state") not in _SAME_AS_BEFORE]


def contents_of(data: DatasetInStore, record: dict[str, Any]) -> Contents:
    """Return what there is to tell about the run of a ledger record; its report is made again if it is gone.

    Raises:
        StoreError: the store cannot be read.
    """
    report = report_of(data, record, [HTML, JSON])
    return Contents(record, json.loads(report.json()), report.html())


def safe_name(name: str) -> str:
    """Return a name of a series with `_` for characters that other tools refuse."""
    return _NOT_IN_NAMES.sub("_", name)


def text_of(value: Any) -> str:
    """Return a parameter as text: lists and the like as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _of_epoch(epoch: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None]]:
    yield "train", "loss", epoch["loss"]
    yield "train", "accuracy", epoch["accuracy"]
    yield "validation", "loss", epoch.get("validation_loss")
    yield "validation", "accuracy", epoch.get("validation_accuracy")
    yield "", "learning_rate", epoch.get("learning_rate")
    for layer, norm in (epoch.get("gradients") or {}).items():
        yield "", safe_name(f"gradient_norm/{layer}"), norm


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
