"""What Prometheus can ask a site, in its text format: https://prometheus.io/docs/instrumenting/exposition_formats/.

What happens is counted when it happens; what is true, such as the age of the champion, is looked up when it is asked.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as Counted
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from flows import live
from flows.live import Live
from flows.service.guard import Application, Message, Receive, Send
from storage.drifts import Drifts
from storage.errors import IdxflowError
from storage.ledger import Ledger
from storage.registry import Version
from storage.store import Store

if TYPE_CHECKING:
    from flows.web.served import Site

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of the buckets of a histogram."""
_ACCURATE_SECONDS = 60.0
"""How long a live accuracy is used before the log is read again."""
_FRESH_SECONDS = 10.0
"""How long the counts of runs are used before the ledger is listed again."""


class Metrics:
    """The metrics of one site."""

    def __init__(self, site: Site) -> None:
        self.registry = CollectorRegistry()
        self._site = site
        self._requests = Counted(
            "idxflow_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "idxflow_request_seconds",
            "Seconds from the head of a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._predictions = Counted(
            "idxflow_predictions", "Images classified.", ("dataset", "version", "label"), registry=self.registry
        )
        self._runs: dict[str, _Runs] = {}
        self._accuracies = _Accuracies()
        self._asked = threading.Lock()
        self.registry.register(self)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is its template, such as `/v1/{dataset}/predict`."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def predicted(self, dataset: str, version: int, names: tuple[str, ...]) -> None:
        """Count images by the class that was answered."""
        for name, count in Counter(names).items():
            self._predictions.labels(dataset, str(version), name).inc(count)

    def text(self) -> bytes:
        """Return all metrics. It reads the ledger, so not in the event loop."""
        with self._asked:
            return generate_latest(self.registry)

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: names of what is looked up are known when it is."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield what is true now; called by `generate_latest`."""
        yield from self._champions()
        runs = GaugeMetricFamily("idxflow_runs", "Runs in the ledger by outcome.", labels=("dataset", "outcome"))
        for dataset in self._site.champions.names:
            known = self._runs.setdefault(dataset, _Runs(self._site.store, dataset))
            for outcome, count in sorted(known.counted().items()):
                runs.add_metric((dataset, outcome), count)
        yield runs
        yield from self._drift()
        yield from self._log()
        yield from self._live()

    def _champions(self) -> Iterator[Metric]:
        labels = ("dataset",)
        version = GaugeMetricFamily("idxflow_champion_version", "Number of the champion that answers.", labels=labels)
        age = GaugeMetricFamily("idxflow_champion_age_seconds", "Seconds since it became champion.", labels=labels)
        accuracy = GaugeMetricFamily("idxflow_champion_test_accuracy", "Its share of the test split.", labels=labels)
        problem = GaugeMetricFamily(
            "idxflow_champion_problem", "1 if a newer champion could not be loaded.", labels=labels
        )
        for dataset in self._site.champions.names:
            followed = self._site.champions.followed(dataset)
            problem.add_metric((dataset,), 1 if followed.problem else 0)
            if followed.model and followed.since:
                version.add_metric((dataset,), followed.model.version.number)
                age.add_metric((dataset,), (datetime.now(UTC) - followed.since).total_seconds())
                accuracy.add_metric((dataset,), followed.model.version.test_accuracy)
        yield from (version, age, accuracy, problem)

    def _drift(self) -> Iterator[Metric]:
        """Yield what the last look at new images found, if one has found anything about the champion."""
        drifted = GaugeMetricFamily(
            "idxflow_drifted",
            "1 if new images have drifted from what the champion was trained on, 0 if they no longer do.",
            labels=("dataset", "version"),
        )
        for dataset in self._site.champions.names:
            model = self._site.champions.followed(dataset).model
            with suppress(IdxflowError, OSError):
                found = Drifts(self._site.store, dataset).last()
                if model and found and found.champion == model.version.number:
                    drifted.add_metric((dataset, str(found.champion)), found.is_drifted)
        yield drifted

    def _log(self) -> Iterator[Metric]:
        log = self._site.log
        if log is None:
            return
        rows = CounterMetricFamily("idxflow_log_rows", "Predictions written to the log.")
        rows.add_metric((), log.rows)
        dropped = CounterMetricFamily("idxflow_log_dropped", "Predictions not logged, because too many waited.")
        dropped.add_metric((), log.dropped)
        problem = GaugeMetricFamily("idxflow_log_problem", "1 if the log could not be written the last time.")
        problem.add_metric((), 1 if log.problem else 0)
        yield from (rows, dropped, problem)

    def _live(self) -> Iterator[Metric]:
        labels = ("dataset", "version")
        labelled = GaugeMetricFamily(
            "idxflow_live_labelled", "Logged answers of the champion with a label.", labels=labels
        )
        accuracy = GaugeMetricFamily("idxflow_live_accuracy", "The share of these that is right.", labels=labels)
        low = GaugeMetricFamily("idxflow_live_accuracy_low", "Of its Wilson interval, 95 %.", labels=labels)
        high = GaugeMetricFamily("idxflow_live_accuracy_high", "Of its Wilson interval, 95 %.", labels=labels)
        for dataset in self._site.champions.names:
            model = self._site.champions.followed(dataset).model
            found = self._accuracies.of(self._site.store, dataset, model.version) if model else None
            if found and found.accuracy is not None:
                of = (dataset, str(found.version))
                for family, value in (
                    (labelled, found.labelled),
                    (accuracy, found.accuracy),
                    (low, found.low),
                    (high, found.high),
                ):
                    family.add_metric(of, value)
        yield from (labelled, accuracy, low, high)


class _Accuracies:
    """The live accuracies, each computed anew only now and then, because that reads the whole log."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], tuple[float, Live | None]] = {}

    def of(self, store: Store, dataset: str, version: Version) -> Live | None:
        """Return that of a version; None if it cannot be read."""
        computed, found = self._found.get((dataset, version.number), (-_ACCURATE_SECONDS, None))
        if time.monotonic() - computed >= _ACCURATE_SECONDS:
            found = None
            with suppress(IdxflowError, OSError):
                found = live.of_champion(store, dataset, version)
            self._found[dataset, version.number] = time.monotonic(), found
        return found


class _Runs:
    """How the runs of a data set ended. Each record is read once, and only its state is kept."""

    def __init__(self, store: Store, dataset: str) -> None:
        self._store, self._dataset = store, dataset
        self._states: dict[str, str] = {}
        self._read = -_FRESH_SECONDS

    def counted(self) -> Counter[str]:
        """Return the number of runs by outcome; those that could be read, if the ledger cannot be read now."""
        if time.monotonic() - self._read >= _FRESH_SECONDS:
            ledger = Ledger(self._store, self._dataset)
            with suppress(IdxflowError, OSError):
                for name in ledger.names("runs"):
                    if name not in self._states:
                        self._states[name] = str(ledger.record("runs", name).get("state"))
                self._read = time.monotonic()
        return Counter(self._states.values())


class Measured:
    """The application `app`, with each request counted and timed."""

    def __init__(self, app: Application, metrics: Metrics) -> None:
        self._inner, self._metrics = app, metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._inner(scope, receive, send)
        began, status = time.perf_counter(), [500]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        try:
            await self._inner(scope, receive, sending)
        finally:
            # Set by the router. What no route answers, such as a refusal, has one name, however many paths are tried.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, status[0], time.perf_counter() - began)
        return None
