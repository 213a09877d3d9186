"""Whether a store and Prefect's database stay as large as they are: `python -m benchmarks.growth --runs 100`.

Retrains `digits` for one epoch, with a new seed each time, on a server as `idxflow up` starts it, and collects garbage
after every so many runs as the deployment `collect/garbage` does. Prints a line before and after each collection, and
JSON. The ledger and the registry, which keep every decision for good, are counted on their own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from storage.store import Store
from tests.support.servers import guarded_server, used_in_this_process, wait_until_answers

RECORDS = {"ledger", "registry"}
"""Folders of a data set whose files stay for good."""


def sizes(folder: Path, runs: int) -> dict[str, int]:
    """Return what there is now; sizes in bytes."""
    files = {path for path in (folder / "store").rglob("*") if path.is_file()}
    records = {path for path in files if RECORDS & set(path.parts)}
    database = (folder / "prefect").glob("prefect.db*")
    return {
        "runs": runs,
        "results": _bytes(files - records),
        "result files": len(files - records),
        "records": _bytes(records),
        "record files": len(records),
        "database": _bytes(database),
    }


def _bytes(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def retrain_again(folder: Path, seed: int) -> None:
    """Retrain in this process, which has imported everything already."""
    from flows.retrain import retrain
    from storage.datasets.training import TrainingOverrides

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
    parser.add_argument("--runs", type=int, default=100, help="retrainings; default 100")
    parser.add_argument("--every", type=int, default=10, help="runs between two collections; default 10")
    parser.add_argument("--keep", type=int, default=5, help="versions, runs and flow runs that stay; default 5")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idxflow-growth-") as name:
        folder = Path(name)
        with guarded_server(folder) as (_, environment):
            wait_until_answers(environment)
            with used_in_this_process(environment, folder):
                measured = _measure(folder, asked.runs, asked.every, asked.keep)
    print(json.dumps(measured))
    return 0


def _measure(folder: Path, last: int, every: int, keep: int) -> list[dict[str, int]]:
    from flows.collect import collect

    measured = []
    print(f"{'runs':>6}{'results':>12}{'files':>8}{'records':>12}{'files':>8}{'database':>12}")
    for run in range(1, last + 1):
        retrain_again(folder, run)
        if run % every and run < last:
            continue
        grown = sizes(folder, run)
        collect(keep_versions=keep, keep_flow_runs=keep, store=str(Store(folder / "store").root))
        for now in (grown, sizes(folder, run)):
            measured.append(now)
            print(_line(now), flush=True)
    return measured


def _line(now: dict[str, int]) -> str:
    results, records, database = (f"{now[name] / 1e6:9.1f} MB" for name in ("results", "records", "database"))
    return f"{now['runs']:6}{results}{now['result files']:8}{records}{now['record files']:8}{database}"


if __name__ == "__main__":
    raise SystemExit(main())
