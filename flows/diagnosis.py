"""Diagnose what would stop a run from starting or finishing: each problem comes with the command that fixes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from flows.endings import settle
from flows.settings import POOL, ROOT
from flows.terminal.text import size
from storage.errors import IdxflowError, PrefectFailed
from storage.ledger import Ledger
from storage.objects.cache import CACHE_VARIABLE, SIZE_VARIABLE, Cache
from storage.registry import Registry
from storage.store import Store
from storage.verify import for_the_next_run, verify
from storage.words import counted
from storage.workers.address import chosen
from storage.workers.opening import workers_for
from tasks.sources import proxies

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, StateType
    from prefect.client.schemas.responses import DeploymentResponse

LEAST_FREE_BYTES = 2_000_000_000
"""Enough for decoded MNIST, some models and reports, and Prefect's database."""
LATE = timedelta(minutes=2)
_IMPORT_SECONDS = 120
_QUERY_SECONDS = 20
_STEPS = ("decoding.pairs", "validate", "normalize", "train", "evaluate")
"""Those whose code workers need."""
_REQUESTS = 3
"""Of which the quickest says how far away object storage is."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check."""

    verdict: Literal["ok", "warning", "problem"]
    what: str
    found: str
    remedy: str = ""
    """The command that fixes it, or what to do; empty if nothing is wrong."""


def diagnose(store: Store, workers: str | None = None, insecure_workers: bool = False) -> Iterator[Diagnosis]:
    """Check everything that a run needs, and yield the result of each check as soon as it is known.

    Args:
        store: of the run.
        workers: who computes the parts of its data; None: what the environment says.
        insecure_workers: whether a scheduler on another machine need not ask for certificates.
    """
    yield _versions()
    yield _tensorflow()
    if store.cache:
        yield _object_storage(store)
        yield _cache(store.cache)
    yield _disk(store)
    yield _whole(store)
    yield _clock(store)
    yield _zones()
    yield _proxies()
    yield from _alerts(store)
    if chosen(workers):
        yield _workers(workers, insecure_workers)
    yield from _server(store)


def diagnose_without_store(error: IdxflowError) -> Iterator[Diagnosis]:
    """Yield what can be said of this machine if object storage cannot be opened, which `error` explains."""
    yield _versions()
    yield _tensorflow()
    yield Diagnosis("problem", "object storage", *_parted(error))
    yield _zones()
    yield _proxies()


def _versions() -> Diagnosis:
    from packaging.requirements import Requirement

    with (ROOT / "pyproject.toml").open("rb") as stream:
        declared = [Requirement(line) for line in tomllib.load(stream)["project"]["dependencies"]]
    wrong = []
    for requirement in declared:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} is not {requirement.specifier}")
    if wrong:
        remedy = "make clean && make run: installs the locked versions"
        return Diagnosis("problem", "packages", "; ".join(wrong), remedy)
    return Diagnosis("ok", "packages", f"{len(declared)} in the declared ranges, Prefect {version('prefect')}")


def _tensorflow() -> Diagnosis:
    # In a process of its own: on a processor without AVX the import ends the process.
    # Garbage collection would slow the import down: see `relax_garbage_collection`.
    code = (
        f"import gc, sys; gc.disable(); sys.path.insert(0, {str(ROOT)!r}); "
        "from tasks.model.network import tensorflow; print(tensorflow().__version__)"
    )
    try:
        # -P: modules in the current folder must not shadow the libraries.
        process = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Diagnosis("problem", "TensorFlow", f"not imported within {_IMPORT_SECONDS} s", "free memory or CPU time")
    if process.returncode == 0:
        return Diagnosis("ok", "TensorFlow", f"{process.stdout.split()[-1]} can be imported")
    last_line = process.stderr.strip().splitlines()[-1:] or [f"ended by signal {-process.returncode}"]
    remedy = (
        "fetching and validating work without it; for training, use a processor with AVX, then `make clean && make run`"
    )
    return Diagnosis("problem", "TensorFlow", f"cannot be imported: {last_line[0]}", remedy)


