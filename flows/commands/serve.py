"""`idxflow serve`: the champions of a store, for programs and for browsers."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.commands.options import StoreFolder


def serve(
    datasets: Annotated[list[str] | None, Parameter(negative="")] = None,
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on. One that other machines can reach needs --token-from.")
    ] = "127.0.0.1",
    port: Annotated[
        int, Parameter(help="Port to listen on; 0: any that is free.", validator=Number(gte=0, lte=65535))
    ] = 4280,
    token_from: Annotated[
        str | None,
        Parameter(
            help="Environment variable that has the token, which each request then needs: `Authorization: Bearer "
            "TOKEN`. A browser asks for it as a password. At least 16 characters."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="Additional host name under which clients reach the server, such as that of a reverse proxy. Can be "
            "repeated. Not needed for the addresses of this machine.",
        ),
    ] = None,
    store: StoreFolder = None,
) -> int:
    """Answer requests with the champion of each data set until Ctrl-C.

    `POST /v1/DATASET/predict` classifies images; `/` has pages for people. A promotion or a rollback counts within a
    second, without restart. Ctrl-C or SIGTERM ends it with exit code 0.

    Examples: `idxflow serve` · `idxflow serve mnist --port 8080` · `idxflow serve --host 0.0.0.0 --token-from TOKEN`

    Args:
        datasets: Serve only these. Default: all in the store.
    """
    from flows.web.serving import ServeOptions, serve_store

    return serve_store(ServeOptions(tuple(datasets or ()), host, port, token_from, tuple(allow_host or ()), store))
