"""What several files share: the store of a run, and copies of it to damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.store import Store
from tests.conftest import write_tiny
from tests.support.runs import run_with_prefect
from tests.support.tampering import writable_copy


@pytest.fixture(scope="module")
def first(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest and the store of one run."""
    folder = tmp_path_factory.mktemp("first")
    assert run_with_prefect(write_tiny(folder).manifest, folder / "store")["state"] == "promoted"
    return folder


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Store:
    """A copy of that store, as somebody has it who tampers with it: writable."""
    return writable_copy(first / "store", tmp_path)
