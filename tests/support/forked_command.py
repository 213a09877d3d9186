"""A call of a program of `PROGRAMS`, in a fork of a process that has imported what takes seconds: TensorFlow etc.

`tests.support.forkserver` runs this, for `tests.support.commands`. A request has `program`, `arguments`, `environment`
and `cwd`, and may have `user`, an id.
"""

from __future__ import annotations

import contextvars
import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from ast import literal_eval
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from tests.support import commands, preparation, refusals, users
from tests.support.forkserver import end_with_parent

load = preparation.load

RUNS = (["run"], ["validate"])
"""How the commands begin that run a flow of Prefect, which they keep quiet."""
WITHOUT_PREFECT = ("confirm", "dask", "dask worker", "items", "nothing", "python")
"""Programs that do without Prefect's settings."""


def become(request: dict[str, Any]) -> None:
    """Be the process that the caller would have started."""
    os.environ.clear()
    os.environ.update(request["environment"])
    if "user" in request:
        users.become(request["user"])
        # The kernel has forgotten it with the old user.
        end_with_parent()
    refusals.note_if_asked()
    os.chdir(request["cwd"])
    sys.argv = [request["program"], *request["arguments"]]
    # As a terminal starts it: a shell's background has Ctrl-C ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["program"] in WITHOUT_PREFECT or (
        request["program"] == "idxflow" and request["arguments"][:1] not in RUNS
    ):
        read_settings_when_asked()
    # Tests read them when pytest is configured (`tests.conftest`).
    elif request["program"] not in ("tests", "tests of a copy"):
        read_settings_again()


def read_settings_when_asked() -> None:
    """Have Prefect read its settings when they are first asked for: many commands do without it, and that takes 50 ms.

    Until then, the command logs as where Prefect has not been imported.
    """
    from prefect.context import SettingsContext

    from flows.settings import LOGGERS

    own = SettingsContext.__dict__["get"]

    def first(cls: type[SettingsContext]) -> SettingsContext | None:
        cls.get = own  # type: ignore[method-assign]
        read_settings_again()
        return cls.get()

    SettingsContext.get = classmethod(first)  # type: ignore[method-assign,assignment]
    for name in LOGGERS:
        logging.getLogger(name).handlers.clear()


def read_settings_again() -> None:
    """Have Prefect read its settings, as it does when it is imported."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging import configuration

    from flows.settings import LOGGERS, silence_prefect

    if sys.argv[0] == "idxflow" and sys.argv[1:2] in RUNS:
        silence_prefect()
    refresh_global_settings_context()
    for name in LOGGERS:
        logging.getLogger(name).handlers.clear()
    configuration.setup_logging(incremental=False)


def call(request: dict[str, Any]) -> None:
    """Do what the program does."""
    become(request)
    PROGRAMS[request["program"]]()


def idxflow() -> None:
    from flows.commands.cli import main

    if sys.argv[1:2] == ["doctor"]:
        fork_import_of_tensorflow()
    main()


def fork_import_of_tensorflow() -> None:
    """Have the doctor, who imports TensorFlow in another process to see whether that works, take a fork for that."""
    from flows import diagnosis

    def run(arguments: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile("w+") as output:
            if not (process := os.fork()):
                os.dup2(output.fileno(), 1)
                exec(arguments[-1], {})
                sys.stdout.flush()
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            output.seek(0)
            return subprocess.CompletedProcess(arguments, code, output.read(), "")

    diagnosis.subprocess = SimpleNamespace(**{**vars(subprocess), "run": run})  # type: ignore[assignment]


def prefect() -> None:
    # Not before: it looks at the environment when it is imported.
    from prefect.cli import app

    sys.exit(app())


def server() -> None:
    """Serve as `python -m flows.service.application` does; the socket that listens is standard input."""
    from flows.service.application import Plan, serve

    serve(0, Plan(**json.loads(sys.argv[1])))


def flow_run() -> None:
    """Carry out a flow run as `python -m prefect.engine` does."""
    sys.path.insert(0, str(Path.cwd()))
    # Its file, for Prefect has imported the module.
    runpy.run_path(str(find_spec("prefect.engine").origin), run_name="__main__")


def up() -> None:
    """`idxflow up`, which starts forks of itself instead of programs, and looks more often after what it promised.

    Its work pool has the worker start forks, too.
    """
    from flows.service import deployments, processes, supervisor
    from tests.support import operated

    template = operated.template_of_forks()
    # Nothing that it starts is to have it in its environment.
    del os.environ[commands.ADDRESS]
    deployments.WorkPoolCreate = partial(deployments.WorkPoolCreate, base_job_template=template)  # type: ignore[misc,assignment]

    start = processes._process

    def forked(command: processes.Command, output: IO[bytes]) -> Any:
        return start(replace(command, fork=partial(module, command.arguments)), output)

    processes._process = forked
    deployments.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": _deploying()})  # type: ignore[assignment]
    supervisor.LOOK_SECONDS = 2
    sys.argv[0] = "idxflow"
    idxflow()


def _deploying() -> type:
    from flows.service.fork import Fork

    class Deploying(Fork):
        """`prefect deploy`, as `subprocess.Popen` starts it."""

        def __init__(self, arguments: tuple[str, ...], **how: Any) -> None:
            call = partial(module, arguments)
            super().__init__([call], how["env"], Path(how["cwd"]), how["stdout"].fileno(), ())

        def kill(self) -> None:
            if self.poll() is None:
                os.kill(self.pid, signal.SIGKILL)

    return Deploying


def module(arguments: tuple[str, ...]) -> None:
    """Do what Python does with these arguments, in a process of its own: run a module as a program."""
    sys.argv[:] = arguments[arguments.index("-m") + 1 :]
    # Without the settings that the process has in use that it was forked from.
    contextvars.Context().run(_run, sys.argv[0])


def _run(name: str) -> None:
    read_settings_again()
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def dask() -> None:
    """Dask's own command."""
    sys.argv[0] = "dask"
    runpy.run_module("dask", run_name="__main__", alter_sys=True)


