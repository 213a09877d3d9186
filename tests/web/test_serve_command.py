"""`idxflow serve` as a process: what it prints works, what ends it, and what it refuses."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

import httpx
import pytest

from storage.store import Store
from tests.support.blobs import store_with_champion
from tests.support.commands import Command, idxflow
from tests.support.servers import clean_environment, free_port

TOKEN = "a-token-of-24-characters"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_with_champion(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, store: Store) -> dict[str, str]:
    return clean_environment(tmp_path_factory.mktemp("home"), IDXFLOW_STORE=str(store.root))


@contextmanager
def serving(env: dict[str, str], log: Path, *options: str) -> Iterator[tuple[Command, str]]:
    """Start the command; yield it and what it has printed when it is ready."""
    with log.open("wb") as output, Path(os.devnull).open() as nothing:
        streams = (nothing.fileno(), output.fileno(), output.fileno())
        with Command("serve", *options, env=env, streams=streams) as command:
            while "try: " not in log.read_text():
                assert command.poll() is None, log.read_text()
                sleep(0.05)
            yield command, log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_it_prints_works_and_a_signal_ends_it(env: dict[str, str], tmp_path: Path, number: int):
    options = ("--port", "0", "--host", "0.0.0.0", "--token-from", "MY_TOKEN")
    with serving({**env, "MY_TOKEN": TOKEN}, tmp_path / "log", *options) as (command, printed):
        first, tried = printed.splitlines()
        assert first.startswith("serving tiny (v1) at http://127.0.0.1:")
        curl = tried.removeprefix("try: ")
        answer = subprocess.run(["bash", "-c", curl], env={**env, "MY_TOKEN": TOKEN}, capture_output=True, check=True)
        assert b'"version": 1' in answer.stdout
        url = next(word for word in shlex.split(curl) if word.startswith("http")).partition("/v1")[0]
        assert httpx.get(f"{url}/metrics").status_code == 401
        # One that keeps its connection open.
        with httpx.Client() as waiting:
            assert waiting.get(f"{url}/healthz").json() == {"status": "ok"}
            command.send_signal(number)
            assert command.wait() == 0
    assert (tmp_path / "log").read_text() == printed


@pytest.mark.remedies("flows.web.serving:listening")
def test_a_port_that_is_taken_is_a_sentence(env: dict[str, str], tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port := free_port()))
        other.listen()
        refused = idxflow("serve", "--port", str(port), env=env)
        assert refused.returncode == 2
        assert refused.stderr == (
            f"idxflow: expected to listen on 127.0.0.1:{port}; Address already in use; choose another with --port or "
            "--host\n"
        )
        with serving(env, tmp_path / "log", "--port", "0"):
            pass


@pytest.mark.remedies("flows.web.serving:_check_datasets", "flows.web.serving:_token", "flows.web.serving:_token:2")
def test_what_it_cannot_serve_safely_it_refuses(env: dict[str, str], tmp_path: Path, store: Store):
    def refusal(*options: str, **more: str) -> str:
        refused = idxflow("serve", *options, "--port", "0", env={**env, **more})
        assert refused.returncode == 2
        return refused.stderr

    assert "found 'tinny' (did you mean tiny?); `idxflow status" in refusal("tinny")
    assert "tiny" in idxflow("status", env=env).stdout
    assert "put a token into an environment variable, and name that: --token-from" in refusal("--host", "0.0.0.0")
    options = ("--host", "0.0.0.0", "--token-from", "MY_TOKEN")
    assert "in the environment variable MY_TOKEN; found none; put one there" in refusal(*options)
    assert "found 5; put one there" in refusal(*options, MY_TOKEN="short")
    with serving({**env, "MY_TOKEN": TOKEN}, tmp_path / "log", "tiny", *options, "--port", "0"):
        pass
