"""Import what a first run needs while it waits: Great Expectations, TensorFlow and scikit-learn take seconds each.

While Prefect starts its server, this process waits; while it trains, it calculates outside of Python. Another thread
imports meanwhile, and nothing that the run will not need.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from expectations import check
from flows.job import Request
from storage.store import Store, store_root
from tasks import network
from tasks.evaluate import prepare as prepare_scores

_log = logging.getLogger(__name__)


@contextmanager
def preloading(request: Request) -> Iterator[None]:
    """Import in another thread, while the block runs, what the run of `request` is sure to need."""
    over = threading.Event()
    threading.Thread(target=_load, args=(needed(request), over), name="preload").start()
    try:
        yield
    finally:
        over.set()


def needed(request: Request) -> list[Callable[[], Any]]:
    """Return what imports the libraries that the run of `request` is sure to need, in the order of the hops.

    Where the store has a validation, or a training with the same parameters, that may be found again.
    """
    dataset, config = request.resolve()
    store, wanted = Store(store_root(request.store)), config.model_dump(mode="json", exclude={"memory"})
    trained = any(
        all(made["made_from"]["parameters"].get(name) == value for name, value in wanted.items())
        for made in store.made(dataset.name, "train")
    )
    validated = any(store.made(dataset.name, "validate"))
    imports: list[Callable[[], Any]] = [] if validated else [check.prepare]
    if request.force or not trained:
        imports += [network.tensorflow, prepare_scores]
    return imports


def _load(imports: list[Callable[[], Any]], over: threading.Event) -> None:
    for load in imports:
        if over.is_set():
            return
        try:
            load()
        except Exception as error:
            # The hop that needs it says so better.
            _log.debug("cannot import ahead: %s", error)
