"""A client of the Prefect server that is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.service import lock, server
from flows.service.guard import LOOPBACK
from storage.errors import PrefectFailed

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_SECONDS = 5


@contextmanager
def found() -> Iterator[SyncPrefectClient]:
    """Yield a client of the server Prefect is configured with, else of that of `idxflow up`, else of one at port 4200.

    Raises:
        PrefectFailed: none answers there, or it does not accept the auth string.
    """
    from prefect.client.orchestration import get_client

    configured = _configured()
    where = server.address(LOOPBACK[0], None, configured)
    if not configured and (running := server_of_up()):
        where = running
    if not server.is_up(where, _auth(where)):
        raise PrefectFailed(f"expected a Prefect server at {where.api}, found none; start one with `idxflow up`")
    with used(where), get_client(sync_client=True) as client:
        yield client


def server_of_up() -> server.Address | None:
    """Return where the server of a running `idxflow up` with the same Prefect home answers, or None."""
    for api in lock.ready(_folder()):
        where = server.address(LOOPBACK[0], None, api)
        try:
            if server.is_ours(where, _folder()) and server.is_up(where, _auth(where), _SECONDS):
                return where
        except PrefectFailed:
            continue
    return None


@contextmanager
def used_as_configured() -> Iterator[None]:
    """Have Prefect use the server it is configured with, if any, with the auth string that is known for it.

    Raises:
        PrefectFailed: a server of this machine does not accept the auth string.
    """
    url = _configured()
    if not url:
        yield
        return
    where = server.address(LOOPBACK[0], None, url)
    if where.local:
        # Whether it is there, the run finds out; its error about a wrong secret would name none.
        server.is_up(where, _auth(where))
    with used(where):
        yield


@contextmanager
def used(where: server.Address) -> Iterator[None]:
    """Have Prefect use that server in this process while the block runs."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: where.api, PREFECT_API_AUTH_STRING: _auth(where)}):
        yield


def _auth(where: server.Address) -> str | None:
    return server.known_auth_string(where, _folder())


def _folder() -> Path:
    from prefect.settings import PREFECT_HOME

    home: Path = PREFECT_HOME.value()
    return home / "idxflow"


def _configured() -> str | None:
    from prefect.settings import PREFECT_API_URL

    url: str | None = PREFECT_API_URL.value()
    return url
