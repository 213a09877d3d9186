"""What the pages of a site keep between requests: records that never change, pictures, training images."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from markupsafe import Markup

from flows.dataset_in_store import DatasetInStore
from flows.web.pages import trend
from flows.web.pages.schedule import Schedule
from flows.web.work import Work
from storage.registry import Version
from storage.store import Store
from tasks.report import past_runs
from tasks.report.trend import MAX_RUNS, past_run
from tasks.serving import nearest
from tasks.serving.nearest import TrainingRows

WAITING = 32
"""Most requests for pages that wait."""
_FRESH_SECONDS = 600.0
"""After that, the records of a data set are read again, so that what was read of long ledgers does not stay forever."""
_INDEXES = 2
"""Data sets whose training images stay in memory: those that were asked for last."""


class State:
    """What the pages keep. All but `work` and `schedule` is for the thread of `work` alone."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self.work = Work(WAITING)
        """The thread that makes pages: it reads the store, and must not delay the answers of the API."""
        self.schedule = Schedule()
        self._data: dict[str, tuple[float, DatasetInStore]] = {}
        self._trends: dict[str, tuple[str, Markup]] = {}
        self._rows: OrderedDict[str, tuple[str, TrainingRows | None]] = OrderedDict()

    def data(self, dataset: str) -> DatasetInStore:
        """Return a data set, with the records that were read lately."""
        now = self._clock()
        since, known = self._data.get(dataset, (now, None))
        if known is None or now - since >= _FRESH_SECONDS:
            since, known = now, DatasetInStore(self._store, dataset)
        self._data[dataset] = since, known
        return known

    def trend(self, dataset: str) -> Markup | None:
        """Return a picture of the last runs, SVG; None before the second run that tested a model.

        Raises:
            DamagedEntry: a record of the ledger cannot be read.
        """
        ledger = self.data(dataset).ledger
        newest = next(reversed(ledger.names("runs")), "")
        known = self._trends.get(dataset)
        if known is None or known[0] != newest:
            records = [*islice(ledger.newest("runs"), MAX_RUNS)][::-1]
            runs = [run for record in records if (run := past_run(record))]
            known = self._trends[dataset] = newest, trend.picture(dataset, runs)
        return known[1] or None

    def training_rows(self, version: Version) -> TrainingRows | None:
        """Return the images that a version was trained on; None if the store has them no more.

        Raises:
            DamagedEntry: they cannot be read.
        """
        known = self._rows.pop(version.dataset, None)
        if known is None or known[0] != version.run:
            run = past_runs.find(self.data(version.dataset).registry, version.run)
            known = version.run, nearest.read(run.train) if run and run.train else None
        self._rows[version.dataset] = known
        if len(self._rows) > _INDEXES:
            self._rows.popitem(last=False)
        return known[1]