def _object_storage(store: Store) -> Diagnosis:
    """Check that the store can be used with these credentials, and keeps the promise that all rests on."""
    try:
        store.objects.probe()
        seconds = min(_seconds_of_a_request(store) for _ in range(_REQUESTS))
    except IdxflowError as error:
        return Diagnosis("problem", "object storage", *_parted(error))
    finding = f"{store.address} can be written, and creates an object only if there is none; a listing takes "
    return Diagnosis("ok", "object storage", f"{finding}{seconds * 1e3:,.0f} ms")


def _seconds_of_a_request(store: Store) -> float:
    before = time.perf_counter()
    store.objects.list("")
    return time.perf_counter() - before


def _cache(cache: Cache) -> Diagnosis:
    """Check the folder that keeps files of object storage on this machine."""
    place = next(folder for folder in (cache.folder, *cache.folder.parents) if folder.is_dir())
    if not os.access(place, os.W_OK):
        finding = f"{cache.folder} cannot be written"
        return Diagnosis("problem", "cache", finding, f"correct the permissions, or set {CACHE_VARIABLE} to another")
    used, free = cache.used(), shutil.disk_usage(place).free
    finding = f"{size(used)} of at most {size(cache.bound)} at {cache.folder}; {size(free)} free"
    if free < cache.bound - used:
        remedy = f"free space there, or set {SIZE_VARIABLE} to less, or {CACHE_VARIABLE} to a folder on another disk"
        return Diagnosis("warning", "cache", f"it can fill the disk: {finding}", remedy)
    return Diagnosis("ok", "cache", finding)


