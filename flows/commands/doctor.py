"""`idxflow doctor`: diagnose what would stop a run."""

from __future__ import annotations

from dataclasses import asdict

from flows.commands.options import AsJson, StoreFolder
from flows.terminal.output import print_json, print_line
from storage.opening import open_store
from storage.words import counted


def doctor(*, store: StoreFolder = None, as_json: AsJson = False) -> int:
    """Diagnose what would stop a run, and suggest fixes.

    Exit code 1 if there is a problem. Checks the installed versions, TensorFlow, the disk, the store, the clock, time
    zones and proxies. If a Prefect server is running, also its version and database, the worker, deployments and their
    limits, late runs, and runs without a heartbeat.

    Example: `idxflow doctor --json`
    """
    from flows.diagnosis import diagnose

    diagnoses = []
    for diagnosis in diagnose(open_store(store)):
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
