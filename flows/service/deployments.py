"""What the server has to know: the work pool, the deployments, and the automation that ends dead runs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate, WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from flows.service.server import prefect
from flows.settings import ROOT
from storage.errors import PrefectFailed

PLAN = ROOT / "prefect.yaml"
VARIABLE = "idxflow_schedules"
"""Prefect variable that holds, by deployment, a digest of the schedules that were last taken from `prefect.yaml`."""
AUTOMATION = "idxflow: end flow runs whose process is gone"
_PROCESS = "process"
_DEPLOY_SECONDS = 180
_ENDINGS = (
    "Completed", "Failed", "Cancelled", "Crashed", "TimedOut",
    # The names that idxflow gives its own endings.
    "Promoted", "Kept champion", "Unchanged", "Superseded", "Refused*",
)  # fmt: skip


def ensure_pool(client: SyncPrefectClient, name: str) -> str:
    """Create the process work pool unless it is there; return its type."""
    try:
        return client.read_work_pool(name).type
    except ObjectNotFound:
        return client.create_work_pool(WorkPoolCreate(name=name, type=_PROCESS)).type


def deploy(client: SyncPrefectClient, pool: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Deploy everything in `prefect.yaml` to a pool; return the names of deployments whose schedules were kept.

    `prefect deploy` sets schedules to what the file says, also those that a user has changed, paused or deleted on
    the server. Here whoever changed them last wins: the file's schedules are applied to a new deployment, and again
    only when they differ from those that were applied the last time.
    """
    plan = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    known = {(found.name, found.entrypoint) for found in client.read_deployments()}
    applied = _applied(client)
    digests, kept = {}, []
    for deployment in plan["deployments"]:
        name = deployment["name"]
        deployment["work_pool"] = {**deployment.get("work_pool", {}), "name": pool}
        digests[name] = _digest(deployment.get("schedules", []))
        up_to_date = (name, deployment["entrypoint"]) in known and applied.get(name, digests[name]) == digests[name]
        # Without the key, `prefect deploy` leaves the schedules alone.
        if up_to_date and deployment.pop("schedules", None):
            kept.append(name)
    _deploy(plan, environment)
    _remember(client, {**applied, **digests})
    return tuple(kept)


def _deploy(plan: dict[str, Any], environment: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PLAN.name
        path.write_text(json.dumps(plan), encoding="utf-8")  # JSON is YAML
        result = subprocess.run(
            prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(path)),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEPLOY_SECONDS,
            check=False,
        )
    if result.returncode:
        said = " ".join((result.stdout + result.stderr).split())[-400:]
        raise PrefectFailed(f"expected `prefect deploy --all` to take {PLAN.name}, found: {said}")


def _digest(schedules: object) -> str:
    return hashlib.sha256(json.dumps(schedules, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _applied(client: SyncPrefectClient) -> dict[str, str]:
    variable = client.read_variable_by_name(VARIABLE)
    return dict(variable.value) if variable and isinstance(variable.value, dict) else {}


def _remember(client: SyncPrefectClient, digests: dict[str, str]) -> None:
    if client.read_variable_by_name(VARIABLE):
        client.update_variable(VariableUpdate(name=VARIABLE, value=digests))
    else:
        client.create_variable(VariableCreate(name=VARIABLE, value=digests, tags=["idxflow"]))


def ensure_automation(client: SyncPrefectClient, seconds: int) -> None:
    """Have the server end a run as Crashed when it has sent heartbeats and then none for so many seconds.

    An automation that a user has disabled stays disabled. After
    https://docs.prefect.io/v3/advanced/detect-zombie-flows, with the names of idxflow's own endings: an event has
    the name of the state, not its type.
    """
    wanted = _automation(seconds)
    found = client.read_automations_by_name(AUTOMATION)
    if not found:
        client.create_automation(wanted)
    elif found[0].trigger.model_dump(exclude={"id"}) != wanted.trigger.model_dump(exclude={"id"}):
        client.update_automation(found[0].id, wanted.model_copy(update={"enabled": found[0].enabled}))


def _automation(seconds: int) -> AutomationCore:
    heartbeat = "prefect.flow-run.heartbeat"
    trigger = EventTrigger(
        after={heartbeat},
        expect={heartbeat, *(f"prefect.flow-run.{name}" for name in _ENDINGS)},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )
    message = (
        f"no sign of life for {seconds} s: its process or its machine is gone; run it again, it goes on from there"
    )
    return AutomationCore(
        name=AUTOMATION,
        description="Made by `idxflow up`. Without it a run whose machine has died stays Running for ever.",
        trigger=trigger,
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message=message, force=False)],
    )
