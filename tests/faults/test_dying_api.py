"""The Prefect server is killed in the middle of runs: they go on without it, end in bounded time, and harm nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from flows.settings import quiet_environment
from storage.registry import Registry
from storage.store import Store
from storage.verify import verify
from tests.conftest import write_tiny
from tests.support.commands import Command, idxflow
from tests.support.servers import ROOT, clean_environment, free_port, wait_until_healthy

pytestmark = [pytest.mark.flow, pytest.mark.long]

# So that the test need not wait as long as a user would: see `max_retries` in pyproject.toml.
FEW_RETRIES = {"PREFECT_CLIENT_MAX_RETRIES": "1"}
EPOCHS = 600
BOUND_SECONDS = 280
"""Only what hangs takes so long, also on a busy machine."""


class World:
    """A server that can be killed, and runs that use it."""

    def __init__(self, home: Path) -> None:
        port = free_port()
        self.home, self.url = home, f"http://127.0.0.1:{port}/api"
        self.nowhere = clean_environment(home, **FEW_RETRIES)
        self.environment = {**self.nowhere, "PREFECT_API_URL": self.url}
        self.serve = ("server", "start", "--port", str(port))
        self.manifest = write_tiny(home).manifest

    def command(self, name: str, epochs: int) -> list[str]:
        training = [f"epochs={epochs}", "learning_rate=0.1", "hidden=[8]"]
        words = [word for setting in training for word in ("--set", setting)]
        place = ["--dataset-file", str(self.manifest), "--store", str(self.home / name)]
        return ["run", *place, *words, "--json"]

    def begin(self, name: str, epochs: int, environment: dict[str, str]) -> Command:
        return Command(*self.command(name, epochs), env=environment)

    def say_that_it_is_of_up(self) -> None:
        """Leave what `idxflow up` leaves for runs that are not told of a server."""
        folder = Path(self.nowhere["PREFECT_HOME"]) / "idxflow"
        folder.mkdir()
        (folder / "up-1.json").write_text(json.dumps({"pid": os.getpid(), "ready": True, "api": self.url}))

    def until(self, process: Command, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + BOUND_SECONDS
        while not condition():
            assert process.poll() is None, process.errors
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def again(self, environment: dict[str, str]) -> tuple[int, dict[str, Any], str]:
        ended = idxflow(*self.command("between", 2), env=environment, timeout=BOUND_SECONDS)
        return ended.returncode, json.loads(ended.stdout), ended.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def ended(world: World) -> dict[str, tuple[int, dict[str, Any], str]]:
    """How two runs ended whose server was killed: one between its steps, and one, of `idxflow up`, while it trained."""
    log = world.home / "server.log"
    with ExitStack() as stack:
        with Path(os.devnull).open() as nothing, log.open("wb") as output:
            streams = (nothing.fileno(), output.fileno(), output.fileno())
            started = Command(*world.serve, env=world.environment, cwd=ROOT, program="prefect", streams=streams)
        server = stack.enter_context(started)
        wait_until_healthy(world.url, server, log)
        world.say_that_it_is_of_up()
        training = stack.enter_context(world.begin("training", EPOCHS, world.nowhere))
        models = world.home / "training" / "tiny" / "5-models"
        world.until(training, lambda: bool(list(models.glob(".*.partial/history.jsonl"))))
        # So that it still trains when the other one has come as far as it is to come.
        training.send_signal(signal.SIGSTOP)
        between = stack.enter_context(world.begin("between", 2, world.environment))
        splits = world.home / "between" / "tiny" / "2-splits"
        world.until(between, lambda: bool(list(splits.glob("[!.]*/entry.json"))))
        server.kill()
        server.wait()
        training.send_signal(signal.SIGCONT)
        results = {}
        for name, process in (("between", between), ("training", training)):
            out, errors = process.communicate(timeout=BOUND_SECONDS)
            results[name] = (process.wait(), json.loads(out), errors)
        return results


@pytest.mark.parametrize("name", ["between", "training"])
def test_a_run_goes_on_and_ends_as_what_it_is(world: World, ended: dict[str, Any], name: str):
    """Its exit code is of what it did: there is a champion, though Prefect does not know it."""
    code, outcome, _ = ended[name]
    assert (code, outcome["state"], outcome["champion"], outcome["error"]) == (0, "promoted", 1, None)
    store = Store(world.home / name)
    verdict = verify(store)
    assert (verdict.damage, verdict.leftovers) == ((), ())
    assert Registry(store, "tiny").champion().number == 1
    assert Path(outcome["report"]).is_file()
    if name == "training":
        assert outcome["epochs"] == EPOCHS


@pytest.mark.parametrize("name", ["between", "training"])
def test_it_is_reported_once_and_in_words(world: World, ended: dict[str, Any], name: str):
    errors = ended[name][2]
    sentences = [line for line in errors.splitlines() if "the Prefect server could not be reached" in line]
    assert len(sentences) == 1
    assert "may still show the run as running" in sentences[0]
    remedy = f"is the server at {world.url} up? Start it, or remove PREFECT_API_URL of the environment"
    assert ("try again" if name == "training" else remedy) in sentences[0]
    for noise in ("Traceback", "Error logging to API", "failed to process item", "Still processing"):
        assert noise not in errors
    assert errors.count("not shown in the Prefect UI") <= 1


@pytest.mark.remedies("flows.commands.run:_called")
def test_the_same_command_finds_all_of_it(world: World, ended: dict[str, Any], server: dict[str, str]):
    """With the server still dead it ends at once with 1; with another, and without any, nothing is done twice."""
    code, outcome, errors = world.again(world.environment)
    assert (code, outcome["error"]["kind"]) == (1, "PrefectFailed")
    assert "Start it, or remove PREFECT_API_URL of the environment" in errors
    assert "Traceback" not in errors
    for environment in (server, world.nowhere):
        code, outcome, _ = world.again(environment)
        assert (code, outcome["state"], outcome["version"]) == (0, "unchanged", 1)
        assert all(step["reused"] for step in outcome["steps"].values())
    assert not verify(Store(world.home / "between")).damage


def test_prefect_may_wait_for_a_server_that_starts_again_but_not_for_minutes():
    """It waits 2, 4, 8, … seconds for each request; a run that ends makes four."""
    retries = int(quiet_environment()["PREFECT_CLIENT_MAX_RETRIES"])
    assert 10 < sum(2**n for n in range(1, retries + 1)) <= 30
