"""Record the end of runs that could not: killed, out of memory, lost with their machine, or never started.

A run leaves a trace in the store when it starts (`storage.underway`). The next command that looks, or the running
`idxflow up`, finds that its process no longer exists, and records the end: with the server's message if a server knows
the run, otherwise with what the trace shows. A run that ended on the server before it had a process has no trace; `up`
records it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.service import deaths
from flows.terminal.output import remark
from storage import underway
from storage.datasets import catalog
from storage.errors import PrefectFailed, StoreError
from storage.ledger import Ledger
from storage.registry import Registry
from storage.store import Store

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_RUN = re.compile(r"\b\d{8}-\d{6}-[0-9a-f]{4}\b")
"""Matches the run id in the name of a flow run that had a process: `digits 20261124-143212-5725 promoted v1`."""
_LOOK_BACK = timedelta(days=2)
_LOOKED_AT = 50


def present() -> dict[str, Any]:
    """Return what identifies this process, and what may later explain its death."""
    counter = deaths.counter(os.getpid())
    return {
        "pid": os.getpid(),
        "boot": _boot(),
        "host": socket.gethostname(),
        "memory": [str(counter), deaths.kills_for_memory(counter)] if counter else None,
    }


def settle(store: Store, dataset: str | None = None) -> None:
    """Record how runs without a live process ended; if the store cannot be written, only print a remark."""
    for name in [dataset] if dataset else store.datasets():
        try:
            for trace, values in underway.abandoned(store, name):
                ledger = Ledger(store, name)
                # A run killed between recording its end and removing its trace is already in the ledger.
                if ledger.find("runs", values["run"]) is None:
                    state, sentence = _ending(values)
                    _record(Registry(store, name), state, sentence, values)
                trace.end()
        except StoreError as error:
            remark(f"cannot record how a run of {name} ended: {error}")


def unstarted(client: SyncPrefectClient, store: Store, known: set[UUID]) -> None:
    """Record the runs that were cancelled, crashed or failed on the server before they did anything in a store.

    Args:
        client: connected to the server.
        store: that of the worker that would have run them.
        known: flow runs that have been checked already; this call adds to them.
    """
    for run in _ended(client):
        if run.id in known:
            continue
        known.add(run.id)
        dataset = run.parameters.get("dataset")
        # A mistyped name must not create a data set.
        if not run.state or _RUN.search(run.name) or dataset not in {*store.datasets(), *catalog.names()}:
            continue
        due = run.expected_start_time or datetime.now(UTC)
        ledger, name = Ledger(store, dataset), f"{due:%Y%m%d-%H%M%S}-{run.id.hex[:4]}"
        if ledger.find("runs", name) is None:
            sentence = f"it {_word(run.state)} before it started{_message(run.state)}"
            # Without the set that it should have run: this set still waits for a run.
            values = {"run": name, "started": due.isoformat(timespec="milliseconds"), "asked_by": "deployment"}
            _record(Registry(store, dataset), _STATES[run.state.type.value], sentence, values)


_STATES = {"CANCELLED": "cancelled", "CANCELLING": "cancelled", "CRASHED": "crashed", "FAILED": "failed"}
_KINDS = {"cancelled": "Cancelled", "crashed": "Crashed", "failed": "Failed"}


def _ended(client: SyncPrefectClient) -> list[FlowRun]:
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterEndTime,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    from flows.schedule import turned_away

    ours = {d.id: d.parameters for d in client.read_deployments() if (d.entrypoint or "").startswith("flows.retrain.")}
    kinds = [StateType.CANCELLED, StateType.CRASHED, StateType.FAILED]
    run_filter = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=kinds)),
        end_time=FlowRunFilterEndTime(after_=datetime.now(UTC) - _LOOK_BACK),  # type: ignore[arg-type]
    )
    runs = client.read_flow_runs(flow_run_filter=run_filter, sort=FlowRunSort.END_TIME_DESC, limit=_LOOKED_AT)
    # A run turned away by the concurrency limit may still be carried out (`flows.schedule`).
    return [run for run in runs if run.deployment_id in ours and not turned_away(run)]


def _ending(values: Mapping[str, Any]) -> tuple[str, str]:
    """Return how a run without a live process ended: its state in the ledger, and what happened, in a sentence."""
    state = _on_server(values.get("flow_run"))
    again = values.get("again")
    remedy = f"; run it again to resume: {again}" if again else "; run it again to resume"
    if state and state.type.value in ("CANCELLED", "CANCELLING"):
        return "cancelled", f"it was cancelled{_message(state)}{remedy}"
    server_message = _message(state) if state and state.type.value == "CRASHED" else ""
    return "crashed", f"{_of_process(values)}{server_message}{remedy}"


def _of_process(values: Mapping[str, Any]) -> str:
    """Return what happened to a process, as far as this machine can tell."""
    process = f"its process {values['pid']}" if "pid" in values else "its process"
    host = values.get("host", socket.gethostname())
    if host != socket.gethostname():
        return f"{process} on the machine {host} is gone"
    if values.get("boot") not in (None, _boot()):
        return f"{process} ended when its machine restarted"
    counter, before = values.get("memory") or (None, 0)
    if deaths.in_kernel_log(values.get("pid", 0)) or (counter and deaths.kills_for_memory(Path(counter)) > before):
        return f"{process} was killed by the kernel, because memory ran out"
    return f"{process} was killed, or could not record how the run ended"


def _on_server(flow_run: str | None) -> State | None:
    """Return the state of a flow run; None if no server knows it."""
    if not flow_run:
        return None
    from prefect.exceptions import ObjectNotFound

    from flows.service.client import connected_client

    with suppress(PrefectFailed, ObjectNotFound, OSError), connected_client() as client:
        return client.read_flow_run(UUID(flow_run)).state
    return None


def _record(registry: Registry, state: str, sentence: str, values: Mapping[str, Any]) -> None:
    """Append an ended run to the ledger with all that is known, in the format of `Job.append_to_ledger`."""
    unknown = ("version", "champion", "train_accuracy", "test_accuracy", "epochs", "seconds", "report", "test_rows")
    decision = registry.decision_of(values["run"])
    if decision and decision.get("sentence"):
        sentence = f"{sentence}; before that, it decided: {decision['sentence']}"
    fields = ("started", "asked_by", "profile", "config", "arrival")
    registry.ledger.append(
        "runs",
        values["run"],
        {
            **dict.fromkeys(unknown),
            "version": decision.get("version") if decision else None,
            "state": state,
            "sentence": sentence,
            "dataset": registry.dataset,
            "steps": [],
            "error": {"kind": _KINDS[state], "sentence": sentence, "exit_code": 1},
            **{name: values[name] for name in fields if values.get(name) is not None},
        },
    )


def _word(state: State) -> str:
    return {"CANCELLED": "was cancelled", "CRASHED": "crashed"}.get(state.type.value, "failed")


def _message(state: State) -> str:
    return f": {' '.join(state.message.split())}" if state.message else ""


def _boot() -> str | None:
    """Return the kernel's id of the current boot; None if it cannot be read."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return None
