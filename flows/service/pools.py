"""Work pools that others serve: how the runs that `idxflow up` deploys to one get their code, settings and store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from prefect.client.schemas.objects import WorkPool

from flows.settings import POOL, ROOT, SOURCE_VARIABLE
from storage.datasets.catalog import one_line, read_toml, shown
from storage.datasets.json_schema import KINDS
from storage.errors import ConfigError
from storage.objects.address import is_address
from storage.store import STORE_VARIABLE, store_address
from storage.words import meant
from tasks.sources.origins import OPEN_SOURCE

PROCESS = "process"
"""The type of the pools whose worker starts runs as processes of its own machine."""
IMAGE_CHECKOUT = "/opt/idxflow"
"""Where deploy/Dockerfile puts the checkout."""
_DOCKER = "docker"
_PULL = "prefect.deployments.steps.set_working_directory"
_SECRET = re.compile(r"(?:SECRET|PASSWORD|TOKEN|KEY|AUTH_STRING)$")
"""The end of the name of a variable that holds a secret, such as AWS_SECRET_ACCESS_KEY."""
_HELP = "docs/how-to/fleet.md"


@dataclass(frozen=True)
class Wanted:
    """What a user gives for the runs of a pool."""

    file: str | None = None
    """`--job-variables`: a TOML file of job variables, by the names that the pool's base job template has."""
    checkout: str | None = None
    """`--checkout`: the folder of idxflow's source code where the runs are."""
    store: str | None = None
    """`--store`."""


@dataclass(frozen=True)
class Placement:
    """How the deployments of a plan are put into a work pool."""

    kind: str = PROCESS
    """The pool's type, as Prefect names it: process, docker, kubernetes, …"""
    is_foreign: bool = False
    """Whether the pool and its workers are not those of `idxflow up`."""
    job_variables: Mapping[str, Any] = field(default_factory=dict)
    checkout: str = ""
    """The folder that runs start in; empty: that which was deployed from."""
    warnings: tuple[str, ...] = ()

    def apply(self, plan: dict[str, Any], pool: str) -> None:
        """Put the deployments of a plan, in the form of `prefect.yaml`, into a pool."""
        for deployment in plan["deployments"]:
            before = deployment.get("work_pool") or {}
            variables = {**(before.get("job_variables") or {}), **self.job_variables}
            # Prefect: pool-of-all. `prefect deploy --all` accepts no --pool if there are several deployments.
            deployment["work_pool"] = {**before, "name": pool, **({"job_variables": variables} if variables else {})}
        if self.checkout:
            # Prefect: pull-of-an-image. Without such a step, it takes a folder of this machine, or /opt/prefect.
            plan["pull"] = [{_PULL: {"directory": self.checkout}}]


def placed(pool: WorkPool, wanted: Wanted, plan: Mapping[str, Any]) -> Placement:
    """Return how the deployments of `plan` are put into `pool`.

    Raises:
        ConfigError: the file cannot be read, or is not one for this pool; or runs there would find neither the code nor
            the store.
    """
    variables = _read(pool, wanted.file) if wanted.file else {}
    if pool.type != PROCESS:
        _check_image(pool, variables, wanted.file)
    is_foreign = pool.name != POOL or pool.type != PROCESS
    # The worker of `up` passes its own store on.
    variables, warnings = _with_store(pool, variables, wanted) if is_foreign else (variables, [])
    return Placement(pool.type, is_foreign, variables, _checkout(pool, wanted.checkout, plan), tuple(warnings))


def _properties(pool: WorkPool) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (pool.base_job_template.get("variables") or {}).get("properties") or {}
    return found


def _read(pool: WorkPool, file: str) -> dict[str, Any]:
    """Return the job variables in a file, checked against the pool's base job template."""
    path, variables = read_toml(Path(file), "job variables in TOML", f"leave out --job-variables ({_HELP})")
    known = _properties(pool)
    for name, value in variables.items():
        if name not in known:
            raise ConfigError(
                f"{path}: expected job variables of the work pool {pool.name}, which is of type {pool.type} "
                f"({', '.join(known) or 'it has none'}); found {one_line(name)}{meant(name, known, 0.5)}; correct its "
                "spelling, remove it, or add it to the pool's base job template"
            )
        _check(path, pool, name, value)
    for name, value in _environment(variables).items():
        if _is_secret(name, value):
            raise ConfigError(
                f"{path}: expected no secret in env, which Prefect's server stores and shows; found {one_line(name)}; "
                f"remove it, and give it to the runs by other means, such as a Secret of Kubernetes: {_HELP}"
            )
        if name == STORE_VARIABLE and is_address(value):
            # Without a password, for instance.
            store_address(value)
    return variables


