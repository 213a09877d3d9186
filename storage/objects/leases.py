"""Leases: objects that their owner renews while it lives, so that others can tell when it is gone.

No clocks of two machines are compared. Others judge a lease by its age, by the clock of the store; the owner judges
how long ago it has renewed it, by the time since its machine was started, which also counts while that is suspended.
An owner that was paused for longer than half the life of its lease notices (`check`), before others may treat it as
gone. Then the lease is lost for good: renewing it again would not undo what others have done meanwhile.

On the machine of the owner nobody has to wait: a lease names its process, and a process that no longer exists is gone.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import IdxflowError, StoreError
from storage.files import sealed
from storage.objects import sealed as sealed_json
from storage.objects.protocol import Found, Objects
from storage.runtime import cancellation

LIFE_SECONDS = 120.0
"""The age from which the owner of a lease counts as gone. An object's age has a resolution of a second."""
_RENEWALS = 8
"""Renewals in the life of a lease: before half of it is over, two of them may fail."""
_START_FIELD = 19
"""Of /proc/PID/stat after the name of the program: the time of the start in ticks (Linux, proc(5))."""

_log = logging.getLogger(__name__)


def _since_start() -> float:
    """Return the seconds since the start of this machine; unlike `time.monotonic`, also those it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Survey:
    """The leases in a folder."""

    living: tuple[Found, ...]
    dead: tuple[Found, ...]
    """Those whose owner is gone."""


class Leases:
    """The leases that this process holds in one store, all renewed by one thread."""

    def __init__(self, objects: Objects, life: float = LIFE_SECONDS, clock: Callable[[], float] = _since_start) -> None:
        self.life = life
        self._objects = objects
        self._clock = clock
        self._renewed: dict[str, float] = {}
        """When each lease was last written: the beginning of that, so that it is older for nobody else."""
        self._text: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._renewing: threading.Thread | None = None

    def hold(self, key: str, about: Mapping[str, Any] | None = None) -> None:
        """Write a lease that only this process uses, and renew it until it is released."""
        now, text = self._clock(), _text(about)
        self._objects.put(key, text)
        self._keep(key, text, now)

    def acquire(self, key: str, about: Mapping[str, Any] | None = None) -> bool:
        """Write a lease unless a living process has it, and renew it until it is released; return whether it did.

        Two processes that find its owner dead at the same moment may both get it, so it can only save work.
        """
        text = _text(about)
        while True:
            now = self._clock()
            if self._objects.create(key, text):
                self._keep(key, text, now)
                return True
            if not self.is_dead(key):
                return False
            self._objects.delete([key])

    def release(self, key: str) -> None:
        """Stop renewing a lease, and remove it; if it cannot be removed, it ends by its age."""
        self.forget(key)
        try:
            self._remove(key)
        except cancellation.Cancelled:
            # A worker lives on after what it did for a run was stopped, and others would wait for what it no longer
            # makes. In a context of its own, because this one no longer waits for anything.
            threading.Thread(target=Context().run, args=(self._remove, key), daemon=True).start()
            raise

    def _remove(self, key: str) -> None:
        try:
            self._objects.delete([key])
        except (IdxflowError, OSError) as error:
            _log.debug("%s: the lease could not be removed: %s", key, error)

    def forget(self, key: str) -> None:
        """Stop renewing a lease, which ends by its age."""
        with self._lock:
            self._renewed.pop(key, None)
            self._text.pop(key, None)

    def renew(self) -> None:
        """Write again all leases that are not lost; the thread of this object does that in time."""
        with self._lock:
            texts = dict(self._text)
        for key, text in texts.items():
            self._renew_one(key, text)

    def check(self, key: str) -> None:
        """Check that others cannot take this process for gone.

        Raises:
            StoreError: the lease was not renewed for too long, as after a pause of the machine.
        """
        with self._lock:
            is_late = self._is_late(key)
        if is_late:
            raise StoreError(
                f"expected to renew {self._objects.where(key)} at least every {self.life / 2:.0f} seconds; this "
                "process was paused or cut off from the store for longer, so others may have removed or changed what "
                "it uses; run again"
            )

    def survey(self, folder: str) -> Survey:
        """Return the leases in a folder, living and dead; where there are none, this takes one request."""
        if not self._objects.list(folder).objects:
            return Survey((), ())
        # The time first: if the listing takes long, dead leases look alive, and never the reverse.
        now = self._objects.now()
        listed = self._objects.list(folder).objects
        dead = {found.key for found in listed if now - found.modified > self.life or self._has_ended(found.key)}
        return Survey(
            tuple(found for found in listed if found.key not in dead),
            tuple(found for found in listed if found.key in dead),
        )

    def is_dead(self, key: str) -> bool:
        """Return whether the owner of a lease is gone; True if there is no such lease."""
        if self._has_ended(key):
            return True
        age = self._objects.age(key)
        return age is None or age > self.life

    def _has_ended(self, key: str) -> bool:
        """Return whether a lease is gone, or names a process of this machine that is."""
        try:
            owner = sealed_json.read(self._objects, key)["owner"]
        except FileNotFoundError:
            return True
        except (ValueError, KeyError):
            return False
        return owner.get("machine") == _machine() != "" and not _lives(owner)

    def _is_late(self, key: str) -> bool:
        """Return whether others may treat a lease of this process as dead; then it is lost. Call it while locked."""
        is_late = self._clock() - self._renewed.get(key, -math.inf) > self.life / 2
        if is_late:
            self._renewed[key] = -math.inf
            self._text.pop(key, None)
        return is_late

    def _keep(self, key: str, text: bytes, now: float) -> None:
        with self._lock:
            self._renewed[key], self._text[key] = now, text
            if self._renewing is None or not self._renewing.is_alive():
                self._renewing = threading.Thread(target=self._keep_renewing, name="idxflow-leases", daemon=True)
                self._renewing.start()

    def _keep_renewing(self) -> None:
        while True:
            time.sleep(self.life / _RENEWALS)
            with self._lock:
                if not self._text:
                    self._renewing = None
                    return
            self.renew()

    def _renew_one(self, key: str, text: bytes) -> None:
        now = self._clock()
        with self._lock:
            if self._is_late(key):
                return
        try:
            self._objects.put(key, text)
        except (IdxflowError, OSError) as error:
            _log.debug("%s: the lease could not be renewed: %s", key, error)
            return
        with self._lock:
            if key in self._text:
                # Late if the request itself took too long.
                if not self._is_late(key):
                    self._renewed[key] = now
                return
        # It was released while it was being renewed.
        with suppress(IdxflowError, OSError):
            self._objects.delete([key])


def _text(about: Mapping[str, Any] | None) -> bytes:
    owner = {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}
    return sealed({**(about or {}), "owner": owner})


def _machine() -> str:
    """Return what tells this start of this machine, and this container of it, from all others; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _lives(owner: Mapping[str, Any]) -> bool:
    """Return whether the process that a lease of this machine names still exists."""
    pid = owner.get("pid")
    return not isinstance(pid, int) or _started(pid) == owner.get("started")


def _started(pid: int) -> int:
    """Return when a process was started, in ticks since the machine was; -1 if there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[_START_FIELD])
