"""A client of the Prefect server that is there, for commands that only ask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flows.service import server
from storage.errors import PrefectFailed

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


@contextmanager
def found() -> Iterator[SyncPrefectClient]:
    """Yield a client of the server Prefect is configured with, else of the one at port 4200 of this machine.

    Raises:
        PrefectFailed: none answers there, or it does not accept the auth string.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

    where = server.address(server.LOOPBACK[0], None, PREFECT_API_URL.value())
    configured = PREFECT_API_AUTH_STRING.value()
    auth = configured.get_secret_value() if configured else os.environ.get(server.AUTH)
    made = server.auth_file(PREFECT_HOME.value() / "idxflow")
    if not auth and where.local and made.is_file():
        auth = made.read_text(encoding="utf-8").strip()
    if not server.is_up(where, auth):
        raise PrefectFailed(f"expected a Prefect server at {where.api}, found none; start one with `idxflow up`")
    with (
        temporary_settings({PREFECT_API_URL: where.api, PREFECT_API_AUTH_STRING: auth}),
        get_client(sync_client=True) as client,
    ):
        yield client
