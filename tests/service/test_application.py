"""The Prefect server that idxflow starts, where it differs from Prefect's own."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flows.service.application import compress_quickly, look_less_often, write_settings_once


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


def test_answers_are_compressed_with_the_quickest_level(monkeypatch: pytest.MonkeyPatch):
    from prefect.server.api import server
    from starlette.responses import PlainTextResponse
    from starlette.testclient import TestClient

    def level() -> int:
        """The byte of gzip that tells it: 2 for the highest, 4 for the quickest (RFC 1952, XFL)."""
        client = TestClient(server.GZipMiddleware(PlainTextResponse("7" * 2000)))
        with client.stream("GET", "/", headers={"Accept-Encoding": "gzip"}) as answer:
            return next(answer.iter_raw())[8]

    monkeypatch.setattr(server, "GZipMiddleware", server.GZipMiddleware)
    assert level() == 2
    compress_quickly()
    assert level() == 4


def test_the_server_writes_its_settings_as_variables_once(monkeypatch: pytest.MonkeyPatch):
    from prefect.settings import PREFECT_SERVER_API_PORT, Settings, get_current_settings, temporary_settings

    calls = []
    write = Settings.to_environment_variables

    def counted(settings: Settings, **how: bool) -> dict[str, str]:
        calls.append(how)
        return write(settings, **how)

    expected = get_current_settings().to_environment_variables(include_aliases=True)
    monkeypatch.setattr(Settings, "to_environment_variables", counted)
    write_settings_once()
    assert {get_current_settings().hash_key() for _ in range(3)} == {get_current_settings().hash_key()}
    assert len(calls) == 1
    # What one caller does with them, the next one does not see.
    get_current_settings().to_environment_variables(include_aliases=True).clear()
    assert get_current_settings().to_environment_variables(include_aliases=True) == expected
    assert len(calls) == 2
    with temporary_settings({PREFECT_SERVER_API_PORT: 4321}):
        assert get_current_settings().to_environment_variables()["PREFECT_SERVER_API_PORT"] == "4321"
    assert get_current_settings().to_environment_variables(include_aliases=True) == expected
