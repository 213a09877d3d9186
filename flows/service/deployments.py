"""Set up the server: the work pool, the deployments, and the automation that ends dead runs."""

from __future__ import annotations

import copy
import hashlib
import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect._vendor.croniter.croniter import CroniterBadDateError, croniter
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, VariableCreate, VariableUpdate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import DeploymentSchedule, StateType, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from flows.service.memory import Applied, Changed, Memory, Remembered
from flows.service.pools import Placement
from flows.service.processes import START_SECONDS
from flows.service.server import prefect
from flows.settings import ROOT
from storage.datasets.catalog import shown
from storage.errors import ConfigError, PrefectFailed
from storage.words import meant

PLAN = ROOT / "prefect.yaml"
VARIABLE = "idxflow_schedules"
"""Prefect variable that holds, by deployment, the schedules last applied from `prefect.yaml` (`Applied`)."""
AUTOMATION = "idxflow: end flow runs whose process is gone"
_PROCESS = "process"
_OURS = "flows."
"""Prefix of the entry points of idxflow's flows."""
_WAIT_SECONDS = 0.5
# Prefect: names-in-events. An event is named after a state's name, and a heartbeat has no type to query.
_LASTING = {
    *("entrypoint", "path", "pull_steps", "work_pool_name", "work_queue_name", "job_variables", "parameters", "tags"),
    *("description", "paused", "concurrency_options", "enforce_parameter_schema"),
}
"""What a deployment says; the rest changes whenever it is deployed."""
_ENDINGS = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")


@dataclass(frozen=True)
class OwnPlan:
    """The deployment of one of the users' own data sets."""

    file: Path
    """The file beside its manifest that says so."""
    deployment: Mapping[str, Any]
    """In the form of `prefect.yaml`."""

    @property
    def name(self) -> str:
        return str(self.deployment["name"])

    @property
    def digest(self) -> str:
        return _digest(self.deployment)


@dataclass(frozen=True)
class Own:
    """The deployments of the users' own data sets that a store lists."""

    store: str = ""
    """The store's folder."""
    plans: tuple[OwnPlan, ...] = ()
    held: frozenset[str] = frozenset()
    """Names whose file cannot be used as it is now; what the server has of them stays."""
    is_complete: bool = True
    """False if the list cannot be read, so that nothing is known to be gone."""

    def has_dropped(self, name: str, applied: Applied) -> bool:
        """Return whether a deployment that is in no file any more was in one of these files, or in `prefect.yaml`."""
        # That of another store is looked after by the `idxflow up` of that store.
        is_known = applied.store == self.store and self.is_complete
        return name not in self.held and (is_known or not applied.store)


@dataclass(frozen=True)
class Promise:
    """The setup that `idxflow up` creates on a server and maintains."""

    pool: str
    zombie_seconds: int
    environment: Mapping[str, str]
    """The environment of `prefect deploy`."""
    memory: Memory
    plan: Mapping[str, Any]
    """The contents of `prefect.yaml` when it was read."""
    meanwhile: Callable[[], object]
    """Called repeatedly while `prefect deploy` runs, because that waits even for a server that has died."""
    own: Own = Own()
    placement: Placement = field(default_factory=Placement)
    """How the deployments are put into the pool."""


@dataclass(frozen=True)
class Seen:
    """The parts of the setup that exist on the server."""

    names: tuple[str, ...]
    """The names of all deployments in `prefect.yaml` and the users' own files."""
    pool: WorkPool | None
    deployments: Mapping[str, DeploymentResponse]
    dropped: Mapping[str, DeploymentResponse]
    """Deployments from an earlier `prefect.yaml`, or from a user's file, that are in none now."""
    automation: Automation | None
    applied: Mapping[str, Applied] | None
    """None on a server that `up` does not know."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the missing parts."""
        absent = [name for name in self.names if name not in self.deployments]
        return (
            *(() if self.pool else ("the work pool",)),
            *([f"the deployments {', '.join(absent)}"] if absent else ()),
            *(() if self.automation else ("the automation that ends dead runs",)),
            *(() if self.applied is not None else ("the record of schedules",)),
        )


