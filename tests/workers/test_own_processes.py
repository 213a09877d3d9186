"""`--workers N`: processes of this run that compute items, each of which may die."""

from __future__ import annotations

import contextvars
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from storage.errors import DataRefused, WorkersFailed
from storage.runtime import cancellation
from storage.runtime.progress import Progress, listening
from storage.workers import dask_cluster, dask_own, dask_remote, dask_worker
from storage.workers.current import current, using
from storage.workers.here import Here
from storage.workers.opening import workers_for
from storage.workers.protocol import Survey, Workers
from tests.support import working
from tests.support.clusters import fork_own_workers, wait_until
from tests.support.servers import ROOT
from tests.support.working import Item


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    """Those of the runs that are ended are not (`RUN`)."""
    with pytest.MonkeyPatch.context() as patch:
        fork_own_workers(patch)
        yield


@pytest.fixture(scope="module")
def two(forked: None) -> Iterator[Workers]:
    with closing(workers_for("2")) as workers:
        # Both are there, so that neither computes everything.
        assert workers.survey(("tests.support.working",)) == Survey(2, {})
        yield workers


@pytest.fixture(params=["here", "two"])
def any_workers(request: pytest.FixtureRequest) -> Workers:
    return Here() if request.param == "here" else request.getfixturevalue("two")


def items(count: int, folder: Path | str = "") -> list[Item]:
    return [Item(number, str(folder)) for number in range(count)]


def marks(folder: Path, kind: str) -> set[str]:
    return {path.name for path in folder.glob(f"{kind}-*")}


