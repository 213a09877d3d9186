"""Several archives of a role: who fetches them."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from storage.datasets.catalog import ArchiveSpec, Dataset
from storage.formats import idx
from storage.store import Store
from storage.workers.current import using
from storage.workers.here import Here
from tasks.fetch import fetch
from tests.support.faultserver import FaultServer, good

T = TypeVar("T")
R = TypeVar("R")
BODIES = [gzip.compress(idx.encode(np.full((2, 3, 3), value, np.uint8)), mtime=0) for value in (1, 2)]


class Noting(Here):
    """Workers that say what they were asked to do."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def each(self, function: Callable[[T], R], items: Sequence[T], doing: str) -> Iterator[tuple[int, R]]:
        self.asked.append(doing)
        yield from super().each(function, items, doing)


@pytest.fixture
def several(dataset: Dataset) -> Iterator[Dataset]:
    """Two archives of training images, each on a mirror."""
    with FaultServer({f"/{number}.gz": good(body) for number, body in enumerate(BODIES)}) as mirror:
        yield replace(dataset, archives=tuple(specs(mirror)))


def specs(mirror: FaultServer) -> list[ArchiveSpec]:
    return [
        ArchiveSpec(
            "train-images",
            f"{number}.gz",
            sha256=hashlib.sha256(body).hexdigest(),
            mirrors=(mirror.url(f"/{number}.gz"),),
            number=number,
        )
        for number, body in enumerate(BODIES)
    ]


@pytest.mark.parametrize(("given", "asked"), [(False, ["fetch train-images"]), (True, [])])
def test_workers_fetch_from_mirrors_but_not_from_what_is_given_for_the_run(
    store: Store, several: Dataset, tmp_path: Path, given: bool, asked: list[str]
):
    workers = Noting()
    for number, body in enumerate(BODIES):
        (tmp_path / f"{number}.gz").write_bytes(body)
    with using(workers):
        fetched = fetch.fn(store, several, several.archives[0], str(tmp_path) if given else None)
    assert fetched.record.parts == 2
    assert workers.asked == asked


def test_workers_do_not_fetch_from_the_folder_of_a_manifest(store: Store, several: Dataset, tmp_path: Path):
    workers = Noting()
    for number, body in enumerate(BODIES):
        (tmp_path / f"{number}.gz").write_bytes(body)
    with using(workers):
        fetch.fn(store, replace(several, source=tmp_path), several.archives[0])
    assert workers.asked == []
