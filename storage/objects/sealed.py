"""Sealed JSON objects: each has a field `sha256`, the digest of the canonical text of its other fields.

This detects a flipped bit or a manual edit even in small objects whose digest is recorded nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storage.files import MAX_JSON_BYTES, sealed, unsealed
from storage.objects.protocol import Objects


def read(objects: Objects, key: str) -> dict[str, Any]:
    """Return a sealed JSON object without its digest.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is too large, not a JSON object, or not byte for byte what was sealed.
    """
    return unsealed(objects.get(key, MAX_JSON_BYTES + 1))


def write(objects: Objects, key: str, values: Mapping[str, Any]) -> None:
    """Write or replace an object with `values`, sealed."""
    objects.put(key, sealed(values))


def create(objects: Objects, key: str, values: Mapping[str, Any]) -> bool:
    """Write `values`, sealed, only if there is no such object; return whether this call wrote it."""
    return objects.create(key, sealed(values))
