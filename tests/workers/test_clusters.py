"""Workers of a Dask cluster that exists: what is refused, and what happens when parts of it end."""

from __future__ import annotations

import gc
import logging
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from flows import diagnosis
from storage.errors import WorkersFailed
from storage.workers import dask_cluster, fingerprint
from storage.workers.address import (
    CERTIFICATES,
    PATIENCE_VARIABLE,
)
from storage.workers.opening import workers_for
from storage.workers.protocol import Workers
from tests.support import working
from tests.support.clusters import certificates, scheduler, worker
from tests.support.servers import ROOT
from tests.support.working import Item

AGAIN = "start some (docs/how-to/workers.md), then run again: what is done is reused"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler without workers."""
    with scheduler(tmp_path_factory.mktemp("scheduler")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of this project in another folder, as on another machine."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("expectations", "storage", "tasks", "tests/support"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "__init__.py", folder / "tests")
    return folder


@pytest.fixture
def own_checkout(checkout: Path, tmp_path: Path) -> Path:
    """One that a test may edit."""
    return shutil.copytree(checkout, tmp_path / "checkout")


@contextmanager
def opened(name: str) -> Iterator[Workers]:
    workers = workers_for(name)
    try:
        yield workers
    finally:
        workers.close()


def items(count: int, folder: Path | str = "") -> list[Item]:
    return [Item(number, str(folder)) for number in range(count)]


def squares(workers: Workers, count: int = 4) -> set[int]:
    """Have the workers compute something, and return the processes that did."""
    results = dict(workers.each(working.square, items(count), "squares"))
    assert {index: result.square for index, result in results.items()} == {n: n**2 for n in range(count)}
    return {result.process for result in results.values()}


def edit(module: Path, before: str, after: str) -> None:
    text = module.read_text(encoding="utf-8")
    assert before in text
    module.write_text(text.replace(before, after), encoding="utf-8")


def test_a_cluster_computes_and_stays(address: str, tmp_path: Path, checkout: Path) -> None:
    with worker(tmp_path, address, code=checkout) as process:
        for _ in range(2):
            with opened(address) as workers:
                assert squares(workers) == {process.pid}
                assert workers.count == 1
        assert process.poll() is None


def test_a_worker_that_comes_later_is_waited_for(address: str, tmp_path: Path) -> None:
    said: list[str] = []

    class StartOne(logging.Handler):
        """Starts a worker when the run says that it waits for one."""

        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            stack.enter_context(worker(tmp_path, address))

    handler, logger = StartOne(), logging.getLogger("storage.workers.dask_cluster")
    logger.setLevel(logging.INFO)
    with opened(address) as workers, ExitStack() as stack:
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)
        squares(workers)
    assert said == [f"waiting for workers at {address}"]


@pytest.mark.remedies("storage.workers.dask_cluster:check:2")
def test_nobody_waits_for_ever(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "1")
    with opened(address) as workers, pytest.raises(WorkersFailed, match=f"{address}; found none for 1 s; start some"):
        squares(workers)
    with worker(tmp_path, address), opened(address) as workers:
        squares(workers)


@pytest.mark.remedies("storage.workers.dask_cluster:_result")
def test_a_worker_of_another_version_computes_nothing(address: str, tmp_path: Path, own_checkout: Path) -> None:
    edit(own_checkout / "tests" / "support" / "working.py", "item.number**2", "item.number**3")
    edit(own_checkout / "storage" / "files.py", "import errno", "import errno  # here")
    with worker(tmp_path, address, code=own_checkout), opened(address) as workers:
        sentence = (
            r"expected the worker 127\.0\.0\.1:\d+ to have the code and the libraries of this run; found another "
            r"storage\.files, tests\.support\.working; install the same there, and start the worker again"
        )
        with pytest.raises(WorkersFailed, match=sentence):
            list(workers.each(working.refuse_odd, items(2, tmp_path), "squares"))
    assert not list(tmp_path.glob("began-*"))
    with worker(tmp_path, address, name="same"), opened(address) as workers:
        squares(workers)


@pytest.mark.remedies("flows.diagnosis:_workers", "flows.diagnosis:_workers:2")
def test_the_doctor_says_what_a_run_would_refuse(
    address: str, tmp_path: Path, own_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "1")
    found = diagnosis._workers(address, False)
    assert (found.verdict, found.remedy) == ("problem", AGAIN)
    assert f"expected workers at {address}; found none for 1 s" in found.found
    monkeypatch.delenv(PATIENCE_VARIABLE)
    edit(own_checkout / "tasks" / "decoding" / "pairs.py", "import time", "import sys, time")
    with worker(tmp_path, address, name="same"):
        assert diagnosis._workers(address, False) == diagnosis.Diagnosis(
            "ok", "workers", "1 worker with the code and the libraries of this machine"
        )
        with worker(tmp_path, address, code=own_checkout):
            found = diagnosis._workers(address, False)
    assert (found.verdict, found.remedy) == ("problem", "install the same there, and start the workers again")
    assert re.fullmatch(
        r"1 of 2 workers would be refused, first the worker 127\.0\.0\.1:\d+: another tasks\.decoding\.pairs",
        found.found,
    )


def test_a_worker_is_judged_by_the_code_that_it_has_loaded(address: str, tmp_path: Path, own_checkout: Path) -> None:
    """Its files are those of the run; but the functions in its memory are of before."""
    ours = (own_checkout / "tests" / "support" / "working.py").read_text(encoding="utf-8")
    edit(own_checkout / "tests" / "support" / "working.py", "item.number**2", "item.number**3")
    # As a worker that other people's code has used, or this project's before an update.
    preload = ("--preload", "tests.support.working")
    with worker(tmp_path, address, *preload, code=own_checkout), opened(address) as workers:
        (own_checkout / "tests" / "support" / "working.py").write_text(ours, encoding="utf-8")
        with pytest.raises(WorkersFailed, match=r"found tests\.support\.working loaded before it was edited; install"):
            squares(workers)


def test_a_worker_is_refused_as_soon_as_its_files_change(address: str, tmp_path: Path, own_checkout: Path) -> None:
    changed = own_checkout / "storage" / "formats" / "idx.py"
    before = changed.read_text(encoding="utf-8")
    with worker(tmp_path, address, code=own_checkout), opened(address) as workers:
        squares(workers)
        # The same again does not matter, whatever the time of the file.
        changed.write_text(before, encoding="utf-8")
        squares(workers)
        edit(changed, "import", "import  ")
        with pytest.raises(WorkersFailed, match=r"found storage\.formats\.idx loaded before it was edited"):
            squares(workers)
        changed.write_text(before, encoding="utf-8")
        # It may have loaded the other one meanwhile.
        with pytest.raises(WorkersFailed, match="loaded before it was edited"):
            squares(workers)


@pytest.mark.remedies("storage.workers.dask_cluster:fingerprint")
def test_a_run_whose_own_code_was_edited_meanwhile_stops(
    address: str, tmp_path: Path, own_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This process has loaded its code before that of the copy was written.
    monkeypatch.setattr(fingerprint, "ROOT", own_checkout)
    with (
        opened(address) as workers,
        pytest.raises(WorkersFailed, match=r"found changes in storage\..* and \d+ more modules since then; run again"),
    ):
        squares(workers)
    monkeypatch.undo()
    with worker(tmp_path, address), opened(address) as workers:
        squares(workers)


@pytest.mark.remedies("storage.workers.dask_cluster:_received")
def test_a_worker_without_idxflow_is_refused(address: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    # Found before an installed idxflow.
    (other / "storage.py").touch()
    sentence = "expected a worker that can load idxflow; found ModuleNotFoundError"
    with (
        worker(tmp_path, address, code=other),
        opened(address) as workers,
        pytest.raises(WorkersFailed, match=sentence),
    ):
        squares(workers)
    with worker(tmp_path, address, name="same"), opened(address) as workers:
        squares(workers)


@pytest.mark.remedies("storage.workers.dask_cluster:gone")
def test_a_scheduler_that_goes_ends_the_run(tmp_path: Path) -> None:
    with ExitStack() as stack:
        address, process = stack.enter_context(scheduler(tmp_path))
        stack.enter_context(worker(tmp_path, address))
        with opened(address) as workers:
            killer = threading.Thread(target=lambda: (Item(0, str(tmp_path)).wait_for("began-0"), process.kill()))
            killer.start()
            with pytest.raises(WorkersFailed, match=f"{address} until the end of the run; found that it has gone"):
                list(workers.each(working.work_until_stopped, items(2, tmp_path), "squares"))
            killer.join()
            with pytest.raises(WorkersFailed, match="found that it has gone"):
                squares(workers)
            # Its worker does not go on for nobody.
            Item(0, str(tmp_path)).wait_for("stopped-0")


@pytest.mark.remedies("storage.workers.dask_cluster:_unreachable:4")
def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # For longer than any test may take: where nobody listens, nobody is waited for.
    monkeypatch.setattr(dask_cluster, "_CONNECT_SECONDS", 3600.0)
    with opened("tcp://127.0.0.1:9") as workers:
        sentence = r"expected a Dask scheduler at tcp://127\.0\.0\.1:9; found that it cannot be reached \(.*refused"
        with pytest.raises(WorkersFailed, match=sentence):
            squares(workers)


@pytest.mark.remedies(
    "storage.workers.dask_cluster:_unreachable",
    "storage.workers.dask_cluster:_unreachable:2",
    "storage.workers.dask_cluster:_unreachable:3",
)
def test_only_who_has_a_certificate_can_use_a_protected_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, others = certificates(tmp_path / "ours"), certificates(tmp_path / "others")
    with ExitStack() as stack:
        address, _ = stack.enter_context(scheduler(tmp_path, *ours.options, protocol="tls"))
        stack.enter_context(worker(tmp_path, address, *ours.options))
        for name, variable in CERTIFICATES.items():
            monkeypatch.setenv(variable, str(getattr(others, name)))
        with opened(address) as workers, pytest.raises(WorkersFailed, match="of the same authority at tls://.*IDXFLOW"):
            squares(workers)
        # Its authority is known, but it does not know ours.
        monkeypatch.setenv(CERTIFICATES["ca"], str(ours.ca))
        with opened(address) as workers, pytest.raises(WorkersFailed, match="of the same authority at tls://.*IDXFLOW"):
            squares(workers)
        for name, variable in CERTIFICATES.items():
            monkeypatch.setenv(variable, str(getattr(ours, name)))
        with opened(address) as workers:
            squares(workers)
        # The same port without.
        sentence = r"without TLS at tcp://.*; found one that requires certificates; give its address as tls://"
        with opened(address.replace("tls", "tcp")) as workers, pytest.raises(WorkersFailed, match=sentence):
            squares(workers)
        # And the other way round.
        plain, _ = stack.enter_context(scheduler(tmp_path))
        sentence = r"with TLS at tls://.*; found one that does not use it; start it with certificates"
        with opened(plain.replace("tcp", "tls")) as workers, pytest.raises(WorkersFailed, match=sentence):
            squares(workers)
    gc.collect()