@dataclass(frozen=True)
class Deployed:
    """The side effects of `deploy`."""

    kept: tuple[str, ...]
    """The names of deployments whose schedules stay as people left them."""
    removed: tuple[str, ...]
    """Descriptions of what was removed because it is no longer in `prefect.yaml`, or its own file is gone."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why Prefect did not accept a user's file, by the digest of its deployment."""
    changed: tuple[str, ...] = ()
    """The names of deployments that are new on the server, or no longer as they were."""


def read_plan(path: Path = PLAN) -> dict[str, Any]:
    """Return the contents of `prefect.yaml`, with a slug for each schedule that identifies it as the file's.

    Raises:
        ConfigError: a schedule is malformed or never comes due.
    """
    return checked_plan(path, path.read_text(encoding="utf-8"))


def checked_plan(path: Path, text: str) -> dict[str, Any]:
    """Return the contents of a file in the form of `prefect.yaml`; the same as `read_plan`."""
    plan: dict[str, Any] = yaml.safe_load(text)
    for deployment in plan["deployments"]:
        for schedule in deployment.get("schedules") or ():
            try:
                schedule.setdefault("slug", f"{path.name} {_digest(schedule)}")
                _schedule(schedule)
            except (ValueError, TypeError, AttributeError) as error:
                problem = " ".join(str(error).split())
                raise ConfigError(
                    f"{path}: expected schedules that come due for the deployment {deployment['name']}; {problem}; "
                    "correct the schedule there"
                ) from error
    return plan


def see(client: SyncPrefectClient, pool: str, plan: Mapping[str, Any], own: Own = Own()) -> Seen:
    """Return the parts of the setup on the server, using few and small requests.

    Raises:
        Exception: any error of Prefect's client if the server does not answer queries.
    """
    entrypoints = {d["name"]: d["entrypoint"] for d in (*plan["deployments"], *(o.deployment for o in own.plans))}
    variable = client.read_variable_by_name(VARIABLE)
    stored = variable.value if variable and isinstance(variable.value, dict) else None
    applied = None if stored is None else {name: Applied.from_json(values) for name, values in stored.items()}
    names = [*{**entrypoints, **(applied or {})}]
    deployments = client.read_deployments(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=names)))
    automations = client.read_automations_by_name(AUTOMATION)
    return Seen(
        tuple(entrypoints),
        _pool(client, pool),
        {d.name: d for d in deployments if d.entrypoint == entrypoints.get(d.name)},
        {
            d.name: d
            for d in deployments
            if d.name not in entrypoints
            and (d.entrypoint or "").startswith(_OURS)
            and own.has_dropped(d.name, (applied or {})[d.name])
        },
        automations[0] if automations else None,
        applied,
    )


def provide(client: SyncPrefectClient, promise: Promise) -> Deployed:
    """Create the setup on the server, and remove what only an earlier `prefect.yaml` or a file that is gone had."""
    remembered = promise.memory.read()
    if promise.placement.is_foreign:
        found_pool(client, promise.pool)
    else:
        ensure_pool(client, promise.pool, remembered.pool if remembered else {})
    ensure_automation(client, promise.zombie_seconds, remembered.automation_enabled if remembered else True)
    deployed = deploy(client, promise, remembered)
    remember(promise.memory, see(client, promise.pool, promise.plan, promise.own))
    return deployed


def look_after(client: SyncPrefectClient, promise: Promise) -> str | None:
    """Restore the parts that are missing on the server, and return a message; otherwise remember people's changes."""
    seen = see(client, promise.pool, promise.plan, promise.own)
    if seen.missing:
        unchanged = provide(client, promise).kept
        as_before = f"; schedules as users had left them: {', '.join(unchanged)}" if unchanged else ""
        return f"the server no longer had {', '.join(seen.missing)}; deployed again{as_before}"
    remember(promise.memory, seen)
    return None


