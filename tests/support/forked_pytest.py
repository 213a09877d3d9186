"""A run of pytest, in a fork of a process that has imported what tests import of others, and nothing of ours.

`tests.support.forkserver` runs this, for `tests/faults/test_guards.py`. A request has `folder`, whose own source is
imported, and the `arguments` of pytest.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from importlib import import_module
from typing import Any

# Ten seconds of imports that thirty runs need not do again.
LIBRARIES = (
    "great_expectations", "httpx", "hypothesis", "jinja2", "keras", "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg", "numpy", "pandas", "prefect.main", "pyarrow.parquet", "pytest", "scipy.stats",
    "sklearn.datasets", "sklearn.model_selection", "tensorflow",
)  # fmt: skip
OURS = ("storage", "expectations", "tasks", "flows", "tests")


def load() -> None:
    for name in LIBRARIES:
        import_module(name)
    assert not {name.partition(".")[0] for name in sys.modules} & set(OURS)
    # What pytest collects at its end would be all of it.
    gc.freeze()


def call(request: dict[str, Any]) -> int:
    try:
        return run(request["folder"], request["arguments"])
    except BaseException:
        traceback.print_exc()
        # Not 1, which says that a test has failed.
        return 70


def run(folder: str, arguments: list[str]) -> int:
    os.chdir(folder)
    # As if it had been started there: before the installed project.
    sys.path[0] = folder
    import pytest

    # Some of what has been imported (anyio) is a plugin too, whose own assertions now say less.
    return int(pytest.main([*arguments, "-W", "ignore::pytest.PytestAssertRewriteWarning"]))
