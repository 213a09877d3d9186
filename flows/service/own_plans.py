"""Read the files of the users' own data sets that are scheduled, for `idxflow up`.

They are the users', who may break them at any time. What cannot be used is a sentence, and ends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect.client.orchestration import SyncPrefectClient
from pydantic import BaseModel, ConfigDict, Field

from flows import own_schedules
from flows.own_schedules import ENTRYPOINT
from flows.run import Request
from flows.schedule import CatchUp
from flows.service import deployments
from flows.service.deployments import Deployed, Own, OwnPlan, Promise, checked_plan
from storage import own_data
from storage.datasets import catalog
from storage.datasets.catalog import BadRow
from storage.datasets.chosen import DAY
from storage.datasets.json_schema import TomlSchema
from storage.datasets.model_errors import checked
from storage.datasets.training import Profile
from storage.errors import ConfigError, DamagedEntry
from storage.files import open_regular
from storage.workers.address import OPEN_WORKERS

_MAX_BYTES = 1 << 16


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _WorkPool(_Form):
    name: str


class _Limit(_Form):
    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]


class _Parameters(_Form):
    dataset: str
    dataset_file: str
    profile: Profile = "default"
    training: dict[str, Any] | None = None
    source: str | None = None
    store: str | None = None
    force: bool = False
    audit: bool = False
    catch_up: CatchUp = "latest"
    quarantine: list[BadRow] | None = None
    quarantine_limit: float | None = Field(default=None, ge=0, le=1)
    as_of: str | None = Field(default=None, pattern=DAY)
    workers: str | None = Field(default=None, pattern=OPEN_WORKERS)


class _Deployment(_Form):
    """What such a file may say: nothing by which it would run commands as the user of `idxflow up`, as by `pull`."""

    name: str
    entrypoint: str
    description: str = ""
    work_pool: _WorkPool | None = None
    concurrency_limit: _Limit | None = None
    tags: list[str] = []
    parameters: _Parameters
    schedules: list[dict[str, Any]] = []


class OwnFiles:
    """The files of the users' own data sets, as one `idxflow up` has seen them."""

    def __init__(self, root: Path, say: Callable[[str], None], elsewhere: str = "") -> None:
        """Prepare to read the files that the store at `root` lists.

        Args:
            say: prints a line.
            elsewhere: the name of the work pool, if its runs cannot see files of this machine: none is deployed there.
        """
        self.root, self.elsewhere = root, elsewhere
        self._say = say
        self._refused = dict[str, str]()
        """Why Prefect has not accepted a file, by the digest of its deployment."""
        self._problems = list[str]()
        """What was wrong with the files when they were read last; it has been printed."""

    def read(self, plan: Mapping[str, Any]) -> Own:
        """Return the deployments in the files as they are now; print what is wrong with a file, once.

        Args:
            plan: the contents of `prefect.yaml`.
        """
        own, problems = read(self.root, plan, self._refused)
        if self.elsewhere:
            problems += [
                f"{one.file}: expected a work pool whose runs can read this machine's files; found {self.elsewhere}; "
                f"the data set {one.name} is not deployed there"
                for one in own.plans
            ]
            own = replace(own, plans=(), held=own.held | {one.name for one in own.plans})
        for problem in problems:
            if problem not in self._problems:
                self._say(f"warning: {problem}")
        self._problems = problems
        return own

    def provide(self, client: SyncPrefectClient, promise: Promise) -> tuple[Promise, Deployed]:
        """Create what is promised; return the promise without the files that Prefect refused, and what was done."""
        deployed = deployments.provide(client, promise)
        if deployed.refused:
            self._refused.update(deployed.refused)
            promise = replace(promise, own=self.read(promise.plan))
        return promise, deployed

    def look_after(self, client: SyncPrefectClient, promise: Promise) -> tuple[Promise, str | None]:
        """Deploy what users have scheduled since, otherwise restore what is missing; return a message, too."""
        own = self.read(promise.plan)
        if own == promise.own:
            return promise, deployments.look_after(client, promise)
        now, deployed = self.provide(client, replace(promise, own=own))
        new = [str(plan.file) for plan in now.own.plans if plan not in promise.own.plans]
        done = [*(f"deployed {file}" for file in new), *(f"removed {what}" for what in deployed.removed)]
        return now, "; ".join(done) or None


