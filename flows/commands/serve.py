"""`idxflow serve`: the champions of a store, for programs and for browsers."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.commands.options import StoreFolder
from flows.settings import SITE_PORT


def serve(
    datasets: Annotated[list[str] | None, Parameter(negative="")] = None,
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on. One that other machines can reach needs --token-from.")
    ] = "127.0.0.1",
    port: Annotated[
        int, Parameter(help="Port to listen on; 0: any that is free.", validator=Number(gte=0, lte=65535))
    ] = SITE_PORT,
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
    max_body: Annotated[int, Parameter(help="Largest body of a request, in MiB.", validator=Number(gte=1))] = 16,
    max_images: Annotated[int, Parameter(help="Most images in a request.", validator=Number(gte=1))] = 1000,
    max_rate: Annotated[
        float, Parameter(help="Most requests in a second from one address.", validator=Number(gt=0))
    ] = 1000,
    max_waiting: Annotated[
        int,
        Parameter(help="Most requests that wait for the model; more are told to try again.", validator=Number(gte=1)),
    ] = 64,
    log: Annotated[
        bool,
        Parameter(
            negative="",
            help="Keep predictions in the store, by day as Parquet, so that labels can be added later "
            "(`idxflow labels add`).",
        ),
    ] = False,
    log_images: Annotated[bool, Parameter(negative="", help="Keep the images, too. Implies --log.")] = False,
    log_days: Annotated[int, Parameter(help="Days that the log goes back.", validator=Number(gte=0))] = 30,
    log_size: Annotated[
        int, Parameter(help="MiB that the log of a data set may take; the oldest go first.", validator=Number(gte=1))
    ] = 1024,
    store: StoreFolder = None,
) -> int:
    """Answer requests with the champion of each data set until Ctrl-C.

    `POST /v1/DATASET/predict` classifies images; `/` has pages for people. A promotion or a rollback counts within a
    second, without restart. Ctrl-C or SIGTERM ends it with exit code 0.

    Examples: `idxflow serve` · `idxflow serve mnist --port 8080` · `idxflow serve --host 0.0.0.0 --token-from TOKEN`

    Args:
        datasets: Serve only these. Default: all in the store.
    """
    from flows.web.limits import RequestLimits
    from flows.web.serving import ServeOptions, serve_store
    from storage.prediction_log import LogOptions

    kept = LogOptions(log_images, log_days, log_size << 20) if log or log_images else None
    limits = RequestLimits(max_body << 20, max_images, max_rate, max_waiting)
    return serve_store(
        ServeOptions(tuple(datasets or ()), host, port, token_from, tuple(allow_host or ()), store, limits, kept)
    )