def remember(memory: Memory, seen: Seen) -> None:
    """Save what people have changed, unless something is missing: a lost database must not be remembered."""
    if seen.missing or not (seen.pool and seen.automation):
        return
    applied = seen.applied or {}
    deployments = {
        name: Changed(d.paused, _dumped(d.schedules), applied.get(name, Applied("")))
        for name, d in seen.deployments.items()
    }
    pool = {"is_paused": seen.pool.is_paused, "concurrency_limit": seen.pool.concurrency_limit}
    memory.write(Remembered(deployments, pool, seen.automation.enabled))


def _dumped(schedules: list[DeploymentSchedule]) -> list[dict[str, Any]]:
    fields = {"schedule", "active", "max_scheduled_runs", "parameters", "slug"}
    # The order on the server varies.
    return sorted((s.model_dump(mode="json", include=fields) for s in schedules), key=json.dumps)


def _pool(client: SyncPrefectClient, name: str) -> WorkPool | None:
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        return None


def found_pool(client: SyncPrefectClient, name: str) -> WorkPool:
    """Return a work pool of the server. Raises ConfigError if it has none of this name."""
    pool = _pool(client, name)
    if not pool:
        known = sorted(pool.name for pool in client.read_work_pools())
        raise ConfigError(
            f"expected --pool to name a work pool of the server ({', '.join(known) or 'it has none'}); found "
            f"{shown(name)}{meant(name, known)}; while the server runs (`idxflow up`), create it: `idxflow prefect "
            f"work-pool create {shlex.quote(name)} --type kubernetes`, or --type docker, or --type process"
        )
    return pool


def ensure_pool(client: SyncPrefectClient, name: str, remembered: Mapping[str, Any] | None = None) -> str:
    """Create the process work pool, as remembered, unless it exists; return its type."""
    existing = _pool(client, name)
    pool = WorkPoolCreate(name=name, type=_PROCESS, **(remembered or {}))
    return existing.type if existing else client.create_work_pool(pool).type


def deploy(client: SyncPrefectClient, promise: Promise, remembered: Remembered | None = None) -> Deployed:
    """Deploy everything in `prefect.yaml` to the pool, and remove what came from it but is no longer in it.

    `prefect deploy` sets schedules as in the file, even those that a user has changed, paused or deleted on the
    server, and removes none. Here the last change wins: the file's schedules are applied to a new deployment, and
    again only if they differ from those applied last. Schedules that people made are kept. A deployment that the
    server has lost is restored from memory, by the same rule.
    """
    seen, own = see(client, promise.pool, promise.plan, promise.own), promise.own
    before, files = seen.applied or {}, {plan.name: plan.file for plan in own.plans}
    earlier = remembered.deployments if remembered else {}
    plan: dict[str, Any] = copy.deepcopy(dict(promise.plan))
    plan["deployments"] += copy.deepcopy([dict(own_plan.deployment) for own_plan in own.plans])
    promise.placement.apply(plan, promise.pool)
    changes, applied = dict[str, _Change](), dict[str, Applied]()
    for deployment in plan["deployments"]:
        name = deployment["name"]
        file = deployment.get("schedules") or []
        slugs = tuple(schedule["slug"] for schedule in file)
        now = Applied(_digest(file), slugs, own.store if name in files else "")
        lost = earlier.get(name) if seen.applied is None or name not in seen.deployments else None
        if lost or name in seen.deployments:
            # Prefect: kept-schedules. Without the key, `prefect deploy` leaves the schedules alone.
            deployment.pop("schedules", None)
            # On a server that `up` does not know, schedules may be people's; otherwise none were applied.
            unknown = now if seen.applied is None else Applied("", ())
            changes[name] = _Change(file, now, lost.applied if lost else before.get(name, unknown), lost)
        applied[name] = now
    refused = _deploy_each(plan, promise, files)
    deployments = see(client, promise.pool, promise.plan, own).deployments
    # Of several, Prefect skips one that it does not understand.
    skipped = {
        name: f"{file}: expected a deployment that Prefect accepts; it skips this one; correct it"
        for name, file in files.items()
        if name not in deployments
    }
    refused = {**skipped, **refused}
    done = {name: change for name, change in changes.items() if name not in refused}
    removed = [words for name, change in done.items() for words in change.make(client, deployments[name])]
    for name, deployment in seen.dropped.items():
        removed.append(_drop(client, deployment, before[name]))
    new = {name: now for name, now in applied.items() if name not in refused}
    as_before = {name: a for name, a in before.items() if name in refused or not own.has_dropped(name, a)}
    _remember(client, {**as_before, **new})
    digests = {plan.name: plan.digest for plan in own.plans}
    return Deployed(
        tuple(name for name, change in done.items() if change.keeps),
        tuple(removed),
        {digests[name]: words for name, words in refused.items()},
        tuple(
            name
            for name, deployment in deployments.items()
            if _said(deployment) != _said(seen.deployments.get(name)) or (name in done and done[name].changed)
        ),
    )


