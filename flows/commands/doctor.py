"""`idxflow doctor`: diagnose what would stop a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from flows.commands.options import AsJson, InsecureWorkers, StoreFolder, Workers
from flows.terminal.output import print_json, print_line
from storage.errors import ConfigError, StoreError
from storage.objects.address import is_address
from storage.opening import open_store
from storage.store import store_address
from storage.words import counted
from storage.workers.address import chosen
from storage.workers.opening import workers_for

if TYPE_CHECKING:
    from flows.diagnosis import Diagnosis


def doctor(
    *,
    store: StoreFolder = None,
    workers: Workers = None,
    insecure_workers: InsecureWorkers = False,
    as_json: AsJson = False,
) -> int:
    """Diagnose what would stop a run, and suggest fixes.

    Exit code 1 if there is a problem. Checks the installed versions, TensorFlow, the disk, the store, the clock, time
    zones and proxies. Of a store in object storage, also whether the credentials work, whether the server keeps the
    promise that a store rests on, how long a request takes, and the cache on this machine. If workers are named, also
    whether they can be reached, how many there are, and whether their code and libraries are the same. If a Prefect
    server is running, also its version and database, the worker, deployments and their limits, late runs, and runs
    without a heartbeat.

    Examples: `idxflow doctor --json` · `idxflow doctor --workers tls://scheduler:8786`
    """
    if chosen(workers):
        # What is wrong in the option or the environment itself is wrong usage, as for any other command.
        workers_for(workers, insecure_workers)
    diagnoses = []
    for diagnosis in _diagnoses(store, workers, insecure_workers):
        diagnoses.append(diagnosis)
        if not as_json:
            print_line(f"{diagnosis.verdict:<8} {diagnosis.what}: {diagnosis.found}")
            if diagnosis.remedy:
                print_line(f"{'':8} → {diagnosis.remedy}")
    problems, warnings = (sum(d.verdict == verdict for d in diagnoses) for verdict in ("problem", "warning"))
    if as_json:
        print_json({"findings": [asdict(diagnosis) for diagnosis in diagnoses]})
    else:
        print_line(f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}")
    return 1 if problems else 0


def _diagnoses(place: str | None, workers: str | None, insecure: bool) -> Iterator[Diagnosis]:
    from flows.diagnosis import diagnose, diagnose_without_store

    address = store_address(place)
    try:
        store = open_store(place)
    except (ConfigError, StoreError) as error:
        if not is_address(address):
            raise
        # The extra is not installed, or the credentials do not work: that is what a person asks about.
        yield from diagnose_without_store(error)
    else:
        yield from diagnose(store, workers, insecure)
