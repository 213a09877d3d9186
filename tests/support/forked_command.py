"""A call of `idxflow` or `prefect`, in a fork of a process that has imported what takes seconds: TensorFlow etc.

`tests.support.forkserver` runs this, for `tests.support.commands`. A request has `program`, `arguments`, `environment`
and `cwd`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from importlib import import_module
from typing import Any

LATER = (
    "flows.retrain",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "prefect.server.api.server",
    "sklearn.metrics",
    "uvicorn",
)
"""What a run imports when it needs it, Prefect with it, and what its own Prefect server does."""
RUNS = ("run", "validate")
"""The commands that run a flow of Prefect, which they keep quiet."""


def load() -> None:
    """Import what a run of `idxflow` imports, as it does itself."""
    import yaml

    from expectations import engine
    from flows.preload import STEPS
    from flows.settings import relax_garbage_collection
    from storage.runtime import code_digests
    from tasks.model import network

    relax_garbage_collection()
    engine.prepare()
    network.tensorflow()
    for step in STEPS:
        code_digests.digests(f"tasks.{step}")
    for name in LATER:
        import_module(name)
    # Prefect reads how it logs from a file of YAML, in every command: the parser in C takes a tenth of the time.
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc,assignment]
    # Collecting all of this again in every command would also copy it.
    gc.freeze()


def become(request: dict[str, Any]) -> None:
    """Be the process that the caller would have started."""
    from tests.support import refusals

    os.environ.clear()
    os.environ.update(request["environment"])
    refusals.note_if_asked()
    os.chdir(request["cwd"])
    sys.argv = [request["program"], *request["arguments"]]
    # As a terminal starts it: a shell's background has Ctrl-C ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    read_settings_again()


def read_settings_again() -> None:
    """Have Prefect read its settings, as it does when it is imported."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging import configuration

    from flows.settings import LOGGERS, silence_prefect

    if sys.argv[0] == "idxflow" and sys.argv[1:2] and sys.argv[1] in RUNS:
        silence_prefect()
    refresh_global_settings_context()
    for name in LOGGERS:
        logging.getLogger(name).handlers.clear()
    configuration.setup_logging(incremental=False)


def call(request: dict[str, Any]) -> None:
    """Do what the program does."""
    become(request)
    if sys.argv[0] == "prefect":
        # Not before: it looks at the environment when it is imported.
        from prefect.cli import app

        sys.exit(app())
    from flows.commands.cli import main

    main()
