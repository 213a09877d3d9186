"""`idxflow rollback`: go back to an earlier champion."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from flows import promotion
from flows.commands.options import AsJson, Reason, StoreFolder
from flows.dataset_in_store import DatasetInStore
from flows.terminal.output import print_json, print_line


def rollback(
    dataset: str,
    *,
    to: Annotated[str, Parameter(help="`previous`, or a version that was champion before.")] = "previous",
    reason: Reason = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> int:
    """Make an earlier champion the champion again.

    Rolling back twice goes back two champions. The ledger records it, with your reason. Later runs do not promote a
    version that was rolled back.

    Example: `idxflow rollback mnist --reason "class 8 is worse"`

    Args:
        dataset: A data set of the store.
    """
    from flows.alerts.delivery import tell

    data = DatasetInStore.open(dataset, store)
    decision = promotion.roll_back(data, to, reason)
    if as_json:
        print_json(decision)
    else:
        print_line(decision["sentence"])
    tell(store, dataset)
    return 0
