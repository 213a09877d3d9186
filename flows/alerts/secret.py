"""Secrets of alerts: an alert keeps the name of an environment variable or of a Prefect block, never the value."""

from __future__ import annotations

import os
import re

from flows.alerts.receiver import NotDelivered
from storage.errors import ConfigError, PrefectFailed

_BLOCK = "block:"
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_BLOCK_NAME = re.compile(r"block:[a-z0-9]+(-[a-z0-9]+)*")


def checked(option: str, name: str) -> str:
    """Return the name of a secret as an alert keeps it.

    Args:
        option: the option that gave it, such as `--url-from`, for the message.

    Raises:
        ConfigError: it is no name, such as the secret itself, or no variable has it.
    """
    # The message must not repeat what may be the secret.
    if name.startswith(_BLOCK):
        if not _BLOCK_NAME.fullmatch(name):
            raise ConfigError(
                f"expected {option} to name a Prefect block of the type Secret, such as block:idxflow-chat; found "
                "another text after block:; a block's name has small letters, digits and dashes"
            )
    elif not _VARIABLE.fullmatch(name):
        raise ConfigError(
            f"expected {option} to be the name of an environment variable, such as IDXFLOW_CHAT_URL, or of a Prefect "
            "block, such as block:idxflow-chat; found another text, perhaps the secret itself, which would be kept in "
            f"a file; put it into a variable (export IDXFLOW_CHAT_URL=…) and give {option} IDXFLOW_CHAT_URL"
        )
    elif not os.environ.get(name):
        raise ConfigError(
            f"expected the variable that {option} names to be set, here and where `idxflow up` runs; found none of "
            "that name; export it first, then give its name"
        )
    return name


def secret(name: str) -> str:
    """Return the secret with this name.

    Raises:
        NotDelivered: there is none here.
    """
    if name.startswith(_BLOCK):
        return _of_block(name.removeprefix(_BLOCK))
    value = os.environ.get(name, "").strip()
    if not value:
        raise NotDelivered(f"expected the variable {name}; it is not set here; set it where this runs", here=True)
    return value


def _of_block(name: str) -> str:
    from flows.service.client import querying

    wanted = {
        "block_documents": {"name": {"any_": [name]}},
        "block_types": {"slug": {"any_": ["secret"]}},
        "include_secrets": True,
    }
    try:
        with querying() as ask:
            blocks = ask("/block_documents/filter", wanted)
    except PrefectFailed as error:
        raise NotDelivered(f"expected the Prefect block secret/{name}; {error}", here=True) from None
    value = blocks[0].get("data", {}).get("value") if blocks else None
    if not isinstance(value, str) or not value:
        raise NotDelivered(
            f"expected a Prefect block of the type Secret with the name {name}, a text; found none; make it in the "
            "Prefect UI (Blocks)",
            here=True,
        )
    return value.strip()
