"""Proxies from the environment: used to fetch archives, bypassed for servers on this machine.

Every HTTP client reads the proxy variables when it is created. A variable with an unusable proxy would make all
requests fail, even those to a Prefect server on this machine, so it is set aside.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
REMEDY = "set it to an http:// or https:// proxy, or unset it"
_NAMES = ("http_proxy", "https_proxy", "all_proxy")
_EXCEPTIONS = ("NO_PROXY", "no_proxy")
_ASIDE = "IDXFLOW_SET_ASIDE_"


def keep_direct(*hosts: str) -> None:
    """Make this process, and the processes that it starts from now on, contact these hosts without a proxy.

    Sets aside variables that name an unusable proxy.
    """
    for name in _named(os.environ):
        if not _usable(os.environ[name]):
            os.environ[f"{_ASIDE}{name}"] = os.environ.pop(name)
    if _named(os.environ):
        exceptions = with_exceptions(os.environ, hosts)
        # Set both spellings: libraries differ in which they prefer.
        os.environ.update(dict.fromkeys(_EXCEPTIONS, exceptions))


def with_exceptions(environment: Mapping[str, str], hosts: tuple[str, ...]) -> str:
    """Return the value of `NO_PROXY` that adds these hosts to the present exceptions."""
    # Like urllib and httpx: the lower-case variable takes precedence, if it is set.
    exceptions = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    names = [name.strip() for name in exceptions.split(",") if name.strip()]
    if "*" in names:
        return "*"
    return ",".join([*names, *(host for host in hosts if host not in names)])


def shell_lines() -> Iterator[str]:
    """Yield shell lines that do for programs in the user's terminal what `keep_direct` did for this process."""
    for name in _set_aside():
        yield f"unset {name}"
    if _named(os.environ):
        exceptions = shlex.quote(os.environ["NO_PROXY"])
        yield f"export NO_PROXY={exceptions} no_proxy={exceptions}"


def unusable() -> str | None:
    """Say which proxy variables were set aside, without their values, which may contain passwords."""
    names = _set_aside()
    if not names:
        return None
    what = "are set to proxies" if names[1:] else "is set to a proxy"
    return f"{' and '.join(names)} {what} that cannot be used"


def _set_aside() -> list[str]:
    return sorted(name.removeprefix(_ASIDE) for name in os.environ if name.startswith(_ASIDE))


def _named(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that name a proxy."""
    return [name for name, value in environment.items() if name.lower() in _NAMES and value]


def _usable(proxy: str) -> bool:
    """Tell whether an HTTP client can be made with this proxy (httpx; `http` if it has no scheme)."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        # Reading `port` raises an error if it is not a valid port.
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    if parts.scheme in ("socks5", "socks5h"):
        return named and find_spec("socksio") is not None
    return named and parts.scheme in ("http", "https")
