"""`idxflow prefect`: Prefect's own command, with the address and the auth string of the server of `idxflow up`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

from cyclopts import Parameter


def prefect(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run a command of Prefect on the server of `idxflow up`.

    It passes on the address of that server and its auth string, so nothing has to be exported. If no server answers, it
    ends with an error; Prefect by itself would start one that needs no password.

    Examples: `idxflow prefect deployment run retrain/digits --watch` · `idxflow prefect flow-run ls`

    Args:
        arguments: Prefect's own arguments; `idxflow prefect --help` lists its commands.
    """
    from flows.service import client, server

    command = server.prefect(*arguments)
    environment = os.environ if "--help" in arguments else client.environment()
    sys.stdout.flush()
    os.execve(command[0], command, environment)
