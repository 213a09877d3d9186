"""How many runs one can ask for at once: `python -m benchmarks.burst --runs 58 --commands 6`.

Starts `idxflow up` in a new home, pauses its work pool, so that nothing but the server is measured, and asks for
`retrain/digits` at once: through as many of Prefect's clients as `--runs` says, and by so many `prefect deployment run`
as `--commands` says. Then it counts. What was asked for must exist, or its asker must have been told that it does not.
With `--database postgresql`, a PostgreSQL of its own is started (needs its programs, on Debian the package postgresql).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.support.postgres import postgres
from tests.support.servers import BIN, clean_environment, free_port

DEPLOYMENT = "retrain/digits"
PREFECT = [str(BIN / "prefect")]
START_SECONDS = 300
COMMAND_SECONDS = 600
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Burst:
    """What came of a burst."""

    asked: int
    accepted: int
    """Askers that were told the id of a run."""
    refused: int
    """Askers that were told an error."""
    existing: int
    """Runs that the server has in the end."""
    lost: int
    """Accepted, and not there."""
    seconds: float
    """Until the last asker had its answer."""
    slowest: float
    """The longest that one request through the API took."""
    locked: int = 0
    """Lines "database is locked" in the server's log."""


def burst(
    environment: Mapping[str, str], log: Path, runs: int, commands: int, accepted: Callable[[], None] = lambda: None
) -> Burst:
    """Ask a server for runs of `retrain/digits`, all at once, and count.

    Args:
        environment: reaches the server, with the deployment on it and its work pool paused.
        log: of the server.
        runs: asked for through the API.
        commands: asked for by `prefect deployment run`.
        accepted: called for each run that was accepted.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    settings = {
        PREFECT_API_URL: environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: environment.get("PREFECT_API_AUTH_STRING"),
    }
    locked = _locked(log)
    with temporary_settings(settings):
        counted = asyncio.run(_burst(environment, runs, commands, accepted))
    return replace(counted, locked=_locked(log) - locked)


async def _burst(environment: Mapping[str, str], runs: int, commands: int, accepted: Callable[[], None]) -> Burst:
    from prefect.client.orchestration import get_client

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(get_client()) for _ in range(runs + 1)]
        deployment = (await clients[0].read_deployment_by_name(DEPLOYMENT)).id
        before = await _existing(clients[0], deployment)
        started = time.monotonic()
        answers = await asyncio.gather(
            *(_ask(client, deployment, accepted) for client in clients[1:]),
            *(_command(environment) for _ in range(commands)),
        )
        seconds = time.monotonic() - started
        existing = await _existing(clients[0], deployment) - before
    told = [run for run, _ in answers if run]
    slowest = max((took for _, took in answers[:runs]), default=0.0)
    return Burst(
        asked=runs + commands,
        accepted=len(told),
        refused=len(answers) - len(told),
        existing=len(existing),
        lost=len(set(told) - existing),
        seconds=round(seconds, 1),
        slowest=round(slowest, 1),
    )


async def _ask(client: Any, deployment: UUID, accepted: Callable[[], None]) -> tuple[UUID | None, float]:
    """Ask through Prefect's client; return the run, or None for an error, and how long it took."""
    started = time.monotonic()
    try:
        run = (await client.create_flow_run_from_deployment(deployment)).id
        accepted()
    except Exception as error:
        sys.stderr.write(f"refused: {type(error).__name__}: {error}"[:200] + "\n")
        run = None
    return run, time.monotonic() - started


async def _command(environment: Mapping[str, str]) -> tuple[UUID | None, float]:
    """Ask as somebody in a terminal does."""
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *PREFECT, "deployment", "run", DEPLOYMENT, env=environment, cwd="/",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    said = _ID.findall(output.decode())
    if process.returncode:
        sys.stderr.write(f"refused: {output.decode()[-300:]}\n")
    return UUID(said[0]) if said and not process.returncode else None, time.monotonic() - started


async def _existing(client: Any, deployment: UUID) -> set[UUID]:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    found: set[UUID] = set()
    while page := await client.read_flow_runs(deployment_filter=wanted, limit=200, offset=len(found)):
        found |= {run.id for run in page}
    return found


def _locked(log: Path) -> int:
    return log.read_text(errors="replace").count("database is locked")


@contextmanager
def operated(home: Path, arguments: tuple[str, ...], more: Mapping[str, str]) -> Iterator[tuple[dict[str, str], Path]]:
    """Run `idxflow up` with its pool paused; yield the environment that reaches its server, and the server's log."""
    port = free_port()
    environment = clean_environment(
        home, PREFECT_API_URL=f"http://127.0.0.1:{port}/api", IDXFLOW_STORE=str(home / "store"), **more
    )
    said = home / "up.log"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / "idxflow"), "up", *arguments], env=environment, cwd="/", stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "\nready: " not in said.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"`idxflow up` is not ready: {said.read_text()}")
            time.sleep(0.3)
        own = Path(environment["PREFECT_HOME"]) / "idxflow"
        secret = own / "auth-string"
        if secret.exists():
            environment["PREFECT_API_AUTH_STRING"] = secret.read_text().strip()
        paused = [*PREFECT, "work-pool", "pause", "idxflow"]
        subprocess.run(paused, env=environment, check=True, capture_output=True, timeout=COMMAND_SECONDS)
        yield environment, own / "server.log"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main() -> int:
    """Ask, count and print; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=58, help="asked for through the API; default 58")
    parser.add_argument("--commands", type=int, default=0, help="asked for by `prefect deployment run`; default 0")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="default sqlite")
    asked = parser.parse_args()
    password = "burst"
    with (
        tempfile.TemporaryDirectory(prefix="idxflow-burst-") as name,
        postgres(password) if asked.database == "postgresql" else nullcontext() as cluster,
    ):
        database = ("--database", cluster.url) if cluster else ()
        with operated(Path(name), database, {"PGPASSWORD": password}) as (environment, log):
            done = burst(environment, log, asked.runs, asked.commands)
    print(json.dumps({"database": asked.database, **asdict(done)}))
    return 1 if done.lost or done.existing + done.refused != done.asked else 0


if __name__ == "__main__":
    sys.exit(main())
