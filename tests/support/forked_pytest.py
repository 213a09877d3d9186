"""A run of pytest on a copy of the project, in a fork of a process that has imported what tests import of others.

It is a program of `tests.support.forked_command`, for `tests/faults/test_guards.py`. What that process has imported of
ours is forgotten, and imported from the copy.
"""

from __future__ import annotations

import os
import sys
import traceback

OURS = ("storage", "expectations", "tasks", "flows", "tests", "benchmarks", "idxflow_start")


def run(folder: str, arguments: list[str]) -> int:
    """Return the exit code of pytest; 70 where it could not be run."""
    for name in [*sys.modules]:
        if name.partition(".")[0] in OURS:
            del sys.modules[name]
    os.chdir(folder)
    # As if it had been started there: before the installed project.
    sys.path[0] = folder
    try:
        import pytest

        # Some of what has been imported (anyio) is a plugin too, whose own assertions now say less.
        return int(pytest.main([*arguments, "-W", "ignore::pytest.PytestAssertRewriteWarning"]))
    except BaseException:
        traceback.print_exc()
        # Not 1, which says that a test has failed.
        return 70
