"""What the process that commands of tests are forked from has imported and worked out, so that no fork does it again.

Each fork behaves as a new process would; it is only there sooner.
"""

from __future__ import annotations

import gc
import os
import socket
import sqlite3
import ssl
import subprocess
import threading
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pydantic import BaseModel

from storage.records import SPLITS
from tests.support.forkserver import Forked

LATER = (
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PpmImagePlugin",
    "alembic.command",
    "anyio._backends._asyncio",
    "cyclopts.config",
    "cyclopts.help",
    "distributed.cli.dask_scheduler",
    "distributed.cli.dask_worker",
    "flows.alerts.delivery",
    "flows.collect",
    "flows.commands.cli",
    "flows.lineage.asked",
    "flows.monitor",
    "flows.reproducing",
    "flows.retrain",
    "flows.service.client",
    "flows.service.supervisor",
    "flows.sharing",
    "flows.terminal.console",
    "flows.terminal.timings",
    "flows.tuning.flow",
    "flows.watcher",
    "flows.web.application",
    "flows.web.served",
    "hypothesis.extra.numpy",
    "hypothesis.stateful",
    "matplotlib.backends.backend_svg",
    "matplotlib.style",
    "openlineage.client",
    "prefect.artifacts",
    "prefect.server.api.server",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "pyarrow.pandas_compat",
    "rich._emoji_codes",
    "rich.markdown",
    "rich.panel",
    "sklearn.datasets.data",
    "sklearn.datasets.descr",
    "sklearn.model_selection",
    "tasks.adding.add",
    "tests.support.operated",
    "uvicorn",
)
"""What a run imports when it needs it, Prefect with it, what its own Prefect server does, and what tests import."""
MOUNTS = Path("/proc/self/ns/mnt")


def load() -> None:
    """Import what a run of `idxflow` imports, as it does itself, and work out what each fork would."""
    from hypothesis.configuration import notice_initialization_restarted
    from hypothesis.internal.conjecture import providers

    from expectations import engine
    from flows.preload import STEPS
    from flows.settings import relax_garbage_collection
    from storage.runtime import code_digests
    from tasks.model import network

    relax_garbage_collection()
    # Each run would make its own, which takes longer than its checks.
    engine.prepare()
    prepare_expectations()
    network.tensorflow()
    for step in STEPS:
        code_digests.digests(f"tasks.{step}")
    for name in LATER:
        import_module(name)
    prepare_prefect()
    prepare_trust()
    prepare_report()
    fork_confirmations()
    # Each process of tests would look for numbers and texts in all of our modules, to try them as examples. Hypothesis
    # warns of that where it is done before the tests.
    providers._get_local_constants()
    notice_initialization_restarted(warn=False)
    # Collecting all of this again in every command would also copy it.
    gc.freeze()


def prepare_expectations() -> None:
    """Have Great Expectations remember what follows from an expectation alone, and know that of the usual ones."""
    from great_expectations.core.id_dict import IDDict

    from expectations import engine, suites, summary
    from expectations.findings import FINDINGS
    from storage.datasets import catalog

    identify, known = IDDict.to_id, {}

    def to_id(values: Any, *keys: Any, **how: Any) -> Any:
        if keys or how:
            return identify(values, *keys, **how)
        text = repr(sorted(values.items()))
        if text not in known:
            known[text] = identify(values)
        return known[text]

    IDDict.to_id = to_id
    for name in FINDINGS:
        remember_dependencies(engine._kind(name))
    dataset = replace(catalog.find("mnist"), rows={})
    table = {name: np.zeros(2, kind) for name, kind in summary.IMAGE_COLUMNS.items()}
    for name in SPLITS:
        engine.evaluate(suites.images(dataset, name), table)
        engine.evaluate(suites.match(dataset, name), {"index": np.arange(1), "by_chance": np.zeros(1)})
        engine.evaluate(suites.classes(dataset, name), summary.class_table(np.arange(10), 10))


def remember_dependencies(kind: Any) -> None:
    """Have a class of Great Expectations work out once what such an expectation needs: it is asked for that twice."""
    find, known = kind.get_validation_dependencies, {}

    def get_validation_dependencies(
        expectation: Any, execution_engine: Any = None, runtime_configuration: Any = None
    ) -> Any:
        text = repr((expectation.configuration.kwargs, runtime_configuration))
        if text not in known:
            known[text] = find(expectation, execution_engine, runtime_configuration)
        return known[text]

    kind.get_validation_dependencies = get_validation_dependencies


