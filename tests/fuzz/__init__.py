"""Coverage-guided fuzzing of the readers of foreign files: `python -m tests.fuzz TARGET RUNS [libFuzzer options]`.

Targets are `idx` and `manifest`. Each is a module with `WORDS`
(pieces worth inserting), `OPTIONS`, `seeds()` and `check(data)`, which may only return: whatever it raises is a
finding. So is more than 2 GB of memory, or more than a second for one input. libFuzzer ends at the first finding and
writes that input as `crash-…` to the folder it was started in (https://llvm.org/docs/LibFuzzer.html, "Options";
https://github.com/google/atheris).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def fuzz(
    target: str, runs: int, options: Sequence[str] = (), cwd: Path | None = None, path: Sequence[Path] = ()
) -> subprocess.CompletedProcess:
    """Give `target` `runs` inputs in a process of its own; its return code is 0 if nothing was found.

    Standard error is what libFuzzer says. `path` comes before the project when the process imports modules.
    """
    with tempfile.TemporaryDirectory(prefix="idxflow-fuzz-") as folder:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])), "TMPDIR": folder}
        command = [sys.executable, "-m", "tests.fuzz.worker", target, folder, f"-runs={runs}", *options]
        # A small process in between: what libFuzzer takes for its memory begins at that of the process which starts it
        # (ru_maxrss, getrusage(2)).
        between = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
        return subprocess.run(
            [*between, *command], cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True, check=False
        )
