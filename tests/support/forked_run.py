"""A whole run without Prefect, in a fork of a process that has imported everything: quick enough to kill many.

`tests.support.forkserver` runs this, for `tests/faults/test_kills.py`. A request has `manifest` and `store`. The steps
are called directly. Only the confirmation is left out, which starts a process of its own.
"""

from __future__ import annotations

import sys

from flows import retrain
from flows.pipeline import to_decision
from flows.run import Request
from tasks import train
from tests.support.forked_command import load
from tests.support.runs import Unconfirmed

__all__ = ["TRAINING", "call", "load"]

TRAINING = {"epochs": 40, "learning_rate": 0.1, "hidden": [8], "batch_size": 16}


def call(request: dict[str, str]) -> int:
    train.CHECKPOINT_SECONDS = 0.0
    run_request = Request(dataset_file=request["manifest"], store=request["store"], training=TRAINING)
    state = retrain.carry_out(run_request, to_decision, caller=Unconfirmed())
    sys.stderr.write(f"{state.message}\n")
    return 0 if state.is_completed() else 1
