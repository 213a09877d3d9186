"""What the first pass finds about two splits, if one of them is in parts: their surveys, and what occurs repeatedly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from storage.formats import members, split_rows
from storage.records import Split, SplitName
from storage.store import Store
from tasks.checking import repeats, surveys
from tasks.checking.repeats import AGAIN, CONFLICT, LEAKED, Repeats
from tasks.checking.surveys import PartSurvey, SplitSurvey


@dataclass(frozen=True)
class Compared:
    """What is known of both splits after the first pass."""

    train: SplitSurvey
    test: SplitSurvey
    repeats: Repeats

    def parts(self, split: Split) -> Iterator[Part]:
        """Yield the parts of one of the splits, in order.

        Raises:
            DamagedEntry: the list of parts cannot be read.
        """
        first = 0 if split.name == "train" else self.train.parts
        each = zip(split_rows.numbered(split), self.of(split.name).of_parts(), strict=True)
        for number, ((start, part), survey) in enumerate(each, first):
            yield Part(part, start, survey, self.repeats, number)

    def of(self, split: SplitName) -> SplitSurvey:
        """Return the survey of one of the splits."""
        return self.train if split == "train" else self.test

    def keys(self) -> Iterator[str]:
        """Yield the keys of all entries that this consists of, to be kept with what is made from it."""
        for entry in (self.train.entry, self.test.entry, self.repeats.entry):
            yield from (entry.key, *members.keys(entry))


@dataclass(frozen=True)
class Part:
    """One part of a split, with what the first pass has found: what a worker needs for the second one."""

    split: Split
    """The part."""
    start: int
    """Number of its first row in the split."""
    survey: PartSurvey
    repeats: Repeats
    number: int
    """Of the part among those of both splits."""

    @property
    def label(self) -> str:
        """What people call it."""
        return split_rows.named(self.split, self.start)

    def inputs(self, splits: tuple[Split, Split]) -> dict[str, str]:
        """Return the digests of what its rows are compared with: the training split, and that of the part."""
        others: dict[str, str] = {
            other.name: other.digest for other in splits if other.name in ("train", self.split.name)
        }
        return {"part": self.split.digest, **others}

    def rows(self) -> dict[str, np.ndarray]:
        """Return the columns of `PartSurvey.of_rows` and of `repeated`.

        Raises:
            DamagedEntry: a file cannot be read.
        """
        of_rows = self.survey.of_rows()
        return of_rows | repeated(of_rows["image"], self.repeats.said(self.number, self.survey.images))


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