def _disk(store: Store) -> Diagnosis:
    place = next(folder for folder in (store.root, *store.root.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    finding = f"{free / 1e9:,.1f} GB free at {place}"
    if free < LEAST_FREE_BYTES:
        # `gc` frees what a store elsewhere takes there, not here.
        here = f"free space, or another folder with {CACHE_VARIABLE}"
        gc = f"{store.command('gc')}, or another store with --store"
        return Diagnosis("warning", "disk", finding, here if store.leases else gc)
    return Diagnosis("ok", "disk", finding)


def _whole(store: Store) -> Diagnosis:
    if not store.exists():
        return Diagnosis("ok", "store", f"none yet at {store.address}; the first run creates it")
    try:
        store.prepare()
        settle(store)
        verdict = verify(store, contents=False)
    except IdxflowError as error:
        whose = str(error), "chown it to the user that runs the worker, or choose another"
        return Diagnosis("problem", "store", *(_parted(error) if store.cache else whose))
    summary = (
        f"{counted(verdict.entries, 'entry', 'entries')}, {counted(verdict.versions, 'version')}, "
        f"{counted(verdict.records, 'ledger record')}, sizes checked"
    )
    if verdict.damage:
        summary = f"{len(verdict.damage)} damaged, first {verdict.damage[0].where}"
        return Diagnosis("problem", "store", summary, store.command("verify"))
    needed = {str(path) for name in store.datasets() for path in for_the_next_run(Registry(store, name))}
    rest = [finding for finding in verdict.leftovers if finding.where not in needed]
    if needed:
        summary = f"{summary}; {len(needed)} unfinished, which the next run resumes"
    if rest:
        return Diagnosis("warning", "store", f"{summary}; {len(rest)} left over by killed runs", store.command("gc"))
    return Diagnosis("ok", "store", summary)


def _clock(store: Store) -> Diagnosis:
    """Report where the ledgers show a wrong clock; a clock that has been corrected needs no action."""
    now = datetime.now(UTC)
    try:
        jumps = [(name, jump) for name in store.datasets() for jump in Ledger(store, name).recent_jumps(now)]
    except IdxflowError as error:
        return Diagnosis("problem", "clock", *_parted(error))
    ahead = [(name, jump) for name, jump in jumps if jump.ahead]
    if ahead:
        name, jump = ahead[0]
        finding = f"the ledger of {name} has times in the future: {jump.problem}"
        return Diagnosis(
            "warning", "clock", finding, "check the clock with timedatectl; if it is right now, ignore this"
        )
    if jumps:
        name, jump = jumps[-1]
        return Diagnosis("ok", "clock", f"set back before {jump.name} of {name}; the records are in order")
    return Diagnosis("ok", "clock", f"{now:%Y-%m-%d %H:%M} UTC, later than every record in the ledgers")


def _zones() -> Diagnosis:
    plan = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    zones = {s["timezone"] for d in plan["deployments"] for s in d.get("schedules", ()) if s.get("timezone")}
    for zone in sorted(zones):
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError):
            return Diagnosis("problem", "time zones", f"{zone!r} is unknown on this machine", "apt-get install tzdata")
    now = datetime.now().astimezone()
    return Diagnosis(
        "ok", "time zones", f"{', '.join(sorted(zones)) or 'none used'}; this machine's clock: {now:%H:%M %Z}"
    )


def _alerts(store: Store) -> Iterator[Diagnosis]:
    """Report the alerts of a store, if there are any."""
    from flows.alerts import settings
    from flows.alerts.delivery import troubles

    try:
        names = [alert.name for alert in settings.alerts(store.address)]
        found = troubles(store)
    except IdxflowError as error:
        yield Diagnosis("warning", "alerts", *_parted(error))
        return
    if found:
        name, problem = found[0]
        again = store.command(f"alerts test {name}")
        yield Diagnosis("warning", "alerts", f"{name}: {problem}", f"correct that, then try it: {again}")
    elif names:
        yield Diagnosis("ok", "alerts", f"{', '.join(names)}; every message was delivered")


def _proxies() -> Diagnosis:
    if problem := proxies.unusable():
        return Diagnosis("problem", "proxies", f"{problem}; archives cannot be fetched", proxies.REMEDY)
    return Diagnosis("ok", "proxies", "proxy settings are usable; local addresses bypass proxies")


def _workers(name: str | None, insecure: bool) -> Diagnosis:
    """Check that the workers can be reached, and have the code and the libraries of this process."""
    try:
        with closing(workers_for(name, insecure)) as workers:
            survey = workers.survey(tuple(f"tasks.{step}" for step in _STEPS))
    except IdxflowError as error:
        return Diagnosis("problem", "workers", *_parted(error))
    if survey.different:
        worker, found = next(iter(survey.different.items()))
        finding = (
            f"{len(survey.different)} of {counted(survey.count, 'worker')} would be refused, first {worker}: {found}"
        )
        return Diagnosis("problem", "workers", finding, "install the same there, and start the workers again")
    return Diagnosis(
        "ok", "workers", f"{counted(survey.count, 'worker')} with the code and the libraries of this machine"
    )


def _settings() -> Diagnosis:
    """Check that Prefect is usable: its settings can be read, and its folder written."""
    from flows.service import configuration
    from flows.service.database import private_home

    try:
        configuration.url()
        home = private_home()
    except PrefectFailed as error:
        return Diagnosis("problem", "settings", *_parted(error))
    return Diagnosis("ok", "settings", f"can be read; Prefect's folder is {home}")


def _parted(error: IdxflowError) -> tuple[str, str]:
    """Split an error's message into what was found and what to do."""
    finding, _, remedy = str(error).rpartition("; ")
    return finding, remedy


def _server(store: Store) -> Iterator[Diagnosis]:
    from flows.service import configuration
    from flows.service.client import connected_client

    settings = _settings()
    yield settings
    if settings.verdict == "problem":
        return
    try:
        with connected_client() as client:
            yield _same_version(client)
            answers = _database(client, store)
            yield answers
            if answers.verdict == "problem":
                # All other checks query it.
                return
            up = store.command("up")
            for look in (_worker, _deployments, _late, _automation):
                yield look(client, up)
            yield _lifeless(client)
            yield _limits(client)
    except PrefectFailed as error:
        if configuration.source():
            # Every run would use this server.
            yield Diagnosis("problem", "server", *_parted(error))
        else:
            # `idxflow run` does not need one.
            yield Diagnosis(
                "warning",
                "server",
                str(error),
                f"{store.command('up')}: needed for schedules, deployments and the UI",
            )


def _same_version(client: SyncPrefectClient) -> Diagnosis:
    ours, theirs = client.client_version(), client.api_version()
    if ours.split(".")[:2] != theirs.split(".")[:2]:
        finding = f"{theirs} at {client.api_url}, but {ours} here"
        return Diagnosis("problem", "server", finding, "install the same Prefect on both sides")
    return Diagnosis("ok", "server", f"Prefect {theirs} at {client.api_url}")


def _database(client: SyncPrefectClient, store: Store) -> Diagnosis:
    """Check that the server answers queries that need its database, and still has the right file open."""
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from flows.service import sqlite
    from flows.service.deployments import read_plan, see

    up = _running_up(client)
    file = Path(up["database"]) if up.get("database") else None
    restart = "`idxflow up` restarts the server by itself within seconds" if up else "restart the server"
    if file and up.get("opened") and sqlite.identity(file) != tuple(up["opened"]):
        happened = "replaced" if file.exists() else "removed"
        return Diagnosis("problem", "database", f"{file} was {happened} while the server was running", restart)
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: _QUERY_SECONDS}):
            see(client, POOL, read_plan())
    except Exception as error:
        # The client may raise anything; the server has passed its health check.
        finding = f"the server at {client.api_url} answers its health check, but not queries ({type(error).__name__})"
        trouble = sqlite.trouble(file, store.command("gc")) if file else None
        return Diagnosis("problem", "database", finding, trouble or "read the server's log, then restart it")
    if file and (full := sqlite.full_disk(file, store.command("gc"))):
        finding, _, remedy = full.rpartition("; ")
        return Diagnosis("problem", "database", finding, remedy)
    return Diagnosis("ok", "database", "answers queries")


