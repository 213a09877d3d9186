"""Too little memory for real: limits that the process meets in words, and the kernel's kill, which leaves it none.

The child takes the real steps without Prefect; the limit is set when training begins, so that all before it is done.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from storage.errors import IdxflowError
from storage.files import sha256_of
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tasks import train
from tasks.model import network
from tests.conftest import write_tiny
from tests.support.commands import Command
from tests.support.memory import GROUP_BYTES, bytes_of_process, control_group
from tests.support.runs import carried_out
from tests.support.servers import ROOT, clean_environment

WIDE = [3000, 3000]
"""9.2 million weights: 37 MB, and as much again for each of what training keeps beside them."""
FREE_BYTES = 50_000_000
"""Bytes that are free when training begins: the rows and the arrays of the weights do not fit."""


def child(manifest: Path, store: Path) -> None:
    """Run as a program: train a wide network with what the parent grants; say it like the command line."""
    network.tensorflow()
    # NumPy imports it when it is first used, and that is not what there is to be no memory for.
    assert np.random
    original = train.train_into

    def limited(folder: Path, training: train.Training, watch: train.Watch | None = None) -> object:
        if os.environ["LIMIT"] == "address space":
            resource.setrlimit(resource.RLIMIT_AS, (bytes_of_process(0) + FREE_BYTES,) * 2)
        else:
            sys.stdout.write("training\n")
            sys.stdout.flush()
            sys.stdin.readline()
        return original(folder, training, watch)

    train.train_into = limited  # type: ignore[assignment]
    try:
        carried_out(Store(store), manifest, hidden=WIDE)
    except IdxflowError as error:
        sys.stderr.write(f"idxflow: {type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest and the store of one run that had memory."""
    folder = tmp_path_factory.mktemp("first")
    carried_out(Store(folder / "store"), write_tiny(folder).manifest)
    return folder


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Store:
    shutil.copytree(first / "store", tmp_path / "store")
    return Store(tmp_path / "store")


@contextmanager
def begun(first: Path, store: Store, limit: str) -> Iterator[tuple[Command, BinaryIO, BinaryIO]]:
    """Start the child; yield it, what it says and what it hears."""
    program = "import sys; from pathlib import Path; from tests.faults.test_memory_kill import child; "
    program += "child(*map(Path, sys.argv[1:]))"
    words = ("-c", program, str(first / "tiny.toml"), str(store.root))
    environment = {**clean_environment(store.root.parent), "LIMIT": limit}
    (hears, tells), (asks, says) = os.pipe(), os.pipe()
    with ExitStack() as ends:
        told, said = ends.enter_context(os.fdopen(tells, "wb", 0)), ends.enter_context(os.fdopen(asks, "rb", 0))
        log = ends.enter_context((store.root.parent / "log").open("wb"))
        streams = (hears, says, log.fileno())
        process = ends.enter_context(Command(*words, env=environment, cwd=ROOT, program="python", streams=streams))
        for end in (hears, says):
            os.close(end)
        yield process, said, told


def train_until_killed(process: Command, told: BinaryIO) -> None:
    """Let the process train in a control group too small for that, or kill it at that size where there is no leave."""
    group = control_group(process.pid)
    most = bytes_of_process(1, process.pid) + GROUP_BYTES
    told.write(b"go\n")
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            if group is None and bytes_of_process(1, process.pid) > most:
                process.kill()
        time.sleep(0.01)
    if group:
        group.rmdir()


def published(store: Store) -> dict[str, str]:
    """Return the digest of every file that has its final name."""
    files = [path for path in store.root.rglob("*") if path.is_file()]
    final = [path for path in files if not any(part.startswith(".") for part in path.relative_to(store.root).parts)]
    return {str(path.relative_to(store.root)): sha256_of(path) for path in final if path.suffix != ".lock"}


def assert_unharmed(store: Store, before: dict[str, str]) -> None:
    after = published(store)
    assert {name: after.get(name) for name in before} == before
    assert not verify(store).damage
    assert Registry(store, "tiny").champion().number == 1


def test_where_it_still_can_speak_it_says_for_what_there_is_no_memory(first: Path, copy: Store):
    before = published(copy)
    with begun(first, copy, "address space") as (process, _, _):
        code = process.wait(240)
    errors = (copy.root.parent / "log").read_text()
    assert code == 1, errors
    messages = [line for line in errors.splitlines() if line.startswith("idxflow: ")]
    assert len(messages) == 1, errors
    assert messages[0].startswith("idxflow: TrainingFailed: tiny: expected memory for 9,204,003 weights and 120 rows")
    assert "smaller layers" in messages[0]
    assert_unharmed(copy, before)
    assert carried_out(copy, first / "tiny.toml", seed=2).model


def test_the_kernels_kill_harms_nothing_and_the_next_run_succeeds(first: Path, copy: Store):
    before = published(copy)
    with begun(first, copy, "kernel") as (process, said, told):
        assert said.readline() == b"training\n"
        train_until_killed(process, told)
        assert process.poll() == -signal.SIGKILL
    assert_unharmed(copy, before)
    record = carried_out(copy, first / "tiny.toml", seed=2)
    assert record.model
    assert record.failure is None
    assert not verify(copy).damage