def _said(deployment: DeploymentResponse | None) -> dict[str, Any] | None:
    """Return what is the same after the same has been deployed again, without schedules."""
    return deployment.model_dump(mode="json", include=_LASTING) if deployment else None


@dataclass(frozen=True)
class _Change:
    """The pending change to the schedules of one deployment."""

    file: list[dict[str, Any]]
    now: Applied
    """The schedules in the file now; `before`, those applied last."""
    before: Applied
    lost: Changed | None
    """The remembered state of the deployment, if the server has lost it."""

    @property
    def changed(self) -> bool:
        return self.now.digest != self.before.digest

    @property
    def keeps(self) -> bool:
        """Whether there are schedules that stay as people left them."""
        return not self.changed and bool(self.file or (self.lost and self.lost.schedules))

    def make(self, client: SyncPrefectClient, deployment: DeploymentResponse) -> list[str]:
        """Apply the change to a deployment; return a description of each removed schedule."""
        if self.lost:
            _put_back(client, deployment, self.lost)
            deployment = client.read_deployment(deployment.id)
        if not self.changed:
            return []
        slugs = {schedule["slug"] for schedule in self.file}
        theirs = [schedule for schedule in deployment.schedules if self.before.includes(schedule.slug)]
        # A schedule with the same slug is created again.
        for schedule in deployment.schedules:
            if schedule in theirs or schedule.slug in slugs:
                client.delete_deployment_schedule(deployment.id, schedule.id)
        if self.file:
            client.create_deployment_schedules(deployment.id, [_schedule(schedule) for schedule in self.file])
        removed_slugs = [schedule.slug for schedule in theirs if schedule.slug not in slugs]
        return [f"the schedule {slug} of {deployment.name}" for slug in removed_slugs]


def _schedule(values: Mapping[str, Any]) -> DeploymentScheduleCreate:
    """Return a schedule of `prefect.yaml` in the form that the server accepts.

    Raises:
        ValueError: it is not a schedule, or it never comes due.
    """
    fields = {name: value for name, value in values.items() if value is not None and name != "replaces"}
    about = {
        name: fields.pop(name) for name in ("active", "max_scheduled_runs", "parameters", "slug") if name in fields
    }
    kinds = {"cron": CronSchedule, "interval": IntervalSchedule, "rrule": RRuleSchedule}
    schedule: Any = next((kind(**fields) for name, kind in kinds.items() if name in fields), None)
    if isinstance(schedule, CronSchedule) and not comes_due(schedule):
        raise ValueError(f"{schedule.cron!r} never comes due")
    return DeploymentScheduleCreate(schedule=schedule, **about)


def comes_due(schedule: CronSchedule) -> bool:
    """Return whether a schedule comes due within fifty years; 31 February never does."""
    times: Any = croniter(schedule.cron, datetime.now(UTC), day_or=schedule.day_or)  # type: ignore[no-untyped-call]
    try:
        times.get_next()
    except CroniterBadDateError:
        return False
    return True


def _drop(client: SyncPrefectClient, deployment: DeploymentResponse, applied: Applied) -> str:
    """Remove a deployment that is in no file any more, or only the file's schedules if people made others."""
    theirs = [schedule for schedule in deployment.schedules if applied.includes(schedule.slug)]
    if len(theirs) == len(deployment.schedules):
        client.delete_deployment(deployment.id)
        return f"the deployment {deployment.name}"
    for schedule in theirs:
        client.delete_deployment_schedule(deployment.id, schedule.id)
    return f"the schedules of {deployment.name} that came from {'its own file' if applied.store else PLAN.name}"


