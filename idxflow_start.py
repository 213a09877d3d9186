"""Where the `idxflow` command begins: whose modules it is made of, and signals that end it while they are imported.

Not one of the packages: `PYTHONPATH` may lead to other folders called `flows` or `storage`, and what is in the current
folder, such as a `random.py` beside the user's archives, is not meant to be imported at all.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent
PACKAGES = ("expectations", "flows", "storage", "tasks")
ENDING = {
    signal.SIGINT: (signal.default_int_handler, 130),
    signal.SIGTERM: (signal.SIG_DFL, 143),
    signal.SIGHUP: (signal.SIG_DFL, 143),
}
"""For each signal: what Python does on it unless it was ignored, and the exit code of `idxflow`
(docs/reference/exit-codes.md)."""


def main() -> None:
    """Import the command and run it."""
    for number, (usual, _) in ENDING.items():
        if signal.getsignal(number) is usual:
            # Nothing has been begun, and an exception in the middle of an import is not always passed on.
            signal.signal(number, lambda number, _: os._exit(ENDING[signal.Signals(number)][1]))
    import_own_modules()
    if "--timings" in sys.argv:
        # Before the imports that it shows.
        from storage.runtime import timings

        timings.start()
    from flows.commands.cli import run_command

    end(run_command())


def end(code: int) -> NoReturn:
    """End the process as Python does, but leave its objects as they are: to take them apart takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # It may be closed: by the parent process, or after an error.
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)


def import_own_modules() -> None:
    """Have this process and all that it starts find idxflow's own packages first, and nothing in the current folder."""
    sys.path[:] = [str(ROOT), *_elsewhere(sys.path)]
    given = os.environ.get("PYTHONPATH", "")
    others = _elsewhere(given.split(os.pathsep) if given else ())
    for path in _passed_over(given, others):
        sys.stderr.write(f"idxflow: PYTHONPATH leads to {path}, which is not imported: idxflow uses its own\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *others])
    # No script's folder, nor the current one with -c and -m.
    os.environ["PYTHONSAFEPATH"] = "1"


def _passed_over(given: str, others: list[str]) -> list[Path]:
    """Return what has the name of a package of idxflow's and would be imported in its place."""
    # What idxflow has started finds the project's root first.
    if given.split(os.pathsep)[0] == str(ROOT):
        return []
    forms = [form for name in PACKAGES for form in (f"{name}/__init__.py", f"{name}.py")]
    return [path for entry in others for form in forms if (path := Path(entry, form)).exists()]


def _elsewhere(entries: Iterable[str]) -> list[str]:
    """Return the folders that are neither the project's root nor the current one, nor depend on that."""
    own = {ROOT}
    # It may have been removed.
    with suppress(OSError):
        own.add(Path.cwd())
    return [entry for entry in entries if Path(entry).is_absolute() and Path(entry).resolve() not in own]
