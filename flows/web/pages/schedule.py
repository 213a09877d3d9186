"""When the next runs are due, without making a page wait for Prefect's server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from flows import health

FRESH_SECONDS = 20.0
"""Until the server is asked again, if somebody wants to know."""
WAIT_SECONDS = 0.5
"""How long a page waits for the first answer, which is usually there in a tenth of that."""

Asking = Callable[[], tuple[dict[str, datetime], str | None]]


@dataclass(frozen=True)
class Due:
    """What is known of the next runs."""

    times: Mapping[str, datetime] = field(default_factory=dict)
    """By data set, UTC."""
    unknown: str | None = "the Prefect server has not answered yet"
    """Why they are unknown; None if they are known."""


class Schedule:
    """The next runs as the Prefect server last told them. Another thread asks it, at most one at a time.

    Args:
        ask: as `flows.health.scheduled`.
        clock: seconds, such as `time.monotonic`.
    """

    def __init__(self, ask: Asking = health.scheduled, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._known, self._asked = Due(), -FRESH_SECONDS
        self._answered, self._lock = threading.Event(), threading.Lock()
        self._asking = False

    def known(self) -> Due:
        """Return what is known; have the server asked again if that is old."""
        self.look()
        self._answered.wait(WAIT_SECONDS)
        return self._known

    def look(self) -> None:
        """Have the server asked if what is known is old."""
        with self._lock:
            if self._asking or self._clock() - self._asked < FRESH_SECONDS:
                return
            self._asking = True
        threading.Thread(target=self._ask_server, name="schedule", daemon=True).start()

    def _ask_server(self) -> None:
        try:
            times, unknown = self._ask()
            self._known = Due(times, unknown)
        except Exception as error:
            # Whatever it was: the page says so, and the rest of it is of use.
            self._known = Due(unknown=f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._asked, self._asking = self._clock(), False
            self._answered.set()