def read(root: Path, plan: Mapping[str, Any], refused: Mapping[str, str]) -> tuple[Own, list[str]]:
    """Return the deployments of the users' own data sets, and a sentence for each file that cannot be used.

    Args:
        root: the store that lists them.
        plan: the contents of `prefect.yaml`, whose names they may not have.
        refused: why Prefect has not accepted some of them, by digest.
    """
    try:
        listed = own_data.manifests(root)
    except DamagedEntry as error:
        return Own(str(root), is_complete=False), [str(error)]
    taken = {deployment["name"] for deployment in plan["deployments"]}
    plans, problems = list[OwnPlan](), dict[str, str]()
    for name, manifest in listed.items():
        file = own_schedules.file_of(manifest)
        try:
            own = OwnPlan(file, _deployment(file, name, manifest))
        except FileNotFoundError:
            # Removed, with or without its folder.
            continue
        except ConfigError as error:
            problems[name] = str(error)
            continue
        if name in taken:
            problems[name] = (
                f"{file}: expected a deployment with a name that prefect.yaml does not have; found {name}; give the "
                "data set another name, and schedule it again"
            )
        elif own.digest in refused:
            problems[name] = refused[own.digest]
        else:
            plans.append(own)
    return Own(str(root), tuple(plans), frozenset(problems)), list(problems.values())


def _deployment(file: Path, name: str, manifest: Path) -> dict[str, Any]:
    """Return the deployment in a file.

    Raises:
        FileNotFoundError: there is no file.
        ConfigError: it cannot be used, or the manifest cannot.
    """
    again = f"correct it, or remove the file and schedule {manifest} again"
    try:
        with open_regular(file) as stream:
            data = stream.read(_MAX_BYTES + 1)
        deployment = _only_one(file, data)
    except (FileNotFoundError, ConfigError):
        raise
    except Exception as error:
        # Of what people may write, libraries raise anything.
        is_said = isinstance(error, OSError | ValueError | yaml.YAMLError)
        problem = " ".join(str(getattr(error, "strerror", None) or error).split()) if is_said else "another one"
        raise ConfigError(
            f"{file}: expected the form of prefect.yaml, with one deployment; found {catalog.one_line(problem)}; "
            f"{again}"
        ) from error
    form = checked(_Deployment, deployment, str(file), TomlSchema)
    expected = {"name": name, "entrypoint": ENTRYPOINT, "dataset": name, "dataset_file": str(manifest)}
    actual = form.model_dump() | form.parameters.model_dump()
    for key, value in expected.items():
        if actual[key] != value:
            raise ConfigError(f"{file}: expected {key} to be {value}; found {catalog.shown(actual[key])}; {again}")
    _check_run(file, form.parameters, name)
    return deployment


def _check_run(file: Path, parameters: _Parameters, name: str) -> None:
    """Check that a run would accept the parameters, and finds the data set.

    Raises:
        ConfigError: it would not, or the manifest is that of another one.
    """
    given = parameters.model_dump(exclude={"catch_up"}) | {
        "training": parameters.training or {},
        "quarantine": None if parameters.quarantine is None else tuple(parameters.quarantine),
    }
    try:
        described = Request(**given).resolve()[0].name
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    if described != name:
        raise ConfigError(
            f"{parameters.dataset_file}: expected the manifest of {name}, as {file} has it; found that of {described}; "
            "give it the name again, or remove that file and schedule the manifest again"
        )


def _only_one(file: Path, data: bytes) -> dict[str, Any]:
    """Return the only deployment of a file.

    Raises:
        ConfigError: a schedule is malformed or never comes due.
        Exception: the file has another form; see `_deployment`.
    """
    text = data.decode()
    if len(data) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES:,} bytes")
    # A few aliases of aliases can stand for gigabytes; in braces, Prefect puts secrets and variables.
    if "{{" in text or any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError("an alias, or '{{'")
    found = checked_plan(file, text)["deployments"]
    if len(found) != 1:
        raise ValueError(f"{len(found)} of them")
    slugs = [schedule["slug"] for schedule in found[0].get("schedules") or ()]
    if len(slugs) > len(set(slugs)):
        raise ValueError("two schedules that are the same or have the same slug")
    return dict(found[0])
