"""Set the environment of every idxflow process, for itself and its child processes."""

from __future__ import annotations

import os
from pathlib import Path

from storage.errors import ConfigError
from tasks.sources.proxies import LOOPBACK, keep_direct


def prepare() -> None:
    """Set the environment variables that idxflow and its libraries need.

    Raises:
        ConfigError: the current folder was removed or may not be entered.
    """
    _send_no_usage()
    keep_direct(*LOOPBACK)
    _have_home()
    _write_any_letter()
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"expected a current folder; {error.strerror}: it was removed, or you may not enter it; cd to another"
        ) from error


def _send_no_usage() -> None:
    """Keep Prefect from sending usage data, unless the user allows it.

    In a terminal, merely importing Prefect sends some and prints a notice.
    """
    # Prefect: telemetry.
    os.environ["DO_NOT_TRACK"] = os.environ.get("DO_NOT_TRACK") or "1"


def _have_home() -> None:
    """Set a home folder if the system knows none, as in a container that runs as an arbitrary user.

    Prefect cannot be imported without one, even if all of its folders are elsewhere.
    """
    # Prefect: home.
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def _write_any_letter() -> None:
    """Have child processes write UTF-8: their output goes to logs, and an unencodable character would end them."""
    os.environ["PYTHONIOENCODING"] = "utf-8:backslashreplace"
