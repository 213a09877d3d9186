"""The history of a training: one line of JSON per epoch, readable during training."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from storage.errors import DamagedEntry, made_again
from storage.records import Epoch, from_json, to_json
from storage.runtime.ranged import Source, contents


class History:
    """Writes epochs; readers see each as soon as it ends."""

    def __init__(self, path: Path, so_far: Iterable[Epoch] = ()) -> None:
        self._stream = path.open("w", encoding="utf-8")
        for epoch in so_far:
            self.append(epoch)

    def append(self, epoch: Epoch) -> None:
        """Write the line of another epoch."""
        self._stream.write(line(epoch) + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def line(epoch: Epoch) -> str:
    """Return an epoch as one line of JSON."""
    return json.dumps(to_json(epoch), allow_nan=False)


def parse(text: str) -> tuple[Epoch, ...]:
    """Return the epochs in the lines of `text`, which must be numbered from 1.

    Raises:
        ValueError: a line is not an epoch, or one is missing.
    """
    try:
        epochs = tuple(from_json(Epoch, json.loads(row)) for row in text.splitlines())
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not an epoch: {error}") from error
    if [epoch.epoch for epoch in epochs] != list(range(1, len(epochs) + 1)):
        raise ValueError("the epochs do not count from 1")
    return epochs


def read_history(source: Source) -> tuple[Epoch, ...]:
    """Read `history.jsonl` of a trained model.

    Raises:
        DamagedEntry: it cannot be read.
    """
    try:
        return parse(contents(source).decode())
    except (OSError, ValueError) as error:
        raise DamagedEntry(f"{source}: expected one epoch per line; {error}; {made_again(source)}") from error
