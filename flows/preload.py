"""Do what a run needs anyway while its Prefect server starts.

A first run imports Great Expectations and TensorFlow, which take seconds each. Any run reads the source of its steps.

The server is another process, so the two use a processor each. The imports do not run in another thread: two threads
that import at the same time can deadlock on each other's modules, which Python ends with an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from expectations import engine_process
from flows.run import Request
from storage.opening import open_store
from storage.runtime import code_digests
from storage.workers.address import are_elsewhere
from tasks.model import network

_log = logging.getLogger(__name__)
STEPS = ("decoding.pairs", "validate", "normalize", "train", "evaluate", "confirm", "decide")
"""Those whose results depend on their source code."""


def preload(request: Request, is_over: Callable[[], bool]) -> None:
    """Import the libraries that the run of `request` is sure to need, then read its source, until `is_over`."""
    steps = (*STEPS, "audit") if request.audit else STEPS
    source: list[Callable[[], Any]] = [partial(code_digests.digests, f"tasks.{step}") for step in steps]
    for load in needed(request) + source:
        if is_over():
            return
        try:
            load()
        except Exception as error:
            # The step that needs it reports the error itself.
            _log.debug("cannot preload: %s", error)


def needed(request: Request) -> list[Callable[[], Any]]:
    """Return the functions that import the libraries that the run of `request` is sure to need, in step order.

    A validation in the store, or a training with the same parameters, may be reused without its library.
    """
    dataset, config = request.resolve()
    store, settings = open_store(request.store), config.model_dump(mode="json", exclude={"memory"})
    trained = any(
        all(entry["made_from"]["parameters"].get(name) == value for name, value in settings.items())
        for entry in store.newest_entries(dataset.name, "train")
    )
    validated = any(store.newest_entries(dataset.name, "validate"))
    imports: list[Callable[[], Any]] = [] if validated else [engine_process.begin]
    audited = not (request.audit or dataset.audit) or any(store.newest_entries(dataset.name, "audit"))
    trains = (request.force or not trained) and not are_elsewhere(request.workers)
    if trains or not audited:
        imports.append(network.tensorflow)
    return imports