def prepare_prefect() -> None:
    """Have Prefect prepared for all that its commands and servers would otherwise do again in each process."""
    import yaml
    from prefect import plugins
    from sqlalchemy.orm import configure_mappers

    # The blocks and workers of other packages, which each server looks for when it starts.
    plugins.load_prefect_collections()
    # The tables of Prefect, which each server would relate to each other when it asks for the first row.
    configure_mappers()
    # Prefect reads how it logs from a file of YAML, in every command: the parser in C takes a tenth of the time.
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc,assignment]
    read_settings_quickly()
    write_settings_quickly()
    fill_new_databases()
    prepare_models_of_prefect()
    prepare_routes_of_prefect()


def read_settings_quickly() -> None:
    """Have Prefect look at the environment and at the types of its settings once, not for each of 54 groups of them.

    It reads them in each command, and again where some are others for a while. That takes 22 ms, or 12 in this way.
    """
    from pydantic_settings.sources import base
    from pydantic_settings.sources.providers import env

    parse, read = env.parse_env_vars, base.PydanticBaseEnvSettingsSource.__call__
    is_complex = base.PydanticBaseSettingsSource.field_is_complex
    parsed: dict[tuple[Any, ...], tuple[dict[Any, Any], Any]] = {}
    names: dict[tuple[type, type], set[str]] = {}
    complexities: dict[int, tuple[Any, bool]] = {}

    def parse_env_vars(variables: Any, *how: Any) -> Any:
        if variables is not os.environ:
            return parse(variables, *how)
        if how not in parsed or parsed[how][0] != variables._data:
            parsed[how] = dict(variables._data), parse(variables, *how)
        # The caller takes some out.
        return dict(parsed[how][1])

    def call(source: Any) -> dict[str, Any]:
        kind = type(source), source.settings_cls
        if kind not in names:
            fields = source.settings_cls.model_fields.items()
            names[kind] = {key for name, field in fields for _, key, _ in source._extract_field_info(field, name)}
        return {} if names[kind].isdisjoint(source.env_vars) else read(source)

    def field_is_complex(source: Any, field: Any) -> bool:
        if id(field) not in complexities:
            complexities[id(field)] = field, is_complex(source, field)
        return complexities[id(field)][1]

    env.parse_env_vars = parse_env_vars
    base.PydanticBaseEnvSettingsSource.__call__ = call  # type: ignore[method-assign]
    base.PydanticBaseSettingsSource.field_is_complex = field_is_complex  # type: ignore[method-assign]


def write_settings_quickly() -> None:
    """Have Prefect write the settings of a group as variables without those of the groups in it, which it does next.

    With them, as in each command to set up logging, it takes 45 ms instead of 2.
    """
    from prefect.settings.base import PrefectBaseSettings

    writing, write, dump = threading.local(), PrefectBaseSettings.to_environment_variables, BaseModel.model_dump

    def to_environment_variables(settings: Any, **how: bool) -> dict[str, str]:
        before, writing.now = getattr(writing, "now", False), True
        try:
            return write(settings, **how)
        finally:
            writing.now = before

    def model_dump(settings: Any, **how: Any) -> dict[str, Any]:
        if not getattr(writing, "now", False):
            return dump(settings, **how)
        groups = {name for name in type(settings).model_fields if isinstance(getattr(settings, name), BaseModel)}
        return dump(settings, exclude=groups, **how)

    PrefectBaseSettings.to_environment_variables = to_environment_variables  # type: ignore[method-assign,assignment]
    PrefectBaseSettings.model_dump = model_dump  # type: ignore[method-assign,assignment]


def fill_new_databases() -> None:
    """Have Prefect's server copy the tables into a new database: to make them one by one takes it seconds.

    Those that are as the copy are not looked through for what is to be changed, for which it reads all its migrations.
    """
    from prefect.server.database import interface

    from flows.service import sqlite
    from tests.support.servers import KEPT

    own = interface.alembic_upgrade

    def upgrade() -> None:
        file, kept = sqlite.configured(), KEPT / "prefect.db"
        if file and os.access(kept, os.R_OK):
            with closing(sqlite3.connect(kept)) as source, closing(sqlite3.connect(file, timeout=60)) as new:
                if not _tables(new):
                    source.backup(new)
                if _tables(new) == _tables(source) and _migration(new) == _migration(source):
                    return
        own()

    interface.alembic_upgrade = upgrade


