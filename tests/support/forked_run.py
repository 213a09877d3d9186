"""A whole run without Prefect, in a fork of a process that has imported everything: quick enough to kill many.

It is a program of `tests.support.forked_command`, for `tests/faults/test_kills.py`. The steps are called directly. Only
the confirmation is left out, which starts a process of its own.
"""

from __future__ import annotations

import sys

from flows import retrain
from flows.pipeline import to_decision
from flows.run import Request
from tasks import train
from tests.support.runs import Unconfirmed

TRAINING = {"epochs": 40, "learning_rate": 0.1, "hidden": [8], "batch_size": 16}


def run(manifest: str, store: str) -> int:
    """Carry out a run of the data set with this manifest; return the exit code."""
    train.CHECKPOINT_SECONDS = 0.0
    request = Request(dataset_file=manifest, store=store, training=TRAINING)
    state = retrain.carry_out(request, to_decision, caller=Unconfirmed())
    sys.stderr.write(f"{state.message}\n")
    return 0 if state.is_completed() else 1