def _is_secret(name: str, value: str) -> bool:
    if name.startswith("IDXFLOW_"):
        # Those that end in KEY name files.
        return name == SOURCE_VARIABLE and not re.search(OPEN_SOURCE, value)
    return _SECRET.search(name.upper()) is not None


def _check(path: Path, pool: WorkPool, name: str, value: Any) -> None:
    variables = pool.base_job_template["variables"]
    schema = {"definitions": variables.get("definitions", {}), **_without_null(variables["properties"][name])}
    error = best_match(Draft202012Validator(schema).iter_errors(value))
    if error:
        where = ".".join(map(str, (name, *error.absolute_path)))
        raise ConfigError(
            f"{path}: expected {one_line(where)} to be {_expected(error)}, as the work pool {pool.name} has it; "
            f"found {shown(error.instance)}; correct it"
        )


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a variable without the choice of null, which TOML does not have."""
    others = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**rest, **others[0]} if len(others) == 1 else {**schema}


def _expected(error: ValidationError) -> str:
    wanted: Any = error.validator_value
    if error.validator == "type":
        names = [wanted] if isinstance(wanted, str) else wanted
        return " or ".join(KINDS[name][0] if name in KINDS else "a list" for name in names)
    if error.validator == "enum":
        return f"one of {', '.join(map(str, wanted))}"
    return f"such that {error.validator} holds: {one_line(str(wanted))}"


def _environment(variables: Mapping[str, Any]) -> Mapping[str, str]:
    found: Mapping[str, str] = variables.get("env") or {}
    return found


def _default(pool: WorkPool, name: str) -> Any:
    return _properties(pool).get(name, {}).get("default")


def _check_image(pool: WorkPool, variables: Mapping[str, Any], file: str | None) -> None:
    if "image" in _properties(pool) and not (variables.get("image") or _default(pool, "image")):
        raise ConfigError(
            f"expected an image with idxflow for the work pool {pool.name}, as Prefect's own has none; found none in "
            f'{file or "--job-variables"}; put the one of deploy/Dockerfile there: image = "registry/idxflow:tag"'
        )


def _with_store(pool: WorkPool, variables: dict[str, Any], wanted: Wanted) -> tuple[dict[str, Any], list[str]]:
    """Return the job variables with the store that the runs use, and what may be wrong with it."""
    named = {**(_default(pool, "env") or {}), **_environment(variables)}.get(STORE_VARIABLE)
    given = store_address(wanted.store) if wanted.store else ""
    if named and given and named != given:
        raise ConfigError(
            f"expected one store for the work pool {pool.name}; found {given} (--store), and {named} (env of the job "
            "variables); name it in one of the two"
        )
    if pool.type == PROCESS:
        # Otherwise a worker's own, which its environment names.
        return (_put(variables, given) if given else variables), []
    store = named or given or store_address()
    if is_address(store):
        return _put(variables, store), []
    if not named:
        raise ConfigError(
            f"expected a store that the runs of the work pool {pool.name} reach, which is of type {pool.type}; found "
            f"{store}, a folder of this machine; give an address, such as --store s3://bucket/prefix"
        )
    return variables, list(_lost(pool, variables, store))


def _put(variables: Mapping[str, Any], store: str) -> dict[str, Any]:
    return {**variables, "env": {**_environment(variables), STORE_VARIABLE: store}}


def _lost(pool: WorkPool, variables: Mapping[str, Any], store: str) -> Iterator[str]:
    """Yield a warning if a folder in a container is in no volume."""
    volumes = variables.get("volumes") or _default(pool, "volumes") or []
    mounts = [volume.split(":")[1] for volume in volumes if isinstance(volume, str) and ":" in volume]
    if pool.type == _DOCKER and any(PurePosixPath(store).is_relative_to(mount) for mount in mounts):
        return
    yield (
        f"the store {store} is a folder in the container of each run, and is lost with it unless the work pool "
        f"{pool.name} mounts a volume there that all its runs share; better give an address: {STORE_VARIABLE} = "
        '"s3://bucket/prefix"'
    )


def _checkout(pool: WorkPool, given: str | None, plan: Mapping[str, Any]) -> str:
    if given and not PurePosixPath(given).is_absolute():
        raise ConfigError(
            f"expected --checkout to be an absolute path where the runs are, such as {IMAGE_CHECKOUT}; found "
            f"{shown(given)}; give one that begins with /"
        )
    if plan.get("pull"):
        if given:
            raise ConfigError(
                f"expected no --checkout, because {ROOT / 'prefect.yaml'} says with `pull` where the code is; found "
                f"{given}; leave the option out, or remove `pull`"
            )
        return ""
    return given or (IMAGE_CHECKOUT if pool.type != PROCESS else "")
