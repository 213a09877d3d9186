"""The registry: numbered model versions, and the one pointer that says which of them is the champion.

    <dataset>/registry/versions/00000007.json   created only if absent, never changed
    <dataset>/registry/champion.json            replaced in one step, under a lock

A version names a model entry and an evaluation entry of the store by their keys. It is created after
both are complete; the pointer is moved after the version is. So the pointer always names something whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.errors import DamagedEntry, StoreError
from storage.files import create_json, locked, write_json
from storage.records import from_json, to_json
from storage.store import Store, store_errors


@dataclass(frozen=True)
class Version:
    """A model that was trained and evaluated, whether or not it became champion."""

    dataset: str
    number: int
    model: str
    """Key of the `train` entry."""
    evaluation: str
    """Key of the `evaluate` entry on the test split it was registered with."""
    weights_digest: str
    test_digest: str
    """Content digest of that test split."""
    test_accuracy: float
    train_accuracy: float
    classes: tuple[str, ...]
    image_shape: tuple[int, int]
    run: str
    time: str
    """When it was registered, ISO 8601, UTC."""


class Registry:
    """The versions and the champion of one data set."""

    def __init__(self, store: Store, dataset: str) -> None:
        self.dataset = dataset
        self._folder = store.dataset(dataset) / "registry"
        self._pointer = self._folder / "champion.json"

    def versions(self) -> list[Version]:
        """Return all versions, oldest first."""
        return [self._read(path) for path in sorted((self._folder / "versions").glob("[!.]*.json"))]

    def version(self, number: int) -> Version:
        """Return one version.

        Raises:
            StoreError: there is no such version.
            DamagedEntry: it cannot be read.
        """
        path = self._path(number)
        if not path.is_file():
            raise StoreError(f"expected version {number} of {self.dataset!r} at {path}; there is none")
        return self._read(path)

    def champion(self) -> Version | None:
        """Return the version in use, or None before the first promotion.

        Raises:
            DamagedEntry: the pointer cannot be read, or the version it names is not there.
        """
        try:
            number = json.loads(self._pointer.read_bytes())["version"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedEntry(f"{self._pointer}: expected the champion's version number; {error}") from error
        return self.version(number)

    def find(self, model: str, evaluation: str) -> Version | None:
        """Return the version of this model with this evaluation, if it was registered before."""
        wanted = (model, evaluation)
        return next((v for v in self.versions() if (v.model, v.evaluation) == wanted), None)

    def register(self, **values: Any) -> Version:
        """Create the next version from the fields of `Version` other than dataset, number and time.

        The same model with the same evaluation keeps the number it has.
        """
        with store_errors(self._folder):
            while True:
                known = self.find(values["model"], values["evaluation"])
                if known:
                    return known
                number = max((v.number for v in self.versions()), default=0) + 1
                time = datetime.now(UTC).isoformat(timespec="seconds")
                version = Version(dataset=self.dataset, number=number, time=time, **values)
                # Another run may have taken the number since: then look again and take the next.
                if create_json(self._path(number), to_json(version)):
                    return version

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Keep others from moving the champion while a decision is made and carried out."""
        with locked(self._folder / "champion.lock"):
            yield

    def promote(self, number: int, run: str) -> None:
        """Make `number` the champion. Call it while `deciding`."""
        self.version(number)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        with store_errors(self._folder):
            write_json(self._pointer, {"version": number, "run": run, "time": time})

    def _path(self, number: int) -> Path:
        return self._folder / "versions" / f"{number:08d}.json"

    def _read(self, path: Path) -> Version:
        try:
            return from_json(Version, json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DamagedEntry(f"{path}: expected a version manifest; {error}") from error
