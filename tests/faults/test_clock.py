"""Runs under a clock that is wrong: years ahead, years back, and from before there can be archives."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

import pytest

from flows import run
from storage.store import Store
from storage.verify import verify
from tests.conftest import TinyFactory
from tests.support.runs import run_without_prefect


def at(monkeypatch: pytest.MonkeyPatch, year: int) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(year, 5, 1, 12, tzinfo=tz)

    monkeypatch.setattr(run, "datetime", Clock)


def test_a_clock_from_before_1980_is_refused_before_anything_is_made(
    store: Store, tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch
):
    at(monkeypatch, 1970)
    outcome = run_without_prefect(store, dataset_file=str(tiny().manifest))
    assert outcome["error"]["exit_code"] == 2
    assert "expected a clock that is right" in outcome["sentence"]
    assert "found 1970-05-01 12:00 UTC" in outcome["sentence"]
    assert not store.datasets()


def test_runs_of_other_years_keep_their_order_and_a_whole_store(
    store: Store, tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch
):
    manifest = str(tiny().manifest)
    states = []
    for seed, year in enumerate((2001, 2051, datetime.now(UTC).year)):
        at(monkeypatch, year)
        states.append(run_without_prefect(store, dataset_file=manifest, seed=seed + 1)["version"])
    assert states == [1, 2, 3]
    assert not verify(store, "tiny").damage
