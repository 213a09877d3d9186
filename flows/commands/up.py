"""`idxflow up`: from nothing to scheduled retraining on one machine, in one command that stays in the foreground."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.commands.options import StoreFolder
from flows.settings import POOL, SITE_PORT
from storage.opening import open_store


def up(
    *,
    port: Annotated[
        int | None,
        Parameter(
            help="Port of the server. Default: that of PREFECT_API_URL, otherwise 4200.",
            validator=Number(gte=1, lte=65535),
        ),
    ] = None,
    host: Annotated[
        str, Parameter(help="Address to listen on. --no-auth is not allowed if other machines can reach it.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="Additional host name under which browsers reach the server, such as that of a reverse proxy. Can be "
            "repeated. Not needed for the addresses of this machine.",
        ),
    ] = None,
    pool: Annotated[
        str,
        Parameter(
            help="Work pool to deploy to. That of `up` itself is created, and its worker started. Any other must "
            "exist, of any type (process, docker, kubernetes, …), and its workers are yours to start."
        ),
    ] = POOL,
    job_variables: Annotated[
        str | None,
        Parameter(
            help="TOML file of job variables for the runs, such as `image`, `env` or `memory_limit`, by the names that "
            "the base job template of the pool has."
        ),
    ] = None,
    checkout: Annotated[
        str | None,
        Parameter(
            help="Folder of idxflow's source code where the runs are. Default: this one; in a container "
            "`/opt/idxflow`, as in the image of deploy/Dockerfile."
        ),
    ] = None,
    database: Annotated[
        str | None,
        Parameter(
            help="`postgresql+asyncpg://user@host/name` instead of SQLite. The password comes from PGPASSWORD or "
            "~/.pgpass. [env var, with password: PREFECT_SERVER_DATABASE_CONNECTION_URL]"
        ),
    ] = None,
    auth: Annotated[
        bool,
        Parameter(
            help="Require an auth string: that of PREFECT_SERVER_API_AUTH_STRING (user:password), otherwise one "
            "generated once and kept in a file that only you can read. Without it, every user of this machine can run "
            "code as you.",
        ),
    ] = True,
    csrf: Annotated[
        bool, Parameter(help="Require a token with every change, to prevent cross-site request forgery.")
    ] = True,
    site: Annotated[bool, Parameter(help="Start the site of `idxflow serve`, too, where it starts the worker.")] = True,
    site_port: Annotated[
        int, Parameter(help="Port of the site; 0: any that is free.", validator=Number(gte=0, lte=65535))
    ] = SITE_PORT,
    store: StoreFolder = None,
) -> int:
    """Run Prefect server, worker and schedules until Ctrl-C.

    Uses a server that is already running, and leaves it running at the end. Restarts a server or worker that dies, and
    marks runs whose process is gone as Crashed. Keeps schedules that were changed, paused or deleted in the UI. Ctrl-C
    or SIGTERM stops only what this command started. If everything is already running, it prints that and exits.

    With `--pool`, it deploys there, starts no worker, and ends if the server was running. Repeated, it changes only
    what is no longer as the options say.

    Examples: `idxflow up` · `idxflow up --port 4300` · `idxflow up --database postgresql+asyncpg://me@db/prefect` ·
    `idxflow up --pool k8s --job-variables job.toml --store s3://bucket/prefix`
    """
    from flows.service import server
    from flows.service.supervisor import UpOptions, supervise

    names = server.checked_names(allow_host or ())
    open_store(store)
    database = server.checked_database(database)
    return supervise(
        UpOptions(host, port, pool, database, auth, csrf, store, names, job_variables, checkout, site, site_port)
    )
