"""Workers that do their items in other processes, in an order of their own: what an engine may do at worst."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from storage.runtime import cancellation
from tests.support import commands

T = TypeVar("T")
R = TypeVar("R")


class ScatteredWorkers:
    """Processes that share nothing with this one; items go there, and results come back, through pickle."""

    elsewhere = False

    def __init__(self, seed: int = 0, processes: int = 2) -> None:
        self.seen: list[tuple[str, int]] = []
        """What each call was doing, and with how many items."""
        self._random = random.Random(seed)
        self._free: SimpleQueue[Connection] = SimpleQueue()
        self._threads = ThreadPoolExecutor(processes)
        with ExitStack() as started:
            for _ in range(processes):
                self._free.put(started.enter_context(_started(started)))
            self._processes = started.pop_all()

    def each(self, function: Callable[[T], R], items: Sequence[T], doing: str) -> Iterator[tuple[int, R]]:
        self.seen.append((doing, len(items)))
        order = self._random.sample(range(len(items)), len(items))
        futures = {self._threads.submit(self._call, function, items[place]): place for place in order}
        try:
            for future in as_completed(futures):
                cancellation.check()
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()

    def one(self, function: Callable[[T], R], item: T) -> R:
        return function(item)

    def _call(self, function: Callable[[T], R], item: T) -> R:
        connection = self._free.get()
        try:
            connection.send((function, item))
            result, error = connection.recv()
        finally:
            self._free.put(connection)
        if error:
            raise error
        returned: R = result
        return returned

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._processes.close()


def _started(stack: ExitStack) -> Connection:
    """Start a process that calls functions (`serve`); return the connection with it."""
    ours, theirs = socket.socketpair()
    with theirs, Path(os.devnull).open("w") as nothing:
        streams = (theirs.fileno(), nothing.fileno(), 2)
        stack.enter_context(commands.Command(env=os.environ, program="items", streams=streams))
    return Connection(ours.detach())


def serve(descriptor: int) -> None:
    """Answer each function and item that comes with what it returns, or the error that it raises."""
    with Connection(os.dup(descriptor)) as connection, suppress(EOFError):
        while True:
            function, item = connection.recv()
            connection.send(_answer(function, item))


def _answer(function: Callable[[Any], Any], item: Any) -> tuple[Any, Exception | None]:
    try:
        return function(item), None
    except Exception as error:
        return None, error
