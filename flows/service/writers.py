"""SQLite as Prefect's server is to use it: one writer at a time, in the order in which they came.

Prefect begins most transactions in SQLite's deferred mode: reading first, and asking for the write lock with the first
change. If another connection has written in between, SQLite refuses at once with "database is locked", however long it
may wait for locks (https://www.sqlite.org/isolation.html, SQLITE_BUSY_SNAPSHOT). In a burst of requests that is the
usual case. Here whoever writes waits in one queue, and then has the lock from the first statement on.
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
    """The time for which one transaction has the write lock."""

    over: bool = False


_TURN: ContextVar[_Turn | None] = ContextVar("turn", default=None)


# Prefect: one-writer.
class OneWriter(AioSqliteConfiguration):
    """Prefect's way to use SQLite, with a queue in front of the transactions that may write."""

    def __init__(self, connection_url: str) -> None:
        super().__init__(connection_url)
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncIterator[AsyncSessionTransaction]:
        turn = _TURN.get()
        if turn and not turn.over:
            # A second transaction inside of one would wait for itself.
            async with super().begin_transaction(session, with_for_update) as transaction:
                yield transaction
            return
        async with self._queue(), super().begin_transaction(session, with_for_update=True) as transaction:
            await session.connection()  # begins: from here on nobody else writes
            turn = _Turn()
            # What is only read meanwhile, by other sessions, must not ask for the lock.
            mode, token = SQLITE_BEGIN_MODE.set("DEFERRED"), _TURN.set(turn)
            try:
                yield transaction
            finally:
                # Tasks that were begun in here and go on have a copy of the variable.
                turn.over = True
                _TURN.reset(token)
                SQLITE_BEGIN_MODE.reset(mode)

    def _queue(self) -> asyncio.Lock:
        return self._queues.setdefault(asyncio.get_running_loop(), asyncio.Lock())


def queue_writers() -> None:
    """Have the server of this process write one transaction after the other, if its database is SQLite."""
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(url).name == "sqlite":
        set_database_config(OneWriter(url))
