"""Leases: objects that their owner renews while it lives, so that others can tell when it is gone.

No clocks of two machines are compared. Others judge a lease by its age, by the clock of the store; the owner judges
how long ago it has renewed it, by its own monotonic clock. An owner that was paused for longer than half the life of
its lease notices (`check`), before others may treat it as gone.

On the machine of the owner nobody has to wait: a lease names its process, and a process that no longer exists is gone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from storage.errors import IdxflowError, StoreError
from storage.files import sealed
from storage.objects import sealed as sealed_json
from storage.objects.protocol import Objects

LIFE_SECONDS = 120.0
"""The age from which the owner of a lease counts as gone. An object's age has a resolution of a second."""
_RENEWALS = 4
"""Renewals in the life of a lease."""
_START_FIELD = 19
"""Of /proc/PID/stat after the name of the program: the time of the start in ticks (Linux, proc(5))."""

_log = logging.getLogger(__name__)


class Leases:
    """The leases that this process holds in one store, all renewed by one thread."""

    def __init__(self, objects: Objects, life: float = LIFE_SECONDS) -> None:
        self.life = life
        self._objects = objects
        self._renewed: dict[str, float] = {}
        self._text: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._renewing: threading.Thread | None = None

    def hold(self, key: str, about: Mapping[str, Any] | None = None) -> None:
        """Write a lease that only this process uses, and renew it until it is released."""
        now, text = time.monotonic(), _text(about)
        self._objects.put(key, text)
        self._keep(key, text, now)

    def acquire(self, key: str, about: Mapping[str, Any] | None = None) -> bool:
        """Write a lease unless another process has it, and renew it until it is released; return whether it did."""
        now, text = time.monotonic(), _text(about)
        if not self._objects.create(key, text):
            return False
        self._keep(key, text, now)
        return True

    def release(self, key: str) -> None:
        """Stop renewing a lease, and remove it; if it cannot be removed, it ends by its age."""
        self.forget(key)
        try:
            self._objects.delete([key])
        except (IdxflowError, OSError) as error:
            _log.debug("%s: the lease could not be removed: %s", key, error)

    def forget(self, key: str) -> None:
        """Stop renewing a lease, which ends by its age."""
        with self._lock:
            self._renewed.pop(key, None)
            self._text.pop(key, None)

    def check(self, key: str) -> None:
        """Check that others cannot take this process for gone.

        Raises:
            StoreError: the lease was not renewed for too long, as after a pause of the machine.
        """
        since = time.monotonic() - self._renewed.get(key, 0.0)
        if since > self.life / 2:
            raise StoreError(
                f"expected to renew {self._objects.where(key)} every {self.life / _RENEWALS:.0f} seconds; this process "
                f"was paused or cut off from the store for {since:.0f}, and others may have removed what it uses; "
                "run again"
            )

    def is_dead(self, key: str) -> bool:
        """Return whether the owner of a lease is gone; True if there is no such lease."""
        try:
            owner = sealed_json.read(self._objects, key)["owner"]
        except FileNotFoundError:
            return True
        except (ValueError, KeyError):
            owner = {}
        if owner.get("machine") == _machine() != "" and not _lives(owner):
            return True
        age = self._objects.age(key)
        return age is None or age > self.life

    def _keep(self, key: str, text: bytes, now: float) -> None:
        with self._lock:
            self._renewed[key], self._text[key] = now, text
            if self._renewing is None or not self._renewing.is_alive():
                self._renewing = threading.Thread(target=self._renew, name="idxflow-leases", daemon=True)
                self._renewing.start()

    def _renew(self) -> None:
        while True:
            time.sleep(self.life / _RENEWALS)
            with self._lock:
                texts = dict(self._text)
                if not texts:
                    self._renewing = None
                    return
            for key, text in texts.items():
                self._renew_one(key, text)

    def _renew_one(self, key: str, text: bytes) -> None:
        now = time.monotonic()
        try:
            self._objects.put(key, text)
        except (IdxflowError, OSError) as error:
            _log.debug("%s: the lease could not be renewed: %s", key, error)
            return
        with self._lock:
            if key in self._renewed:
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