def _running_up(client: SyncPrefectClient) -> dict[str, Any]:
    """Return what a running `idxflow up` reports about itself; empty if none manages this server."""
    from prefect.settings import PREFECT_HOME

    from flows.service.lock import running

    return running(PREFECT_HOME.value() / "idxflow", str(client.api_url).rstrip("/"))


def _worker(client: SyncPrefectClient, up: str) -> Diagnosis:
    from prefect.exceptions import ObjectNotFound

    pools = sorted({d.work_pool_name for d in _ours(client) if d.work_pool_name}) or [POOL]
    for pool in pools:
        try:
            work_pool = client.read_work_pool(pool)
        except ObjectNotFound:
            return Diagnosis("problem", "worker", f"no work pool {pool!r}", _restore_remedy(client, up))
        if work_pool.is_paused:
            return Diagnosis(
                "problem", "worker", f"the pool {pool!r} is paused", f"idxflow prefect work-pool resume {pool}"
            )
        if not any(w.status == "ONLINE" for w in client.read_workers_for_work_pool(pool)):
            finding = f"none polls the pool {pool!r}, so no run starts"
            return Diagnosis("problem", "worker", finding, _start_remedy(up, pool, work_pool.type))
    return Diagnosis("ok", "worker", f"polling {', '.join(pools)}")


def _start_remedy(up: str, pool: str, kind: str) -> str:
    """Return how to start a worker of a pool, which is of type `kind`."""
    start = f"idxflow prefect worker start --pool {pool} --type {kind}"
    # `up` would take the deployments back to its own pool.
    return f"{up}, or {start}" if pool == POOL else f"{start}, where its runs are to be started from"


def _restore_remedy(client: SyncPrefectClient, up: str) -> str:
    if _running_up(client):
        return "wait: the running `idxflow up` restores it within a minute"
    return up


def _ours(client: SyncPrefectClient) -> list[DeploymentResponse]:
    return [d for d in client.read_deployments() if (d.entrypoint or "").startswith("flows.")]


