"""Find a data set of a store by name, and its versions and runs by the names that users type."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flows import datasets
from flows.endings import settle
from storage.errors import ConfigError
from storage.ledger import Ledger, run_of
from storage.opening import open_store
from storage.registry import Registry, Version
from storage.store import Store
from storage.words import meant, versions_to_give

_LATEST = 5
"""How many runs an error lists."""


@dataclass(frozen=True)
class DatasetInStore:
    """A data set with runs or versions in a store."""

    store: Store
    name: str

    @classmethod
    def open(cls, name: str, store: str | None) -> DatasetInStore:
        """Return the data set with this name.

        Args:
            store: folder of the store; None: the default.

        Raises:
            ConfigError: the store has no data set with this name.
        """
        opened = open_store(store)
        datasets.check_known(opened, name, opened.datasets(("registry", "ledger")))
        return cls(opened, name)

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.store, self.name)

    @property
    def ledger(self) -> Ledger:
        return self.registry.ledger

    @property
    def run_command(self) -> str:
        """The command that creates what is missing, in backquotes."""
        return f"`{datasets.run_command(self.store, self.name)}`"

    def command_with(self, option: str) -> str:
        """Return `run_command` with one more option."""
        return f"{self.run_command[:-1]} {option}`"

    def champion(self) -> Version:
        """Return the champion.

        Raises:
            ConfigError: there is no champion yet.
        """
        champion = self.registry.champion()
        if champion is None:
            raise ConfigError(f"expected a champion of {self.name}; found none yet; run it: {self.run_command}")
        return champion

    def version(self, text: str) -> Version:
        """Return the version that `7`, `v7` or `champion` names.

        Raises:
            ConfigError: there is no such version.
        """
        if text == "champion":
            return self.champion()
        digits = text.removeprefix("v")
        numbers = self.registry.numbers()
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) in numbers):
            remedy = versions_to_give(numbers) if numbers else f"it has no version yet: {self.run_command}"
            names = ("champion", *(f"v{number}" for number in numbers))
            raise ConfigError(
                f"expected a version of {self.name}, a number or `champion`; found {text[:40]!r}"
                f"{meant(text, names, alike=0.75)}; {remedy}"
            )
        return self.registry.version(int(digits))

    def run(self, text: str) -> dict[str, Any]:
        """Return the ledger's record of the run that an id, the start of an id, `latest`, `champion` or `v7` names.

        Raises:
            ConfigError: there is no such run or version, or several ids have this start.
        """
        settle(self.store, self.name)
        runs = [run_of(name) for name in self.ledger.names("runs")]
        if not runs:
            raise ConfigError(
                f"expected a run of {self.name} in the ledger; found none yet; run it: {self.run_command}"
            )
        is_version = text == "champion" or re.fullmatch("v[0-9]+", text)
        run_id = runs[-1] if text == "latest" else self.version(text).run if is_version else text
        matching = [run_id] if run_id in runs else _beginning(runs, run_id)
        record = self.ledger.find("runs", matching[0]) if len(matching) == 1 else None
        if record:
            return record
        if matching:
            raise ConfigError(
                f"expected the beginning of a single run's id; {run_id[:40]!r} begins {len(matching)} of {self.name}: "
                f"{_newest(matching)}; type more of it"
            )
        lost = f", made by run {run_id}, which the ledger does not have" if is_version else _alike(run_id, runs)
        raise ConfigError(
            f"expected a run of {self.name}, by its id, the beginning of its id, `latest`, `champion` or `v` and a "
            f"version; found {text[:40]!r}{lost}; give one of these, the latest: {_newest(runs)}"
        )


def _beginning(runs: Sequence[str], text: str) -> list[str]:
    return [*dict.fromkeys(run for run in runs if text and run.startswith(text))]


def _newest(runs: Sequence[str]) -> str:
    return ", ".join(runs[: -_LATEST - 1 : -1])


def _alike(text: str, runs: Sequence[str]) -> str:
    # Ids of the same day are similar anyway, hence the higher threshold.
    return meant(text, ("latest", "champion")) or meant(text, {run[: len(text)] for run in runs}, alike=0.85)
