"""A whole training as one item: on a worker elsewhere if there is one, otherwise where the run is."""

from __future__ import annotations

import contextvars
import dataclasses
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from storage.errors import WorkersFailed
from storage.opening import open_store
from storage.records import Done, TrainedModel
from storage.runtime import cancellation
from storage.store import Store
from storage.workers.current import using
from storage.workers.here import Here
from storage.workers.opening import workers_for
from storage.workers.protocol import Workers
from tasks.ui.progress import Progress, listening
from tests.conftest import TinyFactory
from tests.support import clusters, held_trainings, working
from tests.support.clusters import wait_until
from tests.support.models import trained
from tests.support.object_servers import ObjectServer

SETTINGS = {"hidden": (8,), "epochs": 5}


@pytest.fixture
def shared(object_storage: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """A store that all machines reach, as this one sees it."""
    for name, value in {**object_storage.environment, "IDXFLOW_CACHE": str(tmp_path / "here")}.items():
        monkeypatch.setenv(name, value)
    store = open_store(object_storage.fresh().address)
    store.prepare()
    return store


class Machines:
    """A cluster whose workers have a folder each, and hold their trainings (`held_trainings`)."""

    def __init__(self, stack: ExitStack, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stack, self._folder, self._patch = stack, folder, monkeypatch
        monkeypatch.setenv(held_trainings.FOLDER, str(folder))
        self.address, _ = stack.enter_context(clusters.scheduler(folder))
        self.workers: Workers = workers_for(self.address)
        stack.callback(self.workers.close)

    def start(self, name: str) -> Callable[[], None]:
        """Start a worker; return what kills it."""
        folder = self._folder / name
        folder.mkdir()
        self._patch.setenv("IDXFLOW_CACHE", str(folder))
        preload = ("--preload", held_trainings.__name__)
        return self._stack.enter_context(clusters.worker(folder, self.address, *preload, name=name)).kill

    def forget(self, mark: str) -> None:
        (self._folder / mark).unlink()

    def release(self) -> None:
        (self._folder / "released").touch()

    def left(self, mark: str) -> bool:
        """Return whether a training has left a mark: `held` or `stopped`."""
        return (self._folder / mark).exists()


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    with ExitStack() as stack:
        yield Machines(stack, tmp_path, monkeypatch)


class Watched:
    """A training in a thread, as the run of a person sees it."""

    def __init__(self, train: Callable[[], Done[TrainedModel]], workers: Workers) -> None:
        self.told: list[float] = []
        self.result: Done[TrainedModel] | None = None
        self.ended: BaseException | None = None

        def run() -> None:
            try:
                with using(workers), listening(self._tell):
                    self.result = train()
            except BaseException as error:
                self.ended = error

        with ExitStack() as stack:
            self.stop = stack.enter_context(cancellation.stoppable())
            self._thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
            self._thread.start()

    def _tell(self, step: Progress) -> None:
        if step.name == "train":
            self.told.append(step.done)

    def wait_until(self, true: Callable[[], object]) -> None:
        wait_until(lambda: true() or self.ended)
        assert self.ended is None

    def wait(self) -> Done[TrainedModel]:
        self._thread.join()
        if self.ended:
            raise self.ended
        assert self.result
        return self.result


def test_a_training_goes_to_a_worker_resumes_there_and_goes_to_another_one_when_that_dies(
    shared: Store, tiny: TinyFactory, machines: Machines, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks")
    dataset = tiny()
    kill = machines.start("first")
    # Stopped with its run.
    stopped = Watched(lambda: trained(shared, dataset, **SETTINGS), machines.workers)
    stopped.wait_until(
        lambda: (
            machines.left("held")
            and stopped.told
            and any(re.match("worker .*: tiny: epoch 1 of 5: loss", line) for line in caplog.messages)
        )
    )
    stopped.stop()
    with pytest.raises(cancellation.Cancelled):
        stopped.wait()
    wait_until(lambda: machines.left("stopped"))
    # Again on the same machine, which has the checkpoint; then there is nothing to send.
    with using(machines.workers):
        resumed, reused = (trained(shared, dataset, **SETTINGS) for _ in range(2))
    assert (resumed.record.resumed_after, resumed.step.reused, reused.step.reused) == (held_trainings.HELD, False, True)
    # On a machine that dies meanwhile.
    machines.forget("held")
    watched = Watched(lambda: trained(shared, dataset, seed=2, **SETTINGS), machines.workers)
    watched.wait_until(lambda: machines.left("held"))
    machines.start("second")
    kill()
    machines.release()
    moved = watched.wait()
    assert (moved.record.resumed_after, moved.step.reused) == (0, False)
    assert watched.told[-1] == SETTINGS["epochs"]
    # The same as without workers.
    for seed, result in enumerate((resumed, moved), 1):
        here = trained(Store(tmp_path / "own"), dataset, seed=seed, **SETTINGS)
        assert result.record.weights_digest == here.record.weights_digest
        assert result.record.weights.read_bytes() == here.record.weights.read_bytes()


def test_processes_of_the_run_leave_a_training_where_it_is() -> None:
    workers = workers_for("2")
    assert not workers.elsewhere
    assert workers.one(working.square, working.Item(3)) == working.Result(3, 9, os.getpid())


class Apart(Here):
    """Workers that have another folder under the path of the store."""

    elsewhere = True

    def one(self, function: Callable[[Any], Any], item: Any) -> Any:
        other = Store(item.store.root.with_name("on-the-worker"))
        return function(dataclasses.replace(item, store=other))


@pytest.mark.remedies("tasks.train:another_folder")
def test_a_worker_with_another_folder_as_the_store_is_found_out(store: Store, tiny: TinyFactory) -> None:
    with using(Apart()), pytest.raises(WorkersFailed, match="use a store that all machines reach"):
        trained(store, tiny(), epochs=1)
