"""Record in the store, for `idxflow up`, how runs ended that could not do it themselves (`flows.endings`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING
from uuid import UUID

from flows import endings
from storage.store import Store

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

INTERVAL_SECONDS = 300
"""Between two looks into object storage: each look takes requests, which cost money, for every data set."""
_QUERY_SECONDS = 10

Connect = Callable[[float], AbstractContextManager["SyncPrefectClient"]]
"""Returns a client of Prefect's server with a timeout in seconds."""


class Recorder:
    """Records ends in one store; in object storage from a thread of its own, which may wait for answers."""

    def __init__(self, store: Store, connect: Connect) -> None:
        self._store, self._connect = store, connect
        self._known = set[UUID]()
        """Flow runs that have ended and need no further check."""
        self._since = -float(INTERVAL_SECONDS)
        self._thread: threading.Thread | None = None

    def record(self, client: SyncPrefectClient, at_once: bool) -> None:
        """Record ends: now, or in object storage soon.

        Args:
            at_once: whether a run has just ended; otherwise an ended run in object storage may wait that long.
        """
        if not self._store.leases:
            self._record(client)
        elif at_once or time.monotonic() - self._since > INTERVAL_SECONDS:
            self._begin()

    def finish(self, seconds: float) -> None:
        """Wait until what has begun has ended, for at most so many seconds."""
        if self._thread:
            self._thread.join(seconds)

    def _begin(self) -> None:
        if self._thread and self._thread.is_alive():
            return
        self._since = time.monotonic()
        self._thread = threading.Thread(target=self._record_apart, name="idxflow-recorder", daemon=True)
        self._thread.start()

    def _record_apart(self) -> None:
        # What this look misses, the next one finds.
        with suppress(Exception), self._connect(_QUERY_SECONDS) as client:
            self._record(client)

    def _record(self, client: SyncPrefectClient) -> None:
        endings.settle(self._store)
        endings.unstarted(client, self._store, self._known)
