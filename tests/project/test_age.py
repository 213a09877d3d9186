"""What a run and the commands read of the past, counted: as much on a store of many runs as on one of few."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from flows.commands.cli import run_command
from storage.registry import NO_RUN, Registry
from storage.store import Store
from tests.conftest import TinyFactory
from tests.support.runs import whole_run
from tests.support.servers import free_port
from tests.support.stores import DATASET, decide, retrain

FEW, MANY = 40, 100
SPARE = 4
"""Files that may be opened more where there is more: the indexes, for one."""


class _Opened:
    """Counts how often each file below a folder is opened to be read."""

    root: Path | None = None
    paths: ClassVar[Counter[str]] = Counter()

    @classmethod
    def note(cls, event: str, values: tuple) -> None:
        if event != "open" or not cls.root or not isinstance(values[0], str):
            return
        path, _, flags = values
        if path.startswith(f"{cls.root}/") and flags & os.O_ACCMODE == os.O_RDONLY:
            cls.paths[path] += 1


sys.addaudithook(_Opened.note)


@contextmanager
def opened(store: Store) -> Iterator[Callable[[], int]]:
    """Count the files of a store that are opened while the block runs, each once."""
    _Opened.root, _Opened.paths = store.root, Counter()
    try:
        yield lambda: len({path for path in _Opened.paths if path.endswith((".json", ".index"))})
    finally:
        _Opened.root = None


def grown(store: Store, runs: range) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        # Nothing is to survive a power loss here.
        patch.setattr(os, "fsync", lambda _: None)
        for number in runs:
            retrain(store, number, promoted=number == 1)
        registry = Registry(store, DATASET)
        registry.decisions()
        registry.made_of(set())
        registry.keep_index()
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """A store of few runs and one of many, with the index that runs leave."""
    folder = tmp_path_factory.mktemp("age")
    few = grown(Store(folder / "few"), range(1, FEW + 1))
    return few, grown(Store(shutil.copytree(few.root, folder / "many")), range(FEW + 1, MANY + 1))


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["runs", "list", DATASET],
        ["registry", "history", DATASET],
        ["registry", "show", DATASET],
        ["registry", "show", DATASET, "17"],
        ["registry", "at", DATASET, "2999-01-01"],
        ["gc", "--dry-run"],
    ],
    ids=" ".join,
)
def test_a_command_reads_no_more_of_a_long_past(
    stores: tuple[Store, Store], command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    counted = []
    for store in stores:
        with opened(store) as count:
            # The entries are those of no real run: `show` says so.
            assert run_command([*command, "--store", str(store.root)]) in (0, 1)
            counted.append(count())
    assert counted[0] <= counted[1] <= counted[0] + SPARE, capsys.readouterr()
    assert counted[0]


def test_a_run_reads_no_more_of_a_long_past(stores: tuple[Store, Store], tiny: TinyFactory):
    manifest, counted = tiny().manifest, []
    for store in stores:
        runs = []
        # Another model, and the same again.
        for _ in range(2):
            with opened(store) as count:
                runs.append((whole_run(store, manifest).state, count()))
        counted.append(runs)
    few, many = counted
    assert [state for state, _ in few] == [state for state, _ in many]
    assert few[-1][0] == "unchanged"
    for (_, of_few), (_, of_many) in zip(few, many, strict=True):
        assert of_many <= of_few + SPARE


READING = [
    *(["status"], ["runs", "list", DATASET], ["registry", "history", DATASET], ["registry", "show", DATASET]),
    *(["registry", "at", DATASET, "2999-01-01"], ["gc", "--dry-run"]),
]


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_command_reads_no_record_of_the_ledger_twice(
    store: Store, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    for number in (1, 2, 3):
        retrain(store, number, promoted=number < 3)
    assert set(read_by(store, command).values()) == {1}, capsys.readouterr()


def test_a_run_and_its_report_read_no_record_of_the_ledger_twice(store: Store, tiny: TinyFactory):
    """A first run, another model and the first again, with a decision by hand after each; then a report made again."""
    manifest, registry, jobs = tiny().manifest, Registry(store, DATASET), []
    for epochs in (4, 3, 4):
        with opened(store):
            jobs.append(whole_run(store, manifest, epochs=epochs))
            assert set(of_the_ledger().values()) <= {1}
        with registry.deciding():
            decide(registry, "forced", registry.champion().number, NO_RUN)
    assert jobs[-1].state == "unchanged"
    shutil.rmtree(jobs[1].report.entry.folder)
    assert set(read_by(store, ["report", DATASET, jobs[1].record.id, "--json"]).values()) == {1}


def read_by(store: Store, command: list[str]) -> dict[str, int]:
    with opened(store):
        assert run_command([*command, "--store", str(store.root)]) in (0, 1)
        return of_the_ledger()


def of_the_ledger() -> dict[str, int]:
    """How often each record of the ledger was opened to be read."""
    records = re.compile(r"/ledger/(runs|decisions)(/[^/]+\.json|\.index)$")
    return {path: count for path, count in _Opened.paths.items() if records.search(path)}


def test_a_store_without_an_index_gets_one_by_the_next_run_which_leaves_no_lock_of_a_step(
    stores: tuple[Store, Store], tiny: TinyFactory, tmp_path: Path
):
    store = Store(shutil.copytree(stores[0].root, tmp_path / "store"))
    files = [index.file for index in Registry(store, DATASET).indexes]
    for file in files:
        file.unlink()
    whole_run(store, tiny().manifest)
    assert all(file.is_file() for file in files)
    locks = {path.name for path in (store.dataset(DATASET) / "locks").iterdir()}
    assert locks <= {"in-use.lock", "inbox.lock", "ledger.lock"}
