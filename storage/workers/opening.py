"""Choose the workers that a person or the environment names."""

from __future__ import annotations

import importlib.util
import sys

from storage.errors import ConfigError
from storage.workers.address import WORKERS_VARIABLE, chosen, parse, patience
from storage.workers.here import Here
from storage.workers.protocol import Workers


def workers_for(workers: str | None = None, insecure: bool = False) -> Workers:
    """Return the workers `workers`, or those of `IDXFLOW_WORKERS`, or this process. None is started or asked yet.

    Args:
        workers: a number of processes to start, or the address of a scheduler.
        insecure: whether a scheduler on another machine need not ask for certificates.

    Raises:
        ConfigError: that is neither, is not protected, a certificate is missing, or the extra for it is not installed.
    """
    name = chosen(workers)
    if not name:
        return Here()
    wish = parse(name, insecure)
    seconds = patience()
    if importlib.util.find_spec("distributed") is None:
        raise ConfigError(
            f"expected the package distributed for --workers or {WORKERS_VARIABLE}; found none; install the extra "
            f"`workers` (`{sys.executable} -m pip install 'idxflow[workers]'`), or leave the option out"
        )
    # Only runs that use it load it, and what it stands on only when there is something to compute.
    from storage.workers.dask_cluster import Dask

    return Dask(wish, seconds)