def dask_worker() -> None:
    """A worker of `--workers N`, which gets on standard input what to connect to."""
    # As a module of this name: what a worker calls finds it so.
    import_module("storage.workers.dask_worker").main()


def confirm() -> None:
    """Do what `python -m tasks.model.confirm_worker` does; the first argument is its standard input."""
    from tasks.model import confirm_worker

    sys.stdin = io.StringIO(sys.argv.pop(1))
    confirm_worker.main(sys.argv[1:])


def mlflow() -> None:
    """MLflow's own command, whose server is this process instead of one more."""
    from mlflow import cli, server

    def serve(command: list[str], extra_env: dict[str, str], **_: object) -> None:
        os.environ |= extra_env
        module(tuple(command))

    server._exec_cmd = serve  # type: ignore[assignment]
    cli.cli()


def items() -> None:
    """Call functions with items, for `tests.support.scattered_workers`, until the connection ends: standard input."""
    from tests.support import scattered_workers

    scattered_workers.serve(0)


def python() -> None:
    """Do as Python does with `-m` or `-c`."""
    way, code, *arguments = sys.argv[1:]
    sys.argv[:] = [way, *arguments]
    # Those of Prefect, which such programs do not import.
    logging.getLogger().handlers.clear()
    if way == "-m":
        runpy.run_module(code, run_name="__main__", alter_sys=True)
    else:
        exec(code, {"__name__": "__main__"})


def tests() -> None:
    """Run tests for pytest-xdist, as `python -c` does with what execnet writes to standard input."""
    with open(0, closefd=False) as program:
        source = program.readline()
    exec(literal_eval(source), {"__name__": "execnet.gateway_base"})


def tests_of_a_copy() -> None:
    """Run pytest in the folder of the first argument, with the others."""
    from tests.support import forked_pytest

    sys.exit(forked_pytest.run(sys.argv[1], sys.argv[2:]))


def run_without_prefect() -> None:
    from tests.support import forked_run

    sys.exit(forked_run.run(*sys.argv[1:]))


PROGRAMS = {
    "idxflow": idxflow,
    "prefect": prefect,
    "python": python,
    "server": server,
    "flow run": flow_run,
    "up": up,
    "dask": dask,
    "dask worker": dask_worker,
    "confirm": confirm,
    "mlflow": mlflow,
    "items": items,
    "nothing": lambda: None,
    "tests": tests,
    "tests of a copy": tests_of_a_copy,
    "run without Prefect": run_without_prefect,
}
