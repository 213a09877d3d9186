"""A run that is ended stops at once, whatever its threads wait for: others, a server, the next try, a long file."""

from __future__ import annotations

import contextvars
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import pytest

from storage.datasets.catalog import ROLES, Dataset
from storage.files import locked
from storage.runtime import cancellation
from storage.store import Store
from tasks.fetch import find_or_fetch
from tasks.sources.download import DownloadPolicy
from tasks.sources.partial_file import PartialFile
from tests.conftest import TinyFactory
from tests.fetch.helpers import BODY, PATH, SPEC, get, publish
from tests.support.commands import Command, idxflow
from tests.support.faultserver import Exchange, FaultServer, in_turn, ranged, stall, status, trickle
from tests.support.zips import ZIP
from tests.support.zips import publish as publish_zip

pytestmark = pytest.mark.long

SECONDS = 240
"""Only what hangs takes so long."""
LONGER = 10 * SECONDS
"""What they wait for if nothing ends them."""
PATIENT = DownloadPolicy(read_seconds=LONGER, backoff_seconds=LONGER, rate_window_seconds=LONGER)


def hush(exchange: Exchange) -> None:
    """Never answers."""
    exchange.stopping.wait(LONGER)


def ended(work: Callable[[], object], started: Callable[[], bool]) -> list[BaseException]:
    """End a run whose `work` is done by another thread, once that has `started`; return what the thread raised."""
    raised: list[BaseException] = []

    def carry_out() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    with suppress(KeyboardInterrupt), cancellation.cancellable():
        # As Prefect starts its threads.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(carry_out,), daemon=True)
        thread.start()
        until(started)
        raise KeyboardInterrupt
    thread.join(SECONDS)
    assert not thread.is_alive()
    return raised


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_thread_that_waits_for_a_lock_stops(tmp_path: Path):
    waits = threading.Event()

    def work() -> None:
        with locked(tmp_path / "lock", waits.set):
            pass

    with locked(tmp_path / "lock"):
        assert [type(error) for error in ended(work, waits.is_set)] == [cancellation.Cancelled]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(hush, id="a server that does not answer"),
        pytest.param(stall(BODY, after=100), id="a body that stops coming"),
        pytest.param(trickle(BODY, seconds=0.05), id="a body that comes slowly"),
        pytest.param(status(503), id="the next try"),
    ],
)
def test_a_thread_that_waits_for_the_network_stops_and_asks_no_other_server(
    store: Store, tiny: TinyFactory, answer: Callable[[Exchange], None]
):
    with FaultServer({PATH: answer, "/mirror": hush}) as server:
        urls, spec = (server.url(PATH), server.url("/mirror")), replace(SPEC, payload_sha256="")
        dataset: Dataset = tiny()
        raised = ended(
            lambda: get(store, dataset, *urls, spec=spec, policy=PATIENT), lambda: bool(server.request_count(PATH))
        )
        assert [type(error) for error in raised] == [cancellation.Cancelled]
        assert (server.request_count(PATH), server.request_count("/mirror")) == (1, 0)


def test_threads_that_wait_for_one_download_stop_with_it(store: Store, tmp_path: Path):
    """One downloads the ZIP file, the others wait for it; none of them tries again."""
    zipped = publish_zip(tmp_path)
    with FaultServer({f"/{ZIP}": stall(zipped.data, after=100)}) as server:
        dataset = publish_zip(tmp_path, [server.url(f"/{ZIP}")]).dataset
        waiting = threading.Barrier(4, timeout=SECONDS)

        def one(role: str) -> object:
            waiting.wait()
            return find_or_fetch(store, dataset, dataset.archive(role), None, PATIENT)

        def four() -> None:
            with ThreadPoolExecutor(4) as threads:
                calls = [threads.submit(contextvars.copy_context().run, one, role) for role in ROLES]
            assert {type(call.exception()) for call in calls} == {cancellation.Cancelled}

        assert ended(four, lambda: bool(server.requests)) == []
        assert len(server.requests) == 1


def test_a_thread_that_copies_a_file_stops(tmp_path: Path):
    part, blocks = PartialFile(tmp_path, "endless"), repeat(b"block")

    def fill() -> object:
        return part.fill(blocks, limit=1 << 60, total=None)

    assert [type(error) for error in ended(fill, lambda: part.size > 0)] == [cancellation.Cancelled]


def test_what_a_run_leaves_by_itself_stops_nothing():
    with suppress(ValueError), cancellation.cancellable():
        work = contextvars.copy_context()
        raise ValueError
    work.run(cancellation.check)
    work.run(cancellation.sleep, 0.0)


@pytest.fixture
def environment(server: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {**server, "IDXFLOW_STORE": str(tmp_path / "store")}


def interrupted(environment: dict[str, str], command: list[str], started: Callable[[Command], bool]) -> str:
    """Press Ctrl-C once a command has `started`; return what it said until its end, which comes at once."""
    with Command(*command, env=environment) as process:
        until(lambda: started(process) or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
        assert process.errors.endswith("idxflow: interrupted; run the same command again to resume\n")
        assert "Traceback" not in process.errors
        return process.output


@pytest.mark.flow
def test_ctrl_c_ends_a_run_that_waits_for_another_one_and_says_so(environment: dict[str, str], tiny: TinyFactory):
    dataset, store = tiny(), Store(Path(environment["IDXFLOW_STORE"]))
    command = ["validate", "--dataset-file", str(dataset.manifest)]
    assert idxflow(*command, env=environment).returncode == 0
    locks = store.dataset("tiny") / "locks"
    decoded = next(store.entries("tiny", "decode").iterdir())
    for lock, message in (
        (locks / "in-use.lock", "tiny: waiting for `gc` to finish"),
        (locks / f"decode-{decoded.name}.lock", ": waiting for another run that is making it"),
    ):
        with locked(lock):
            interrupted(environment, command, lambda process, message=message: message in process.output)


@pytest.mark.flow
def test_ctrl_c_ends_a_download_and_the_next_run_goes_on_with_it(environment: dict[str, str], tiny: TinyFactory):
    published = publish(tiny())
    answers = {path: ranged(body, '"tag"') for path, body in published.bodies.items()}
    body = published.bodies[PATH]
    answers[PATH] = in_turn(stall(body, after=1000, ETag='"tag"'), answers[PATH])
    with FaultServer(answers) as server:
        command = ["validate", "--dataset-file", str(published.manifest), "--source", server.url()]
        parts = Path(environment["IDXFLOW_STORE"], "tiny", "1-archives")
        interrupted(environment, command, lambda _: any(p.stat().st_size for p in parts.glob(f".*/{PATH[1:]}.part")))
        process: subprocess.CompletedProcess[str] = idxflow(*command, env=environment)
        assert process.returncode == 0, process.stderr
        ranges = [request.headers.get("range") for request in server.requests if request.path == PATH]
    assert ranges == [None, "bytes=1000-"]
