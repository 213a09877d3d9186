"""A site of `idxflow serve`, answered at a port of loopback by a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

import httpx
import uvicorn

from flows.service.application import listen
from flows.web.application import application
from flows.web.served import Site
from flows.web.serving import url_of


@contextmanager
def served(site: Site) -> Iterator[httpx.Client]:
    """Serve a site; yield a client of it, which has the token."""
    headers = {"authorization": f"Bearer {site.token}"} if site.token else {}
    server = uvicorn.Server(uvicorn.Config(application(site), lifespan="on", log_config=None, access_log=False))
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                sleep(0.01)
            with httpx.Client(base_url=url_of("127.0.0.1", listener), headers=headers, timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
