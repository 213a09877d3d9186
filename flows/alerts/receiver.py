"""What receivers of alerts have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from flows.alerts.event import Event


class NotDelivered(Exception):
    """A message could not be delivered; the text says why, in a clause without a secret."""

    def __init__(self, why: str, here: bool = False) -> None:
        super().__init__(why)
        self.here = here
        """Whether it could not even be tried, because something is missing in this process."""


class Receiver(Protocol):
    """Somebody who is told of events."""

    kind: ClassVar[str]

    @property
    def shown(self) -> str:
        """Where messages go, for people: without a secret."""

    def send(self, event: Event, seconds: float) -> str:
        """Send a message; return what went wrong although it was accepted, or an empty text.

        Args:
            seconds: how long that may take at most; the receiver may have a limit of its own.

        Raises:
            NotDelivered: it was not.
        """

    def to_json(self) -> Mapping[str, Any]:
        """Return what is kept of it: names of secrets, no secret."""


def within(seconds: float, call: Callable[[], None]) -> None:
    """Call a function, and wait no longer than `seconds` for its end; then it is left to itself.

    A receiver that sends a byte now and then ends no timeout of a socket, nor does looking up a name.

    Raises:
        NotDelivered: it has not ended by then.
        BaseException: what the function raises.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="idxflow-alert", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise NotDelivered(f"no answer within {seconds:.2g} s")
    if raised:
        raise raised[0]
