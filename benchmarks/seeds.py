"""How much the accuracy of a profile depends on chance: the same run over several seeds.

python -m benchmarks.seeds mnist --profile tutorial --source ~/archives --at-once 2
python -m benchmarks.seeds mnist --seeds 20 --at-once 8 --store s3://bucket/seeds --workers tls://scheduler:8786

A training keeps one processor busy, so as many runs as there are processors go side by side, each a process of its own.
With a cluster of workers (docs/how-to/workers.md), these train, so more can go side by side than this machine has
processors, if it has the memory for the rest of a run. Workers of other machines need a store that they reach, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from storage.errors import ConfigError
from storage.workers.opening import workers_for


def main() -> None:
    """Run `idxflow run` once for each seed, in a store of its own, and print a table and the band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--source", help="folder or URL of the archives")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 1 on")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="how many side by side")
    parser.add_argument("--store", help="where the runs keep their results; default: a folder that is removed again")
    parser.add_argument("--workers", help="a cluster of workers that train, such as tls://scheduler:8786")
    asked = parser.parse_args()
    try:
        workers_for(asked.workers)
    except ConfigError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory(prefix="idxflow-seeds-") as folder, ThreadPoolExecutor(asked.at_once) as pool:
        store = asked.store or folder
        outcomes = list(pool.map(lambda seed: _run(asked, store, seed), range(1, asked.seeds + 1)))
    for name in ("train_accuracy", "test_accuracy"):
        values = sorted(outcome[name] for outcome in outcomes)
        print(f"{name:14}  {values[0]:.2%} to {values[-1]:.2%} over {len(values)} seeds")


def _run(asked: argparse.Namespace, store: str, seed: int) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("idxflow")), "run", asked.dataset, "--profile", asked.profile,
               "--set", f"seed={seed}", "--store", store, "--json"]  # fmt: skip
    if asked.source:
        command += ["--source", asked.source]
    if asked.workers:
        command += ["--workers", asked.workers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    outcome: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"error": {"sentence": done.stderr}}
    if outcome["error"]:
        sys.exit(outcome["error"]["sentence"])
    train, test, seconds = outcome["train_accuracy"], outcome["test_accuracy"], outcome["seconds"]
    print(f"seed {seed:3}  training {train:.2%}  test {test:.2%}  {seconds:5.1f} s  {outcome['state']}", flush=True)
    return outcome


if __name__ == "__main__":
    main()