def _deployments(client: SyncPrefectClient, up: str) -> Diagnosis:
    from prefect.client.schemas.schedules import CronSchedule

    from flows.service.deployments import comes_due

    ours = _ours(client)
    if not ours:
        return Diagnosis("problem", "deployments", "none", _restore_remedy(client, up))
    paused = [d for d in ours if d.paused]
    if paused:
        # Prefect: resume-deployment. Its command line has no command for this.
        remedy = f"idxflow prefect api POST /deployments/{paused[0].id}/resume_deployment"
        return Diagnosis("warning", "deployments", f"paused, so no runs are scheduled: {_names(paused)}", remedy)
    for deployment, schedule in ((d, s) for d in ours for s in d.schedules if s.active):
        if isinstance(schedule.schedule, CronSchedule) and not comes_due(schedule.schedule):
            finding = f"a schedule of {deployment.name} never comes due: {schedule.schedule.cron}"
            remedy = f"idxflow prefect deployment schedule delete {_full_name(client, deployment)} {schedule.id}"
            return Diagnosis("warning", "deployments", finding, f"{remedy} -y; then create one for a day that exists")
    asleep = [d for d in ours if d.schedules and not any(s.active for s in d.schedules)]
    if asleep:
        first = asleep[0]
        remedy = f"idxflow prefect deployment schedule resume {_full_name(client, first)} {first.schedules[0].id}"
        return Diagnosis("warning", "deployments", f"all schedules are paused: {_names(asleep)}", remedy)
    return Diagnosis("ok", "deployments", _names(ours))


def _full_name(client: SyncPrefectClient, deployment: DeploymentResponse) -> str:
    """Return the name by which Prefect's commands know a deployment."""
    return f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"


def _names(deployments: list[DeploymentResponse]) -> str:
    return ", ".join(sorted(deployment.name for deployment in deployments))


def _limits(client: SyncPrefectClient) -> Diagnosis:
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy

    for deployment in _ours(client):
        limit, options = deployment.global_concurrency_limit, deployment.concurrency_options
        if limit and limit.active_slots >= limit.limit:
            cancels = options and options.collision_strategy == ConcurrencyLimitStrategy.CANCEL_NEW
            fate = "is cancelled" if cancels else "waits"
            finding = f"{deployment.name} already runs ({limit.active_slots} of {limit.limit}); a new run {fate}"
            return Diagnosis(
                "warning",
                "limits",
                finding,
                "wait for it, or idxflow prefect flow-run ls --state RUNNING and cancel it",
            )
    return Diagnosis("ok", "limits", "no deployment is at its limit")


def _late(client: SyncPrefectClient, up: str) -> Diagnosis:
    from prefect.client.schemas.objects import StateType

    now = datetime.now(UTC)
    late = [run for run in _runs(client, StateType.SCHEDULED) if now - (run.next_scheduled_start_time or now) > LATE]
    if late:
        pool = late[0].work_pool_name or POOL
        remedy = f"start a worker: {_start_remedy(up, pool, client.read_work_pool(pool).type)}"
        return Diagnosis("problem", "late runs", f"{len(late)}, first {late[0].name!r}", remedy)
    return Diagnosis("ok", "late runs", "none")


def _lifeless(client: SyncPrefectClient) -> Diagnosis:
    from prefect.client.schemas.objects import StateType

    now = datetime.now(UTC)
    runs = _runs(client, StateType.RUNNING)
    old = [run for run in runs if run.start_time and now - run.start_time > timedelta(days=1)]
    if old:
        # Prefect's default if no process ends the run: server.services.cancellation_cleanup.cancelling_timeout_seconds.
        remedy = f"idxflow prefect flow-run cancel {old[0].id}; if its process is gone, that takes five minutes"
        return Diagnosis("warning", "old runs", f"{len(old)} have been running for more than a day", remedy)
    return Diagnosis("ok", "old runs", "none has been running for more than a day")


def _automation(client: SyncPrefectClient, up: str) -> Diagnosis:
    from flows.service.deployments import AUTOMATION

    automations = client.read_automations_by_name(AUTOMATION)
    if not automations:
        return Diagnosis(
            "warning", "dead runs", "no automation ends runs whose machine died", _restore_remedy(client, up)
        )
    if not automations[0].enabled:
        remedy = f"idxflow prefect automation resume --id {automations[0].id}"
        return Diagnosis("warning", "dead runs", f"the automation {AUTOMATION!r} is disabled", remedy)
    return Diagnosis("ok", "dead runs", "ended by an automation")


def _runs(client: SyncPrefectClient, kind: StateType) -> list[FlowRun]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.sorting import FlowRunSort

    run_filter = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[kind])))
    return client.read_flow_runs(flow_run_filter=run_filter, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
