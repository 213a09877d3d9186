"""Addresses of object storage: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.

An address can name an S3-compatible server: `s3://bucket/prefix?endpoint=https://host:9000&region=name`; otherwise the
library takes AWS_ENDPOINT_URL and AWS_REGION. Credentials are never part of an address: it is stored in records and
shown in reports.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import parse_qsl, quote, urlsplit

from storage.errors import ConfigError

OPEN_STORE = r"^(?!(?:[sS]3|[gG][sS]|[aA][zZ]):(?:[\s\S]*@|[\s\S]*[?&](?!(?:endpoint|region)=)))"
"""Pattern of a store that may be shown to everyone: no address with the characters that introduce a user and password,
and no other option than a server and a region. Also valid in JSON Schema, so that Prefect's server refuses other stores
before it keeps them."""
CREDENTIALS = ("AWS_", "GOOGLE_", "AZURE_")
"""Beginnings of the names of the variables from which the library takes credentials."""

_ADDRESS = re.compile(r"(s3|gs|az):/", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?")
_NAME = re.compile(r"[a-z_]{1,16}")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

# By which the library finds the server, the first that is set.
_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}


@dataclass(frozen=True)
class Address:
    """Where a store is in object storage."""

    scheme: str
    """`s3`, `gs` or `az`."""
    bucket: str
    """Its bucket; of Azure, its container."""
    prefix: str = ""
    """What all its keys begin with, without a slash at either end; empty for the whole bucket."""
    endpoint: str = ""
    """The URL of an S3-compatible server; empty for what the environment says."""
    region: str = ""
    """Of S3; empty for what the environment says."""

    def __str__(self) -> str:
        named = {"endpoint": self.endpoint, "region": self.region}
        query = "&".join(f"{name}={quote(value, safe=':/[]')}" for name, value in named.items() if value)
        return self.where() + (f"?{query}" if query else "")

    def where(self, key: str = "") -> str:
        """Return the address of an object, or of all, without the server."""
        return f"{self.scheme}://" + "/".join(part for part in (self.bucket, self.prefix, key) if part)


def is_address(text: str) -> bool:
    """Return whether `text` is meant as an address of object storage, not as a path."""
    return _ADDRESS.match(text) is not None


def server_of(address: Address) -> str:
    """Return the URL of the server that the address or the environment names; empty for the cloud's own."""
    named = [address.endpoint, *(os.environ.get(name, "") for name in _VARIABLES[address.scheme])]
    url = urlsplit(next(filter(None, named), ""))
    # What else the variable has is not for people: it may be a password.
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}" if url.netloc else ""


def parse(text: str) -> Address:
    """Return the address that `text` stands for.

    Raises:
        ConfigError: it is not one, or holds what does not belong there, such as a password. The message repeats nothing
            that may be a secret.
    """
    scheme, _, rest = text.partition(":")
    scheme = scheme.lower()
    if not is_address(text) or not rest.startswith("//"):
        _refuse(scheme if is_address(text) else "s3", "another form")
    if not text.isprintable():
        _refuse(scheme, "a control character")
    place, _, query = rest[2:].partition("?")
    if "@" in place or "@" in query:
        _refuse(scheme, "a user name or a password, which an address cannot have")
    if "#" in rest:
        _refuse(scheme, "a fragment (#)")
    bucket, _, prefix = place.partition("/")
    if not _BUCKET.fullmatch(bucket):
        _refuse(scheme, "a character that no name of a bucket has" if bucket else "no bucket")
    return Address(scheme, bucket, _prefix(scheme, prefix), **_query(scheme, query))


def _prefix(scheme: str, text: str) -> str:
    prefix = text.removesuffix("/")
    if prefix and not all(part and set(part) != {"."} for part in prefix.split("/")):
        _refuse(scheme, "an empty part, `.` or `..` in the prefix")
    if prefix and any(part != part.strip() for part in prefix.split("/")):
        _refuse(scheme, "a space at the beginning or the end of a part of the prefix")
    return prefix


def _query(scheme: str, text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True) if text else []
    except ValueError:
        _refuse(scheme, "something else after `?`")
    values = dict(pairs)
    if len(values) < len(pairs) or not values.keys() <= {"endpoint", "region"}:
        # Only what looks like a name is repeated.
        unknown = [f"`{name}`" for name in values.keys() - {"endpoint", "region"} if _NAME.fullmatch(name)]
        _refuse(scheme, f"{unknown[0] if unknown else 'something else'} after `?`")
    if values and scheme != "s3":
        _refuse(scheme, "something after `?`, which only an address of s3:// can have")
    if "endpoint" in values and not _is_endpoint(values["endpoint"]):
        _refuse(scheme, "an endpoint that is not the URL of a server")
    if "region" in values and not _REGION.fullmatch(values["region"]):
        _refuse(scheme, "a region with a character that no name of a region has")
    return {name: value.rstrip("/") for name, value in values.items()}


def _is_endpoint(text: str) -> bool:
    try:
        return _ENDPOINT.fullmatch(text) is not None and urlsplit(text).port != 0
    except ValueError:
        return False


def _refuse(scheme: str, found: str) -> NoReturn:
    form = "az://container/prefix" if scheme == "az" else f"{scheme}://bucket/prefix"
    if scheme == "s3":
        form += ", for another server than that of AWS with ?endpoint=https://host:port&region=name"
    raise ConfigError(
        f"expected an address of object storage, {form}; found {found} in {scheme}://…; write it in this form, and put "
        "credentials into the environment"
    )
