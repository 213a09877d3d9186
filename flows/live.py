"""How often a champion is right about what it is asked, by the labels that come later."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from storage import later_labels
from storage.registry import Version
from storage.store import Store
from storage.words import counted


@dataclass(frozen=True)
class Live:
    """The accuracy of a version on logged images whose labels have come."""

    version: int
    labelled: int
    """Images with an answer of this version and a label; one that was asked about twice counts once."""
    correct: int
    low: float
    """Of the Wilson interval of 95 % (`tasks.gate.wilson`)."""
    high: float
    test_accuracy: float

    @property
    def accuracy(self) -> float | None:
        """None without labels."""
        return self.correct / self.labelled if self.labelled else None

    @property
    def sentence(self) -> str:
        """Both accuracies, to compare."""
        if self.accuracy is None:
            return f"no labels yet for what v{self.version} has answered; {self.test_accuracy:.2%} on test"
        return (
            f"{self.accuracy:.2%} ({self.low:.2%}–{self.high:.2%}) of {counted(self.labelled, 'labelled answer')} of "
            f"v{self.version}; {self.test_accuracy:.2%} on test"
        )


def of_champion(store: Store, dataset: str, version: Version) -> Live:
    """Return the live accuracy of a version.

    The interval holds for images whose labels come regardless of the answer: if only doubtful answers are looked at,
    both numbers are about these.

    Raises:
        DamagedEntry: a file of the log or of the labels is damaged.
        StoreError: they cannot be read.
    """
    # NumPy and the normal distribution take a moment to import, and every command imports this module.
    from storage import prediction_log
    from tasks.gate import wilson

    labels = later_labels.read(store, dataset)
    answers: dict[str, int] = {}
    # Without labels, the log need not be read.
    if labels:
        table = prediction_log.read(store, dataset, ("id", "label", "version"))
        rows = zip(*(table[name].to_pylist() for name in ("id", "label", "version")), strict=True)
        answers = {key: label for key, label, by in rows if by == version.number and key in labels}
    correct = sum(labels[key] == label for key, label in answers.items())
    low, high = wilson.interval(correct, len(answers))
    return Live(version.number, len(answers), correct, low, high, version.test_accuracy)


def values(dataset: str, found: Live) -> dict[str, Any]:
    """Return it as JSON values."""
    return {"dataset": dataset, **asdict(found), "accuracy": found.accuracy, "sentence": found.sentence}
