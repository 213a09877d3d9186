"""The flows, the `idxflow` command, and the management of the Prefect server."""

from flows.settings import configure_prefect

# Before Prefect is imported, because it reads its settings on import; here, this also covers flows called from Python.
configure_prefect()