def _put_back(client: SyncPrefectClient, deployment: DeploymentResponse, before: Changed) -> None:
    for schedule in deployment.schedules:
        client.delete_deployment_schedule(deployment.id, schedule.id)
    if before.schedules:
        schedules = [DeploymentScheduleCreate.model_validate(schedule) for schedule in before.schedules]
        client.create_deployment_schedules(deployment.id, schedules)
    if before.paused:
        client.pause_deployment(deployment.id)


def _deploy_each(plan: dict[str, Any], promise: Promise, files: Mapping[str, Path]) -> dict[str, str]:
    """Have Prefect deploy all of a plan at once; return why it refused the users' own `files`, by deployment.

    Raises:
        PrefectFailed: it refused `prefect.yaml`, or could not be asked.
    """
    try:
        _deploy(plan, promise)
        return {}
    except PrefectFailed:
        if not files:
            raise
    # A file of a user must not keep the others from being deployed.
    parts = {d["name"]: {**plan, "deployments": [d]} for d in plan["deployments"] if d["name"] in files}
    _deploy({**plan, "deployments": [d for d in plan["deployments"] if d["name"] not in files]}, promise)
    refused = dict[str, str]()
    for name, part in parts.items():
        try:
            _deploy(part, promise, files[name])
        except PrefectFailed as error:
            refused[name] = str(error)
    return refused


def _deploy(plan: dict[str, Any], promise: Promise, file: Path = PLAN) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / PLAN.name, Path(folder) / "said"
        # JSON is YAML, but has no dates.
        path.write_text(json.dumps(plan, default=str), encoding="utf-8")
        with log.open("wb") as output:
            process = subprocess.Popen(
                prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(path)),
                cwd=ROOT,
                env=promise.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            code = _ended(process, promise.meanwhile)
        finally:
            process.kill()
            process.wait()
        if code:
            words = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-400:]
            problem = words if code > 0 else f"it did not end within {START_SECONDS} s"
            raise PrefectFailed(
                f"expected `prefect deploy --all` to accept {file}; found: {problem}; correct that"
                f"{', then start again' if file == PLAN else ''}"
            )


def _ended(process: subprocess.Popen[bytes], meanwhile: Callable[[], object]) -> int:
    """Return the exit code; negative if the process does not end."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            return process.wait(_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            meanwhile()
    return -1


def _digest(schedules: object) -> str:
    return hashlib.sha256(json.dumps(schedules, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _remember(client: SyncPrefectClient, applied: Mapping[str, Applied]) -> None:
    value = {name: asdict(deployment) for name, deployment in applied.items()}
    if client.read_variable_by_name(VARIABLE):
        client.update_variable(VariableUpdate(name=VARIABLE, value=value))
    else:
        client.create_variable(VariableCreate(name=VARIABLE, value=value, tags=["idxflow"]))


def ensure_automation(client: SyncPrefectClient, seconds: int, enabled: bool = True) -> None:
    """Make the server mark a run as Crashed if its heartbeats stop for `seconds`.

    An automation that a user has disabled stays disabled; `enabled` applies to a new one. Based on
    https://docs.prefect.io/v3/advanced/detect-zombie-flows.
    """
    automation = _automation(seconds)
    existing = client.read_automations_by_name(AUTOMATION)
    if not existing:
        client.create_automation(automation.model_copy(update={"enabled": enabled}))
    elif existing[0].trigger.model_dump(exclude={"id"}) != automation.trigger.model_dump(exclude={"id"}):
        client.update_automation(existing[0].id, automation.model_copy(update={"enabled": existing[0].enabled}))


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
    message = f"no heartbeat for {seconds} s: its process or its machine is gone; run it again to resume"
    return AutomationCore(
        name=AUTOMATION,
        description="Created by `idxflow up`. Without it, a run whose machine has died stays Running forever.",
        trigger=trigger,
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message=message, force=False)],
    )
