"""What the first pass finds about two splits, if one of them is in parts: their surveys, and what occurs repeatedly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from storage.formats import members
from storage.records import Split, SplitName
from storage.store import Store
from tasks.checking import repeats, surveys
from tasks.checking.repeats import AGAIN, CONFLICT, LEAKED, Repeats
from tasks.checking.surveys import SplitSurvey


@dataclass(frozen=True)
class Compared:
    """What is known of both splits after the first pass."""

    train: SplitSurvey
    test: SplitSurvey
    repeats: Repeats

    def part(self, split: SplitName, number: int) -> int:
        """Return the number of a part of a split among those of both, for `Repeats.said`."""
        return number if split == "train" else self.train.parts + number

    def of(self, split: SplitName) -> SplitSurvey:
        """Return the survey of one of the splits."""
        return self.train if split == "train" else self.test

    def keys(self) -> Iterator[str]:
        """Yield the keys of all entries that this consists of, to be kept with what is made from it."""
        for entry in (self.train.entry, self.test.entry, self.repeats.entry):
            yield from (entry.key, *members.keys(entry))


def compare(store: Store, dataset: str, splits: tuple[Split, Split]) -> Compared:
    """Survey both splits, and find the images that occur more than once, or find that done.

    Args:
        store: the store.
        dataset: the name of the data set.
        splits: the training split, then the test split.

    Raises:
        DamagedEntry: a part cannot be read.
    """
    train, test = (surveys.survey(store, dataset, split) for split in splits)
    digests: dict[str, str] = {split.name: split.digest for split in splits}
    return Compared(train, test, repeats.find(store, dataset, train, test, digests))


def repeated(image: np.ndarray, said: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns `duplicate`, `conflict` and `leaked` of the rows of a part, as bool.

    Args:
        image: the place of the image of each row among the different ones of the part.
        said: what is said of each of these, see `Repeats.said`.
    """
    first = np.zeros(len(image), bool)
    first[np.unique(image, return_index=True)[1]] = True
    of_rows = said[image]
    return {
        "duplicate": ~first | (of_rows & AGAIN > 0),
        "conflict": of_rows & CONFLICT > 0,
        "leaked": of_rows & LEAKED > 0,
    }
