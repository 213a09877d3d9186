"""Runs of pytest, each in a fork of a process that has imported what tests import of others, and nothing of ours.

    python tests/support/guardrun.py

For each line `FOLDER<tab>FILE<tab>ARGUMENT<tab>…` on standard input: runs pytest with these arguments in the folder,
whose own source is imported, puts what it says into the file, and writes its exit code.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from importlib import import_module

# Ten seconds of imports that thirty runs need not do again.
LIBRARIES = (
    "great_expectations", "httpx", "hypothesis", "jinja2", "keras", "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg", "numpy", "pandas", "prefect.main", "pyarrow.parquet", "pytest", "scipy.stats",
    "sklearn.datasets", "sklearn.metrics", "tensorflow",
)  # fmt: skip
OURS = ("storage", "expectations", "tasks", "flows", "tests")


def run(folder: str, said: str, *arguments: str) -> int:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
    os.dup2(1, 2)
    os.chdir(folder)
    # As if it had been started there: before the folder of this file, and the installed project.
    sys.path[0] = folder
    import pytest

    # Some of what has been imported (anyio) is a plugin too, whose own assertions now say less.
    return int(pytest.main([*arguments, "-W", "ignore::pytest.PytestAssertRewriteWarning"]))


def serve() -> None:
    # Whatever these do when they are imported must not be taken for an exit code.
    answers = os.dup(1)
    os.dup2(2, 1)
    for name in LIBRARIES:
        import_module(name)
    assert not {name.partition(".")[0] for name in sys.modules} & set(OURS)
    # What pytest collects at its end would be all of it.
    gc.freeze()
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            code = 70
            try:
                code = run(*line.rstrip("\n").split("\t"))
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        os.write(answers, f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n".encode())


if __name__ == "__main__":
    serve()
