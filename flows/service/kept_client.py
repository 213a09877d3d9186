"""A client of Prefect's server for queries again and again: to make one takes several times as long as its requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


class KeptClient:
    """One client for many queries: another one after an error, and for another process of the server."""

    def __init__(self, connect: Callable[[], AbstractContextManager[SyncPrefectClient]]) -> None:
        self._connect = connect
        self._open = ExitStack()
        self._kept: tuple[SyncPrefectClient, int | None] | None = None
        """The client, and the process of the server that it was made for."""

    @contextmanager
    def client(self, server: int | None) -> Iterator[SyncPrefectClient]:
        """Yield the client; an error in the block closes it.

        Args:
            server: the process id of the server, if it was started here.
        """
        if self._kept and self._kept[1] != server:
            self.close()
        if not self._kept:
            self._kept = self._open.enter_context(self._connect()), server
        try:
            yield self._kept[0]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the client; the next query makes another."""
        self._kept = None
        self._open.close()
