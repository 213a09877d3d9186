"""A site with the champion of a small data set, for the tests of one file."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from flows.web.served import Site
from storage.store import Store
from tests.support.blobs import store_with_champion
from tests.support.sites import served


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_with_champion(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[httpx.Client]:
    with served(Site(store)) as client:
        yield client
