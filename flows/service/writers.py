"""SQLite for Prefect's server with one writer at a time, first come, first served.

Prefect begins most transactions in SQLite's deferred mode: they read first, and request the write lock with the first
change. If another connection has written in between, SQLite fails at once with "database is locked", regardless of
its timeout (https://www.sqlite.org/isolation.html, SQLITE_BUSY_SNAPSHOT). In a burst of requests this is common.
Here writers wait in one queue, and then hold the lock from the first statement on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from prefect.server.database.dependencies import set_database_config
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


@dataclass
class _Turn:
    """The period in which one transaction holds the write lock."""

    over: bool = False


_TURN: ContextVar[_Turn | None] = ContextVar("turn", default=None)


# Prefect: one-writer.
class OneWriter(AioSqliteConfiguration):
    """Prefect's configuration of SQLite, with a queue for transactions that may write."""

    def __init__(self, connection_url: str) -> None:
        super().__init__(connection_url)
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncIterator[AsyncSessionTransaction]:
        turn = _TURN.get()
        if turn and not turn.over:
            # A second transaction nested in the first would wait for itself.
            async with super().begin_transaction(session, with_for_update) as transaction:
                yield transaction
            return
        async with self._queue(), super().begin_transaction(session, with_for_update=True) as transaction:
            await session.connection()  # begins: from here on no other transaction writes
            turn = _Turn()
            # Other sessions that only read in this period must not request the lock.
            mode, token = SQLITE_BEGIN_MODE.set("DEFERRED"), _TURN.set(turn)
            try:
                yield transaction
            finally:
                # asyncio tasks that were started here and outlive the block have a copy of the variable.
                turn.over = True
                _TURN.reset(token)
                SQLITE_BEGIN_MODE.reset(mode)

    def _queue(self) -> asyncio.Lock:
        return self._queues.setdefault(asyncio.get_running_loop(), asyncio.Lock())


def queue_writers() -> None:
    """Make the server of this process write one transaction at a time, if its database is SQLite."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(url).name == "sqlite":
        set_database_config(OneWriter(url))
