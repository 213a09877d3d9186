"""Clocks that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest

from flows import diagnosis, health
from flows.commands import status
from storage import ledger, registry, verify


@contextmanager
def clock_ahead(by: timedelta) -> Iterator[None]:
    """Put the clock of what reads and writes the ledger ahead, or back, while the block runs."""

    class Wrong(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.now(zone) + by

    with pytest.MonkeyPatch.context() as patch:
        for module in (ledger, registry, verify, health, status, diagnosis):
            patch.setattr(module, "datetime", Wrong)
        yield
