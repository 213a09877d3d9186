"""Whether a store and Prefect's database stay as large as they are: `python -m benchmarks.growth --minutes 10`.

Retrains `digits` for one epoch, with a new seed each time, on a server as `idxflow up` starts it, and collects garbage
after every so many runs as the deployment `collect/garbage` does. Prints a line after each collection, and JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from storage.store import Store
from tests.servers import guarded_server, used_in_this_process, wait_until_answers


def sizes(folder: Path, runs: int) -> dict[str, Any]:
    """Return what there is now; sizes in bytes."""
    files = [path for path in (folder / "store").rglob("*") if path.is_file()]
    database = (folder / "prefect").glob("prefect.db*")
    return {
        "runs": runs,
        "store": sum(path.stat().st_size for path in files),
        "store files": len(files),
        "database": sum(path.stat().st_size for path in database),
    }


def retrain_again(folder: Path, seed: int) -> None:
    """Retrain in this process, which has imported everything already."""
    from flows.retrain import retrain
    from tasks.config import TrainingOverrides

    state = retrain(
        dataset="digits",
        training=TrainingOverrides(epochs=1, seed=seed),
        store=str(folder / "store"),
        return_state=True,
    )
    # One epoch makes no champion: refused is an end like any other.
    if not state.is_final():
        raise SystemExit(f"the run of seed {seed} has not ended: {state}")


def main() -> int:
    """Retrain, collect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for how long; default 10")
    parser.add_argument("--every", type=int, default=10, help="runs between two collections; default 10")
    parser.add_argument("--keep", type=int, default=5, help="versions, runs and flow runs that stay; default 5")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idxflow-growth-") as name:
        folder = Path(name)
        with guarded_server(folder) as (_, environment):
            wait_until_answers(environment)
            with used_in_this_process(environment, folder):
                measured = _measure(folder, asked.minutes, asked.every, asked.keep)
    print(json.dumps(measured))
    return 0


def _measure(folder: Path, minutes: float, every: int, keep: int) -> list[dict[str, Any]]:
    from flows.collect import collect

    measured, runs, deadline = [], 0, time.monotonic() + minutes * 60
    print(f"{'runs':>6}{'store':>12}{'files':>8}{'database':>14}")
    while time.monotonic() < deadline:
        for _ in range(every):
            runs += 1
            retrain_again(folder, runs)
        grown = sizes(folder, runs)
        collect(keep_versions=keep, keep_flow_runs=keep, store=str(Store(folder / "store").root))
        for now in (grown, sizes(folder, runs)):
            measured.append(now)
            store, database = now["store"] / 1e6, now["database"] / 1e6
            print(f"{runs:6}{store:9.1f} MB{now['store files']:8}{database:11.1f} MB", flush=True)
    return measured


if __name__ == "__main__":
    raise SystemExit(main())
