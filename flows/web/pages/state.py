"""What the pages of a site keep between requests: records that never change, pictures, training images."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from markupsafe import Markup

from flows.dataset_in_store import DatasetInStore
from flows.web.pages import trend
from flows.web.pages.schedule import Schedule
from flows.web.work import Work
from storage.store import Store
from tasks.report import past_runs
from tasks.report.trend import MAX_RUNS, past_run
from tasks.serving import drawing, nearest
from tasks.serving.drawing import Usual
from tasks.serving.nearest import TrainingRows
from tasks.serving.predict import Model

WAITING = 32
"""Most requests for pages that wait."""
_FRESH_SECONDS = 600.0
"""After that, the records of a data set are read again, so that what was read of long ledgers does not stay forever."""
_TRAININGS = 2
"""Data sets whose training images stay in memory: those that were asked for last."""


@dataclass(frozen=True)
class Training:
    """What a version was trained on."""

    rows: TrainingRows
    usual: Usual | None
    """What its drawings look like; None if they are no drawings."""


class State:
    """What the pages keep. All but `work` and `schedule` is for the thread of `work` alone."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self.work = Work(WAITING)
        """The thread that makes pages: it reads the store, and must not delay the answers of the API."""
        self.schedule = Schedule()
        self._data: dict[str, tuple[float, DatasetInStore]] = {}
        self._trends: dict[str, tuple[str, Markup]] = {}
        self._trainings: OrderedDict[str, tuple[str, Training | None]] = OrderedDict()
        """By data set, with the run of the version."""

    def start(self) -> None:
        """Import what pages need, before there are several threads: no two may import libraries at the same time."""
        import httpx  # noqa: F401
        import matplotlib.backends.backend_svg
        import matplotlib.style  # noqa: F401

        import flows.service.client  # noqa: F401

        self.schedule.look()

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

    def training(self, model: Model) -> Training | None:
        """Return what a model was trained on; None if the store has it no more.

        Raises:
            DamagedEntry: it cannot be read.
        """
        version = model.version
        known = self._trainings.pop(version.dataset, None)
        if known is None or known[0] != version.run:
            known = version.run, self._read(model)
        self._trainings[version.dataset] = known
        if len(self._trainings) > _TRAININGS:
            self._trainings.popitem(last=False)
        return known[1]

    def _read(self, model: Model) -> Training | None:
        run = past_runs.find(self.data(model.version.dataset).registry, model.version.run)
        if run is None or run.train is None:
            return None
        rows = nearest.read(run.train)
        # Rows at even distances, because archives may be sorted by class.
        step = max(1, len(rows.images) // drawing.MEASURED)
        return Training(rows, drawing.usual(rows.images[::step], model.pixel_range))
