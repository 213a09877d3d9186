"""A process of `--workers N`: a Dask worker of one thread that ends with the run, whatever ends the run.

    python -m storage.workers.dask_worker < what to connect to, a line of JSON, then nothing until the run ends

The end of its standard input is the end of the run: the kernel closes it, also if the run is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from storage.workers import dask_remote

GRACE_SECONDS = 1.0
"""For how long what is being computed may go on after the run has ended: until its next check."""
_POLL_SECONDS = 0.02


def main() -> None:
    """Compute until standard input ends."""
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_run, daemon=True).start()
    threading.Thread(target=dask_remote.load, args=(request["modules"],), daemon=True).start()
    asyncio.run(_work(request))
    # Not the usual way, on which Python takes apart all that was loaded, while the run waits.
    os._exit(0)


async def _work(request: dict[str, Any]) -> None:
    from distributed.security import Security
    from distributed.worker import Worker

    class Quiet(Worker):  # type: ignore[misc]
        """Without the web server that shows what a worker does: it would ask nobody for a certificate."""

        def start_http_server(self, *_: object, **__: object) -> None:
            """Open nothing."""

    with without_folder() as folder:
        worker = Quiet(
            request["scheduler"],
            nthreads=1,
            name=request["name"],
            host="127.0.0.1",
            security=Security(require_encryption=True, **request["tls"]),
            # Small results are all that it keeps, and how much memory an item takes is not for Dask to judge.
            memory_limit=0,
            dashboard=False,
            **folder,
        )
    await worker
    await worker.finished()


@contextmanager
def without_folder() -> Iterator[dict[str, Any]]:
    """Yield the arguments with which Dask makes no folder that lasts: for what does not fit into memory it wants one.

    It also puts that folder where Python looks for modules.
    """
    path = list(sys.path)
    with tempfile.TemporaryDirectory(prefix="idxflow-dask-scratch-space-") as folder:
        yield {"local_directory": folder, "needs_workdir": False}
    sys.path[:] = path


def _end_with_run() -> None:
    """End this process after the run: at once if it computes nothing, otherwise at its next check."""
    sys.stdin.buffer.read()
    end = time.monotonic() + GRACE_SECONDS
    while dask_remote.stop_all() and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    # Not the usual way, on which Dask waits for the scheduler.
    os._exit(0)


if __name__ == "__main__":
    main()