def _tables(database: sqlite3.Connection) -> list[tuple[str, str]]:
    return database.execute("SELECT name, sql FROM sqlite_master ORDER BY type, name").fetchall()


def _migration(database: sqlite3.Connection) -> list[tuple[str]]:
    return database.execute("SELECT version_num FROM alembic_version").fetchall()


def prepare_models_of_prefect() -> None:
    """Have pydantic complete the models of Prefect, which it otherwise does in each process when it first uses one."""
    models = [BaseModel]
    for model in models:
        models += model.__subclasses__()
        if model.__module__.startswith("prefect.") and not model.__pydantic_complete__:
            model.model_rebuild(raise_errors=False)


def prepare_routes_of_prefect() -> None:
    """Have FastAPI prepare the routes of Prefect's server: each takes most of a second for that when it is asked."""
    from fastapi import routing
    from prefect.server.api import server

    prepare = routing._EffectiveRouteContext.from_api_route
    prepared: dict[tuple[int, str], Any] = {}

    def from_api_route(*, original_route: Any, include_context: Any) -> Any:
        # Of the routes that Prefect's modules have, and a server includes as the one before did.
        place = id(original_route), include_context.prefix
        return prepared.get(place) or prepare(original_route=original_route, include_context=include_context)

    application = server.create_api_app(ignore_cache=True)
    server.API_APP_CACHE.clear()
    for included in application.routes:
        if isinstance(included, routing._IncludedRouter):
            for context in included.effective_route_contexts():
                prepared[id(context.original_route), included.include_context.prefix] = context
    routing._EffectiveRouteContext.from_api_route = from_api_route  # type: ignore[method-assign,assignment]


def prepare_trust() -> None:
    """Have downloads and Prefect's clients take certificate authorities that have been read: that takes each 20 ms."""
    import certifi
    from prefect.client import orchestration

    from tasks.sources import download

    download.certificates()
    # As Prefect chooses it, when it is imported.
    usual, make = os.environ.get("SSL_CERT_FILE") or certifi.where(), ssl.create_default_context
    kept = make(cafile=usual)

    def make_context(cafile: str | None = None) -> ssl.SSLContext:
        return kept if cafile == usual else make(cafile=cafile)

    orchestration.ssl = SimpleNamespace(**{**vars(ssl), "create_default_context": make_context})


def prepare_report() -> None:
    """Have Jinja compile the templates of the report, Matplotlib find its fonts, and versions be looked up."""
    from tasks.report import figures, past_runs, rendering

    past_runs.environment()
    for is_markdown in (False, True):
        engine = rendering._engine(is_markdown)
        for name in engine.list_templates(["j2"]):
            if name.endswith(".md.j2") == is_markdown:
                engine.get_template(name)
    line = figures.Line("loss", [1.0, 2.0], held_out=True)
    figures.chart(figures.Chart("chart", [1, 2], "epoch", [line, line], "", mark=1, mark_name="best"))


def fork_confirmations() -> None:
    """Have the fresh process that confirms a model be a fork of this one, which has not loaded the model either.

    The tests of it start a new Python (`tests/tasks/test_confirm.py`).
    """
    from tasks import confirm

    with socket.socket(fileno=os.dup(0)) as listener:
        address = listener.getsockname()
    mounts = MOUNTS.readlink()

    def run(arguments: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        if MOUNTS.readlink() != mounts:
            # A fork would not see the same files (`tests.support.namespaces`).
            return subprocess.run(arguments, **how)
        called = {"program": "confirm", "arguments": [how["input"], *arguments[3:]], "user": os.getuid()}
        with Forked(address, {**called, "environment": how["env"], "cwd": str(how["cwd"])}) as process:
            out, errors = process.communicate(how["timeout"])
        return subprocess.CompletedProcess(arguments, process.wait(), out, errors)

    confirm.subprocess = SimpleNamespace(**{**vars(subprocess), "run": run})  # type: ignore[assignment]
