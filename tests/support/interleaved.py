"""Processes at one store in memory, of which a test decides after each request which one goes on.

A process is a thread that waits before each of its requests, and where it would sleep, until it is told to go on. So
only one runs at a time, and what happens is the same each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from storage.cloud_store import CloudStore
from storage.errors import StoreError
from storage.objects.leases import LIFE_SECONDS, Leases
from storage.records import Entry
from tests.support.cloud_machines import Clock, machine
from tests.support.memory_objects import MemoryObjects, Operation, Stopped

TICK = LIFE_SECONDS / 8
"""Seconds between two renewals of a lease."""

Work = Callable[["Process"], object]


class Process:
    """One that does some work on the store."""

    def __init__(self, objects: MemoryObjects, clock: Clock, folder: Path, work: Work) -> None:
        self.store: CloudStore = machine(objects.shared(), clock, folder)
        self.next: Operation | None = None
        """The operation that it waits to do; None where it sleeps, or has not begun."""
        self.uses: list[Entry] = []
        """The entries that it has been given, and must not lose while it lives."""
        self.result: object = None
        self.error: BaseException | None = None
        self.disturbed = False
        """Whether it was paused for too long, or did not hear an answer, so that it may fail."""
        self._work = work
        self._objects = self.store.objects
        self._objects.before, self._objects.after = self._before, self._after
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = self._deaf = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._waits.acquire()

    @property
    def leases(self) -> Leases:
        return self.store.leases

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def step(self) -> None:
        """Let it go on to its next operation, or to its end."""
        self._go.release()
        self._waits.acquire()
        if self.result is not None or self.error:
            self._thread.join()

    def lose_answer(self) -> None:
        """Let it do its next operation, and not hear that it is done."""
        self._deaf = self.disturbed = True
        self.step()

    def kill(self) -> None:
        """Let nothing more of it reach the store."""
        self._killed = True
        self.step()

    def sleep(self, _: float = 0) -> None:
        """Take the place of sleeping in its thread."""
        self.next = None
        self._wait()

    def is_of(self, thread: threading.Thread) -> bool:
        return thread is self._thread

    def _run(self) -> None:
        try:
            self._wait()
            self.result = self._work(self) or True
        except BaseException as error:
            self.error = error
        self._waits.release()

    def _wait(self) -> None:
        if not self._killed:
            self._waits.release()
            self._go.acquire()
        if self._killed:
            raise Stopped

    def _before(self, operation: Operation) -> None:
        # The renewals are made in the test's own thread.
        if self.is_of(threading.current_thread()):
            self.next = operation
            self._wait()

    def _after(self, _: Operation) -> None:
        if self.is_of(threading.current_thread()) and self._deaf:
            self._deaf = False
            raise StoreError("expected an answer; found none; run again")
