"""What a worker of tests loads when it starts, so that its trainings wait where a test wants them to.

After each epoch, a training saves a checkpoint. After epoch `HELD`, it leaves the file `held` in the folder that
`FOLDER` names, and waits until the test has made the file `released` there. If it is stopped meanwhile, it leaves the
file `stopped`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from storage.records import Epoch
from storage.runtime import cancellation
from tasks import train
from tasks.ui.epochs import EpochDisplay

FOLDER = "TESTS_HELD_TRAININGS"
HELD = 3


class Held(EpochDisplay):
    def __call__(self, epoch: Epoch, is_last: bool) -> None:
        super().__call__(epoch, is_last)
        if epoch.epoch == HELD:
            folder = Path(os.environ[FOLDER])
            (folder / "held").touch()
            try:
                while not (folder / "released").exists():
                    cancellation.check()
                    time.sleep(0.01)
            except cancellation.Cancelled:
                (folder / "stopped").touch()
                raise


def dask_setup(_worker: object) -> None:
    """Dask calls this in a worker that has loaded this module."""
    train.CHECKPOINT_SECONDS = 0.0
    train.EpochDisplay = Held  # type: ignore[misc]
