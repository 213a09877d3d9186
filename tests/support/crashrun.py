"""Whole runs without Prefect, each in a fork of a process that has imported everything: quick enough to kill many.

    python tests/support/crashrun.py

For each line `MANIFEST<tab>STORE<tab>FILE` on standard input: writes the process id of the run, then its exit code.
The steps are called directly. Only the confirmation is left out, which starts a process of its own.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from flows import retrain  # noqa: E402
from flows.pipeline import Directly, to_decision  # noqa: E402
from flows.run import Request  # noqa: E402
from storage.records import Confirmation, Done, Step  # noqa: E402
from tasks import train  # noqa: E402
from tasks.confirm import confirm  # noqa: E402
from tests.support import commandrun  # noqa: E402

TRAINING = {"epochs": 40, "learning_rate": 0.1, "hidden": [8], "batch_size": 16}


class Unconfirmed(Directly):
    """Calls steps without Prefect, and no process of its own for the confirmation."""

    def call(self, step: Any, *arguments: Any, **named: Any) -> Any:
        if step is confirm:
            model = arguments[2]
            return Done(Confirmation(model.folder, 64, 2e-8), Step("confirm", "", "", 0.0, False, ""))
        return super().call(step, *arguments, **named)


def run(manifest: str, root: str, said: str) -> int:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    train.CHECKPOINT_SECONDS = 0.0
    request = Request(dataset_file=manifest, store=root, training=TRAINING)
    state = retrain.carry_out(request, to_decision, caller=Unconfirmed())
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
