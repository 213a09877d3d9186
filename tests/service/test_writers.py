"""SQLite with a queue of writers: who reads before writing finds what was written last, and is never locked out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

if TYPE_CHECKING:
    from prefect.server.database.configurations import AioSqliteConfiguration

    from flows.service.writers import OneWriter

WRITERS = 8


@asynccontextmanager
async def opened(configuration: AioSqliteConfiguration) -> AsyncIterator[Callable[[], AsyncSession]]:
    """Make a table of numbers; yield what makes sessions."""
    engine = await configuration.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE numbers (number INTEGER)"))
    yield lambda: AsyncSession(engine, expire_on_commit=False)
    await engine.dispose()


async def count(session: AsyncSession) -> int:
    return (await session.execute(sa.text("SELECT count(*) FROM numbers"))).scalar_one()


async def add_one(configuration: AioSqliteConfiguration, session: AsyncSession) -> int:
    """Read, let others have their turn, and write: what most requests of Prefect's server do."""
    async with session, configuration.begin_transaction(session):
        value = await count(session)
        await asyncio.sleep(0.02)
        await session.execute(sa.text("INSERT INTO numbers VALUES (:n)"), {"n": value})
        return value


def run(configuration: AioSqliteConfiguration) -> list[int]:
    async def all_at_once() -> list[int]:
        async with opened(configuration) as session:
            return await asyncio.gather(*(add_one(configuration, session()) for _ in range(WRITERS)))

    return asyncio.run(all_at_once())


def url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'numbers.db'}"


def one_writer(folder: Path) -> OneWriter:
    # Seconds, in all processes that share the tests.
    from flows.service.writers import OneWriter

    return OneWriter(url(folder))


def test_writers_at_once_take_turns(tmp_path: Path):
    assert sorted(run(one_writer(tmp_path))) == list(range(WRITERS))


def test_prefects_own_way_locks_them_out(tmp_path: Path):
    """When it does no longer, the queue is not needed any more."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    with pytest.raises(OperationalError, match="database is locked"):
        run(AioSqliteConfiguration(url(tmp_path)))


def test_what_happens_inside_of_a_turn_does_not_wait_for_it_and_what_outlives_it_does(tmp_path: Path):
    configuration = one_writer(tmp_path)

    async def nested() -> tuple[int, int, list[int]]:
        async with opened(configuration) as session:
            later = asyncio.Event()

            async def outlive() -> int:
                await later.wait()
                return await add_one(configuration, session())

            outer = session()
            async with outer, configuration.begin_transaction(outer):
                async with session() as reader:
                    plain = await count(reader)
                inner = session()
                async with inner, configuration.begin_transaction(inner):
                    in_transaction = await count(inner)
                # They were begun inside, and go on after it.
                tasks = [asyncio.create_task(outlive()) for _ in range(WRITERS)]
            later.set()
            return plain, in_transaction, sorted(await asyncio.gather(*tasks))

    assert asyncio.run(nested()) == (0, 0, list(range(WRITERS)))
