"""The flows, the `idxflow` command, and what looks after the server that they run on."""

from flows.settings import configure_prefect

# Before anything imports Prefect, which reads its settings then: also where a flow is called from Python.
configure_prefect()
