"""Every test of fetching runs without the proxies of this machine."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from storage.datasets.catalog import Dataset
from tests.conftest import TinyFactory


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def dataset(tiny: TinyFactory) -> Dataset:
    """A data set whose manifest names no source."""
    return replace(tiny(), source=None)