class Counting(Sequence[Item]):
    """Many items, of which is known how many were asked for."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if index >= self.count:
            raise IndexError
        self.asked = max(self.asked, index + 1)
        return Item(index)


def test_each_item_is_computed_once_by_whoever_is_free(two: Workers) -> None:
    results = dict(two.each(working.square, items(600), "squares"))
    assert {index: result.square for index, result in results.items()} == {n: n**2 for n in range(600)}
    processes = {result.process for result in results.values()}
    assert len(processes) == two.count == 2
    assert os.getpid() not in processes


def test_results_come_when_they_are_there(two: Workers, tmp_path: Path) -> None:
    order = []
    for index, _ in two.each(working.square_in_turn, items(2, tmp_path), "squares"):
        order.append(index)
        (tmp_path / f"got-{index}").touch()
    assert order == [1, 0]


def test_this_process_computes_in_order() -> None:
    assert isinstance(current(), Here)
    results = list(current().each(working.square, items(3), "squares"))
    assert [index for index, _ in results] == [0, 1, 2]
    assert {result.process for _, result in results} == {os.getpid()}


def test_a_single_item_needs_nobody_else(two: Workers) -> None:
    ((index, result),) = two.each(working.square, items(1), "squares")
    assert (index, result.process) == (0, os.getpid())
    assert not list(two.each(working.square, [], "squares"))


def test_the_threads_of_a_run_have_its_workers(two: Workers) -> None:
    with using(two):
        assert contextvars.copy_context().run(current) is two
    assert isinstance(current(), Here)


def test_few_of_many_items_are_on_their_way(two: Workers) -> None:
    many = Counting(6_000)
    results = two.each(working.square, many, "squares")
    for taken in range(1, 41):
        next(results)
        assert many.asked <= taken + 2 * two.count
    results.close()


def test_what_is_given_up_holds_nobody_up(two: Workers) -> None:
    # Each time at another moment.
    for taken in range(20):
        results = two.each(working.square, items(100), "squares")
        for _ in range(1 + taken % 7):
            next(results)
        results.close()
        assert len(list(two.each(working.square, items(4), "squares"))) == 4


def test_progress_counts_the_items(any_workers: Workers) -> None:
    told: list[Progress] = []
    with listening(told.append):
        assert len(list(any_workers.each(working.square, items(3), "squares of train"))) == 3
        assert [(step.name, step.done, step.total, step.note) for step in told[:4]] == [
            ("squares of train", done, 3, f"{done} of 3 parts") for done in range(4)
        ]
        told.clear()
        list(any_workers.each(working.square, items(1), "squares of test"))
    assert not told


def test_the_error_of_an_item_comes_when_all_that_began_have_ended(any_workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="expected an even number; found 1; take another"):
        list(any_workers.each(working.refuse_odd, items(100, tmp_path), "numbers"))
    began, ended = marks(tmp_path, "began"), marks(tmp_path, "ended")
    assert 2 <= len(began) < 10
    assert {name.replace("ended", "began") for name in ended} == {name for name in began if int(name[6:]) % 2 == 0}


def test_progress_ends_with_an_error(any_workers: Workers, tmp_path: Path) -> None:
    told: list[Progress] = []
    with listening(told.append), pytest.raises(DataRefused):
        list(any_workers.each(working.refuse_odd, items(4, tmp_path), "numbers"))
    assert told[-1].done == told[-1].total


def test_an_unexpected_error_tells_where_it_was_raised(two: Workers) -> None:
    with pytest.raises(LookupError, match="a bug with 0") as caught:
        list(two.each(working.break_down, items(2), "numbers"))
    assert "in break_down" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("function", [working.raise_what_cannot_travel, working.return_what_cannot_travel])
def test_what_cannot_travel_is_an_error_that_can(two: Workers, function: Callable[[Item], object]) -> None:
    with pytest.raises((RuntimeError, TypeError), match="a bug with 0|cannot pickle"):
        list(two.each(function, items(2), "numbers"))


def test_only_functions_that_workers_can_import_are_called(two: Workers) -> None:
    with pytest.raises(ValueError, match="expected a function of a module"):
        list(two.each(lambda item: item, items(2), "numbers"))


def test_what_is_computed_stops_with_the_run(any_workers: Workers, tmp_path: Path) -> None:
    ended: list[BaseException] = []

    def run() -> None:
        try:
            list(any_workers.each(working.work_until_stopped, items(6, tmp_path), "numbers"))
        except BaseException as error:
            ended.append(error)

    with cancellation.stoppable() as stop:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
        thread.start()
        wait_until(lambda: len(marks(tmp_path, "began")) >= any_workers.count)
        stop()
        thread.join()
    assert [type(error) for error in ended] == [cancellation.Cancelled]
    began = {name.replace("began", "stopped") for name in marks(tmp_path, "began")}
    wait_until(lambda: marks(tmp_path, "stopped") == began)
    # The rest never begins.
    list(any_workers.each(working.square, items(4), "squares"))
    assert len(marks(tmp_path, "began")) == any_workers.count


def test_lines_of_workers_reach_the_log_at_once_and_once(two: Workers, tmp_path: Path) -> None:
    lines: list[logging.LogRecord] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record)
            if "begins" in record.getMessage():
                (tmp_path / f"seen-{record.getMessage()[-1]}").touch()

    handler, logger = Note(), logging.getLogger("tasks")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        assert len(list(two.each(working.wait_and_log, items(2, tmp_path), "lines"))) == 2
    finally:
        logger.removeHandler(handler)
    words = ("begins", "in a thread", "is warned", "ends")
    said = sorted(record.getMessage().partition(": ")[2] for record in lines)
    assert said == sorted(f"{word} {number}" for word in words for number in range(2))
    assert {record.getMessage().partition(": ")[0] for record in lines} == {"worker 1", "worker 2"}
    assert {record.name for record in lines} == {"tasks.working"}
    assert all("LookupError: a cause" in record.exc_text for record in lines if "ends" in record.getMessage())


@pytest.mark.remedies("storage.workers.dask_cluster:_answer")
def test_an_item_that_kills_its_workers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "MOST_DEATHS", 1)
    with closing(workers_for("3")) as workers:
        sentence = r"to finish item 0 \(part 1 of 3 of `squares`\); found that 1 ended while they computed it, perhaps"
        with pytest.raises(WorkersFailed, match=sentence):
            list(workers.each(working.kill_for_item_0, items(3, tmp_path), "squares"))
        # With more memory, say, it would not.
        (tmp_path / "enough").touch()
        assert len(list(workers.each(working.kill_for_item_0, items(3, tmp_path), "squares"))) == 3


@pytest.mark.remedies("storage.workers.dask_cluster:check")
def test_a_death_costs_one_worker_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(workers_for("2")) as workers:
        results = dict(workers.each(working.square_after_a_death, items(12, tmp_path), "squares"))
        assert {index: result.square for index, result in results.items()} == {n: n**2 for n in range(12)}
        sentence = r"signal 9, while they had item 0 \(part 1 of 2 of `squares`\) or item 1 .*; run again with fewer"
        with pytest.raises(WorkersFailed, match=sentence):
            list(workers.each(working.kill_for_item_0, items(2, tmp_path), "squares"))
    said = [record.getMessage() for record in caplog.records if record.name.startswith("storage")]
    # On a busy machine, there may be none for a while.
    said = [line for line in said if "waiting" not in line]
    assert sorted(said) == ["worker 1 was ended by signal 9", "worker 2 was ended by signal 9"]
    (tmp_path / "enough").touch()
    with closing(workers_for("2")) as workers:
        assert len(list(workers.each(working.kill_for_item_0, items(2, tmp_path), "squares"))) == 2


def test_a_process_stops_what_it_computes_before_it_ends_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def stop() -> None:
        # As what is computed does at its next check.
        done.append("stopped")
        del dask_remote._calls[stop]

    monkeypatch.setattr(dask_worker, "GRACE_SECONDS", 3600.0)
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO()))
    monkeypatch.setattr(os, "_exit", lambda code: done.append(f"ended with {code}"))
    monkeypatch.setitem(dask_remote._calls, stop, lambda: True)
    dask_worker._end_with_run()
    assert done == ["stopped", "ended with 0"]


RUN = """
import sys, time
from storage.workers.opening import workers_for
from tests.support import working
workers = workers_for("2")
items = [working.Item(number, sys.argv[1]) for number in range(2)]
list(workers.each(working.work_until_stopped, items, "numbers"))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_run_that_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    scratch, marked = tmp_path / "scratch", tmp_path / "marks"
    scratch.mkdir()
    marked.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, marked],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(marks(marked, "began")) == 2)
    threads = Path(f"/proc/{run.pid}/task").glob("*/children")
    children = [int(pid) for thread in threads for pid in thread.read_text().split()]
    assert not list(scratch.iterdir())
    run.send_signal(number)
    run.wait()
    wait_until(lambda: not any(alive(pid) for pid in children))
    assert not list(scratch.iterdir())
    assert len(children) == 2


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_process_that_does_not_react_is_killed_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not forks, which are children of another process.
    monkeypatch.setattr(dask_own, "subprocess", subprocess)
    with closing(workers_for("2")) as workers:
        # Both are there, so that each computes something.
        assert workers.survey(("tests.support.working",)) == Survey(2, {})
        found = {result.process for _, result in workers.each(working.square, items(20), "squares")}
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
    assert found
    assert not any(Path(f"/proc/{pid}").exists() for pid in found)


LAZY = """
import sys
from storage.workers.opening import workers_for
from tests.support import working
workers = workers_for("4")
assert len(list(workers.each(working.square, [working.Item(1)], "squares"))) == 1 and workers.count == 4
workers.close()
print([name for name in ("distributed", "dask", "tornado") if name in sys.modules])
"""


def test_processes_that_were_begun_early_have_imported_what_they_will_call() -> None:
    module = working.__name__
    with closing(workers_for("2")) as workers:
        workers.begin((module,))
        session = workers.session()
        wait_until(lambda: len(session.threads) == 2)
        imported = f"{module!r} in __import__({dask_remote.__name__!r}, fromlist=['load'])._imported"
        wait_until(lambda: all(session.done(session.ask_all(imported)).values()))


def test_processes_that_were_begun_early_end_with_a_run_that_needs_none() -> None:
    workers = workers_for("2")
    before = {thread.name for thread in threading.enumerate()}
    workers.begin(("an.unknown.module",))
    workers.close()
    assert {thread.name for thread in threading.enumerate()} <= before
    assert workers._session is None


def test_nothing_of_dask_is_imported_for_a_single_item() -> None:
    ended = subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
