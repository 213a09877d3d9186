"""`idxflow promote`: make a version the champion by hand."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from flows import promotion
from flows.commands.options import AsJson, Reason, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.terminal.output import print_json, print_line


def promote(
    dataset: str,
    version: str,
    *,
    force: Annotated[bool, Parameter(negative="", help="Required: confirms that you override the gate.")] = False,
    reason: Reason = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Make a version the champion, overriding the gate.

    The ledger records it as forced, with your reason.

    Example: `idxflow promote mnist 7 --force --reason "new scanner"`

    Args:
        dataset: A data set of the store.
        version: A version such as `7` or `v7`.
    """
    from flows.alerts.delivery import tell

    data = DatasetInStore.open(dataset, store)
    decision = promotion.promote(data, version, force, reason)
    if as_json:
        print_json(decision)
    else:
        print_line(decision["sentence"])
    tell(store, dataset)
    return 0
