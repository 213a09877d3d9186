"""What every process of idxflow sets in its environment when it begins, for itself and all that it starts."""

from __future__ import annotations

import os
from pathlib import Path

from storage.errors import ConfigError
from tasks.sources.proxies import LOOPBACK, keep_direct


def prepare() -> None:
    """Make the environment one in which idxflow and its libraries work.

    Raises:
        ConfigError: the current folder has been removed.
    """
    _send_no_usage()
    keep_direct(*LOOPBACK)
    _have_home()
    _write_any_letter()
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"expected a current folder; {error.strerror}: it was removed or may not be entered; cd to another"
        ) from error


def _send_no_usage() -> None:
    """Keep Prefect from sending usage data, unless the user wants it to.

    In a terminal, importing Prefect is enough for it to send some, and to say so.
    """
    # Prefect: telemetry.
    os.environ["DO_NOT_TRACK"] = os.environ.get("DO_NOT_TRACK") or "1"


def _have_home() -> None:
    """Name a home where the system knows none, as in a container that is run by an arbitrary user.

    Prefect cannot be imported without one, also where all of its folders are elsewhere.
    """
    # Prefect: home.
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def _write_any_letter() -> None:
    """Have what this process starts write UTF-8: that goes to logs, and a letter that is missing would end it."""
    os.environ["PYTHONIOENCODING"] = "utf-8:backslashreplace"
