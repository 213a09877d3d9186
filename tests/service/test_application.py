"""The Prefect server that idxflow starts, where it differs from Prefect's own."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flows.service.application import look_less_often


def test_an_idle_server_looks_for_due_work_less_often_than_prefects_own(monkeypatch: pytest.MonkeyPatch):
    # Seconds, in all processes that share the tests.
    from docket import Docket
    from prefect.server.api import background_workers

    def intervals() -> set[timedelta]:
        worker = background_workers.Worker(Docket("tests", url="memory://"))
        return {worker.minimum_check_interval, worker.scheduling_resolution}

    monkeypatch.setattr(background_workers, "Worker", background_workers.Worker)
    assert intervals() == {timedelta(seconds=0.25)}
    look_less_often()
    assert intervals() == {timedelta(seconds=2)}
