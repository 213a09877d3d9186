"""Runs whose workers, or whose scheduler, die: what a person sees of them, and what the next run reuses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from storage.workers.address import PATIENCE_VARIABLE
from tests.support.clusters import scheduler, worker
from tests.support.commands import Command, idxflow
from tests.support.held_archives import Held, held_archives
from tests.support.operated import post, under_way, until

pytestmark = [pytest.mark.flow, pytest.mark.long]

TWO_THREADS = ("--nthreads", "2")
"""One waits for the archive that is kept back; the other fetches the rest."""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    with held_archives(tmp_path) as held:
        yield held


@pytest.fixture
def environment(server: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {**server, "IDXFLOW_STORE": str(tmp_path / "store"), PATIENCE_VARIABLE: "1"}


def failed(run: Command, environment: dict[str, str]) -> str:
    """Wait for the end of a run; check that it failed, with nothing left behind on the server, and return why."""
    code, ask = run.wait(240), partial(post, environment)
    assert (code, "Traceback" in run.errors) == (1, False), run.errors
    newest = ask("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]
    assert newest["state"]["type"] == "FAILED"
    # What a run says of its tasks is on its way for a moment longer.
    until(lambda: not under_way(ask, newest["id"]))
    (sentence,) = (line for line in run.errors.splitlines() if line.endswith(": what is done is reused"))
    return sentence


def test_a_run_whose_workers_or_scheduler_die_fails_in_one_sentence_and_the_next_one_reuses_what_is_done(
    environment: dict[str, str], held: Held, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    words = ("run", "--dataset-file", str(held.manifest), "--workers")
    with scheduler(tmp_path) as (address, dask):
        with worker(tmp_path, address, *TWO_THREADS) as machine, Command(*words, address, env=environment) as run:
            until(lambda: (held.times == 1 and held.done(store)) or run.poll() is not None)
            machine.kill()
            assert f"expected workers at {address}; found none for 1 s; start some" in failed(run, environment)
        with worker(tmp_path, address, *TWO_THREADS), Command(*words, address, env=environment) as run:
            until(lambda: held.times == 2 or run.poll() is not None)
            dask.kill()
            assert f"expected the Dask scheduler at {address} until the end of the run; found that it has gone" in (
                failed(run, environment)
            )
    held.release()
    done = idxflow("validate", "--dataset-file", str(held.manifest), env=environment)
    assert done.returncode == 0, done.stderr
    assert (held.times, set(held.others())) == (3, {1})
