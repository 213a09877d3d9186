"""The limits on what is asked of a site."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestLimits:
    """What requests may be at most."""

    body_bytes: int = 16 << 20
    images: int = 1000
    """In one request."""
    requests_per_second: float = 1000
    """From one address."""
    waiting: int = 64
    """Requests that wait for the model or are with it."""
    pixels: int = 1 << 24
    """Of one picture, as its header says it, and of all in a request: a small file can hold a huge picture."""
    body_seconds: float = 10.0
    """Until a body has come as a whole."""
