"""Locations, names, and the environment of every idxflow process."""

from __future__ import annotations

import gc
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
POOL = "idxflow"
"""The work pool whose runs the worker of `idxflow up` takes."""
SITE_PORT = 4280
"""Where `idxflow serve` and `idxflow up` serve the pages, unless told otherwise."""
SOURCE_VARIABLE = "IDXFLOW_SOURCE"
LOGGERS = ("flows", "tasks", "storage", "expectations")
"""The loggers of idxflow; Prefect sends what they log to its API (`extra_loggers` in pyproject.toml)."""


def relax_garbage_collection() -> None:
    """Have Python collect garbage less often: imports take seconds and leave no garbage.

    This makes the imports of TensorFlow and Great Expectations a sixth faster.
    """
    gc.set_threshold(50_000, 10, 10)


def quiet_environment() -> dict[str, str]:
    """Return the environment variables that idxflow sets for Prefect: `[tool.prefect]` of pyproject.toml.

    Prefect itself reads that table only when the working directory is this project's root. A worker's runs
    start there; the command line may be called from anywhere.
    """
    with (ROOT / "pyproject.toml").open("rb") as stream:
        table = tomllib.load(stream)["tool"]["prefect"]
    # Prefect: telemetry. An environment variable, not a setting of Prefect: it keeps the SDK from sending anything.
    return {"DO_NOT_TRACK": "1", **dict(_variables("PREFECT", table))}


def configure_prefect() -> None:
    """Set the variables of `quiet_environment` that the user has not set."""
    for key, value in quiet_environment().items():
        os.environ.setdefault(key, value)


def silence_prefect() -> None:
    """Keep Prefect's own log lines off the console: idxflow prints what they report."""
    for name in ("HANDLERS_CONSOLE_LEVEL", "INTERNAL_LEVEL"):
        os.environ.setdefault(f"PREFECT_LOGGING_{name}", "CRITICAL")


def _variables(prefix: str, table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}_{key.upper()}"
        if isinstance(value, dict):
            yield from _variables(name, value)
        else:
            yield name, str(value).lower() if isinstance(value, bool) else str(value)
