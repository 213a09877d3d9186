"""The process of the worker that `idxflow up` starts: Prefect's own, which ends even if nobody is left to end it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

_POLL_SECONDS = 1


def command(seconds: float, *arguments: str) -> tuple[str, ...]:
    """Return the argument vector of a worker; it gets `seconds` to stop after this process has died.

    Args:
        arguments: those of `prefect worker start`.
    """
    return (sys.executable, "-m", __name__, str(os.getpid()), str(seconds), *arguments)


def end_with(parent: int, seconds: float) -> None:
    """Kill this process group `seconds` after `parent` has died, from a thread of its own.

    The kernel sends SIGTERM at that moment (`processes.end_with_parent`), and what stops by then is not killed.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        time.sleep(seconds)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="ends with its parent", daemon=True).start()


def main() -> None:
    """Run `prefect worker start`."""
    parent, seconds, *arguments = sys.argv[1:]
    # Prefect: endless-stop.
    end_with(int(parent), float(seconds))
    sys.argv[1:] = ["worker", "start", *arguments]
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main()
