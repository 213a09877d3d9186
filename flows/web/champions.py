"""The champions of a store, kept loaded, and replaced as soon as a decision replaces them.

A thread looks for new decisions twice a second, which is one read for each data set. A new champion is loaded and
verified beside the old one; then one assignment replaces it. Who answers a request takes the model once, so no answer
is made by two versions. A champion that cannot be loaded leaves the old one in place, and a problem.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from flows.health import champion_since
from storage.errors import IdxflowError
from storage.registry import Registry, Standing
from storage.store import Store
from storage.words import meant
from tasks.serving.predict import Model, find_version

LOOK_SECONDS = 0.5
"""Between two looks for new decisions."""
LIST_SECONDS = 10.0
"""Between two looks for new data sets, and for what no next decision tells of, such as a restored backup."""
RETRY_SECONDS = 10.0
"""Until a champion that could not be loaded is tried again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Followed:
    """The champion of a data set, as far as it is known. Never changed, only replaced."""

    model: Model | None = None
    """None before the first promotion, and as long as no champion could be loaded."""
    since: datetime | None = None
    """When it became champion, UTC."""
    problem: str | None = None
    """Why the newest champion is not in `model`, in a sentence."""
    standing: Standing | None = None
    listed: float = 0.0
    """When `standing` was read as a whole, by the clock of `Champions`."""
    tried: float = 0.0
    """When a champion was last loaded, or could not be."""


class Champions:
    """The champions of the data sets of a store.

    Args:
        store: opened; nothing in it is changed.
        only: names of data sets; empty: all that the store has.
        clock: seconds, such as `time.monotonic`.
    """

    def __init__(self, store: Store, only: tuple[str, ...] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._only, self._clock = store, only, clock
        self._followed: Mapping[str, Followed] = {}
        self._registries: dict[str, Registry] = {}
        self._listed = -LIST_SECONDS
        self._problem: str | None = None
        self._looking = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look once, then go on looking in a thread until `stop`."""
        self.look()
        self._thread = threading.Thread(target=self._keep_looking, name="champions", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets, in the order of the alphabet; those without a champion, too."""
        return tuple(self._followed)

    def followed(self, dataset: str) -> Followed:
        """Return what is known of a data set. Raises KeyError if there is none of this name."""
        return self._followed[dataset]

    def problems(self) -> dict[str, str]:
        """Return what is wrong: a sentence for each data set, and under "" one about the store."""
        found = {name: followed.problem for name, followed in self._followed.items() if followed.problem}
        return {**found, "": self._problem} if self._problem else found

    def unknown(self, dataset: str) -> str:
        """Return the sentence for a data set that is not there."""
        names = ", ".join(self._followed) or "none"
        return (
            f"expected a data set that is served here; found {dataset[:100]!r}{meant(dataset, self.names)}; "
            f"there are: {names}"
        )

    def look(self) -> None:
        """Look for new decisions and new data sets, and load what they ask for. One thread at a time."""
        with self._looking:
            now = self._clock()
            if now - self._listed >= LIST_SECONDS:
                self._list(now)
            for name, known in self._followed.items():
                new = self._looked(name, known, now)
                if new is not known:
                    self._followed = {**self._followed, name: new}

    def _keep_looking(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:
                # Whatever it was: the champions stay, and the next look may succeed.
                _log.exception("could not look for new champions")

    def _list(self, now: float) -> None:
        try:
            names = sorted(self._only or self._store.datasets())
        except (IdxflowError, OSError) as error:
            self._problem = str(error)
            return
        self._problem, self._listed = None, now
        self._followed = {name: self._followed.get(name, Followed()) for name in names}

    def _looked(self, name: str, known: Followed, now: float) -> Followed:
        registry = self._registries.setdefault(name, Registry(self._store, name))
        waits = known.problem and now - known.tried < RETRY_SECONDS
        try:
            if waits or (known.standing and not self._is_new(registry, known, now)):
                return known
            standing = registry.standing()
            known = replace(known, standing=standing, listed=now)
            return self._with_model(name, registry, known, now)
        except (IdxflowError, OSError) as error:
            _log.warning("%s: %s", name, error)
            return replace(known, problem=str(error), tried=now)

    @staticmethod
    def _is_new(registry: Registry, known: Followed, now: float) -> bool:
        assert known.standing, "called after the first look"  # noqa: S101
        if known.problem or now - known.listed >= LIST_SECONDS:
            return True
        return registry.ledger.decision(known.standing.number + 1) is not None

    def _with_model(self, name: str, registry: Registry, known: Followed, now: float) -> Followed:
        assert known.standing, "read just before"  # noqa: S101
        number = known.standing.champion
        if number is None:
            return replace(known, model=None, since=None, problem=None)
        if known.model and known.model.version.number == number:
            return replace(known, problem=None)
        with self._store.in_use(name):
            model = Model(self._store, find_version(self._store, name, number))
            # Now, so that no answer needs the store, and none waits for TensorFlow if a network of the user needs it.
            model.predict(model.mean_image.astype(np.uint8))
        return replace(known, model=model, since=champion_since(registry, model.version), problem=None, tried=now)

    @staticmethod
    def age(followed: Followed) -> float | None:
        """Return the seconds since the champion became it; None without one."""
        return (datetime.now(UTC) - followed.since).total_seconds() if followed.since else None
