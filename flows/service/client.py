"""Clients of the running Prefect server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from flows.service import configuration, lock, server
from flows.service.guard import LOOPBACK
from storage.errors import PrefectFailed
from tasks.sources import proxies

if TYPE_CHECKING:
    import httpx
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.settings.legacy import Setting

_SECONDS = 5
_ANSWER_SECONDS = 20
_UNPROTECTED = (404, 422)
"""The status codes of a server that has no CSRF tokens or does not require them."""


@contextmanager
def connected_client(settings: Mapping[Setting, Any] | None = None) -> Iterator[SyncPrefectClient]:
    """Yield a client of the configured server, or that of `idxflow up`, or one at port 4200, in this order.

    Args:
        settings: more settings of Prefect, for as long as the client is used.

    Raises:
        PrefectFailed: the settings cannot be read, no server answers there, or it does not accept the auth string.
    """
    where = _server_address()
    configuration.read()
    from prefect.client.orchestration import get_client

    with used(where, settings), get_client(sync_client=True) as client:
        yield client


@contextmanager
def querying() -> Iterator[Callable[[str, Mapping[str, Any]], list[dict[str, Any]]]]:
    """Yield a function that queries the same server without Prefect's client, which is slow to import.

    It takes a path such as `/flow_runs/filter` and a filter, and returns the objects as in the API's JSON.

    Raises:
        PrefectFailed: as for `connected_client`, or a response is an error.
    """
    where = _server_address()
    import httpx

    with server.session(where, _auth(where), _ANSWER_SECONDS) as session:

        def ask(path: str, question: Mapping[str, Any]) -> list[dict[str, Any]]:
            answer = session.post(path, json=question).raise_for_status()
            objects: list[dict[str, Any]] = answer.json()
            return objects

        try:
            session.headers.update(_token(session))
            yield ask
        except (httpx.HTTPError, ValueError) as error:
            # For an error status, the second line of the message is about HTTP in general.
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise PrefectFailed(
                f"expected an answer from the Prefect server at {_named(where)}, found {reason}; "
                f"see its log{_log(where)}"
            ) from error


def environment() -> dict[str, str]:
    """Return the environment in which Prefect's own commands use the same server.

    Raises:
        PrefectFailed: as for `connected_client`.
    """
    where = _server_address()
    return server.client_environment(where, _auth(where), None)


def _log(where: server.Address) -> str:
    """Return a phrase with the location of the server's log, if `idxflow up` started it here."""
    running = lock.running(_folder(), where.api)
    return f", {_folder() / server.LOG}" if running.get("database") else ""


def _token(session: httpx.Client) -> dict[str, str]:
    """Return the headers that a server with CSRF protection requires from its clients."""
    name = str(uuid4())
    answer = session.get("/csrf-token", params={"client": name})
    if answer.status_code in _UNPROTECTED:
        return {}
    return {"Prefect-Csrf-Client": name, "Prefect-Csrf-Token": answer.raise_for_status().json()["token"]}


def _server_address() -> server.Address:
    configured = configuration.url()
    where = server.address(LOOPBACK[0], None, configured)
    if not configured and (running := server_of_up()):
        where = running
    if not _is_up(where):
        raise PrefectFailed(f"expected a Prefect server at {_named(where)}, found none; {_start(where)}")
    return where


def server_of_up() -> server.Address | None:
    """Return the address of the server of a running `idxflow up` with the same Prefect home, or None."""
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
    """Make Prefect use the configured server, with the auth string known for it.

    Raises:
        PrefectFailed: something unusable answers. If nothing answers, the run reports it.
    """
    where = server.address(LOOPBACK[0], None, configuration.url())
    _is_up(where)
    with used(where):
        yield


@contextmanager
def used(where: server.Address, settings: Mapping[Setting, Any] | None = None) -> Iterator[None]:
    """Make Prefect use that server, and these settings, in this process while the block runs.

    All at once, because Prefect takes 30 ms of a processor to check its settings again.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    own = {PREFECT_API_URL: where.api, PREFECT_API_AUTH_STRING: _auth(where)}
    with temporary_settings({**own, **(settings or {})}):
        yield


def _is_up(where: server.Address) -> bool:
    """Return whether a Prefect server answers there.

    Raises:
        PrefectFailed: the program that answers is not a Prefect server, or requires another auth string or key.
    """
    if not where.local and (trouble := proxies.unusable()):
        raise PrefectFailed(f"expected to reach the Prefect server at {_named(where)}; {trouble}; {proxies.REMEDY}")
    try:
        return server.is_up(where, _auth(where))
    except server.Unexpected as error:
        remedy = error.remedy if configuration.source() else "start one at another port with `idxflow up --port`"
        raise PrefectFailed(f"expected a Prefect server at {_named(where)}, found {error.actual}; {remedy}") from error


def _named(where: server.Address) -> str:
    """Return the address with the place where it is configured."""
    source = configuration.source()
    return f"{where.shown} ({source})" if source else where.shown


def _start(where: server.Address) -> str:
    if not configuration.source():
        return "start one with `idxflow up`"
    start = "start one with `idxflow up`" if where.local else "start it there"
    return f"{start}, or remove that setting"


def _auth(where: server.Address) -> str | None:
    return server.known_auth_string(where, _folder())


def _folder() -> Path:
    return configuration.home() / "idxflow"
