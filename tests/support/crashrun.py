"""Whole runs without Prefect, each in a fork of a process that has imported everything: quick enough to kill many.

    python tests/support/crashrun.py

For each line `MANIFEST<tab>STORE<tab>FILE` on standard input: writes the process id of the run, then its exit code.
The run is the flow's own sequence of steps; a task is called where the flow would have Prefect call it. Only the
confirmation is left out, which starts a process of its own.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from flows import retrain  # noqa: E402
from flows.run import Request  # noqa: E402
from storage.records import Confirmation, Done, Step  # noqa: E402
from tasks import train  # noqa: E402
from tests.support import commandrun  # noqa: E402

TASKS = ("fetch", "decode", "validate", "normalize", "train", "evaluate", "confirm", "decide", "publish")
TRAINING = {"epochs": 40, "learning_rate": 0.1, "hidden": [8], "batch_size": 16}


class Plain:
    """A task without Prefect."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)

    def submit(self, *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(self.function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


def confirmed(store: object, dataset: object, model: Any, *_: object) -> Done[Confirmation]:
    return Done(Confirmation(model.folder, 64, 2e-8), Step("confirm", "", "", 0.0, False, ""))


def leave_out_prefect(change: Callable[[object, str, Any], None] = setattr) -> None:
    """Have the flow call its tasks as plain functions."""
    for name in TASKS:
        change(retrain, name, Plain(getattr(retrain, name).fn))
    change(retrain, "wait", list)
    change(retrain, "announce", lambda *_: None)


def run(manifest: str, root: str, said: str) -> int:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    train.CHECKPOINT_SECONDS = 0.0
    leave_out_prefect()
    retrain.confirm = confirmed
    request = Request(dataset_file=manifest, store=root, training=TRAINING)
    state = retrain.carry_out(request, retrain.to_decision)
    os.write(2, f"{state.message}\n".encode())
    return 0 if state.is_completed() else 1


def serve() -> None:
    commandrun.load()
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            try:
                os._exit(run(*line.rstrip("\n").split("\t")))
            except BaseException:
                traceback.print_exc()
                os._exit(70)
        os.write(1, f"{process}\n".encode())
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n".encode())


if __name__ == "__main__":
    serve()
