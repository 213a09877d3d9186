"""Proxies of the environment: archives are fetched through them, what is on this machine is never asked through one.

HTTP clients read the variables when they are made, whatever they are made for: one that names a proxy which a client
cannot use would end every request, also those to a Prefect server on this machine. Such a variable is set aside.
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
    """Have this process, and all that it starts from now on, ask these hosts without a proxy.

    Set aside what names a proxy that cannot be used.
    """
    for name in _named(os.environ):
        if not _usable(os.environ[name]):
            os.environ[f"{_ASIDE}{name}"] = os.environ.pop(name)
    if _named(os.environ):
        exceptions = with_exceptions(os.environ, hosts)
        # Whichever a library prefers.
        os.environ.update(dict.fromkeys(_EXCEPTIONS, exceptions))


def with_exceptions(environment: Mapping[str, str], hosts: tuple[str, ...]) -> str:
    """Return what `NO_PROXY` has to be for the hosts to be asked themselves, beside what is excepted already."""
    # As urllib and httpx have it: the one in small letters first, if it is there.
    given = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    known = [name.strip() for name in given.split(",") if name.strip()]
    if "*" in known:
        return "*"
    return ",".join([*known, *(host for host in hosts if host not in known)])


def shell_lines() -> Iterator[str]:
    """Yield lines that do for other programs, in a terminal with the user's variables, what `keep_direct` did here."""
    for name in _set_aside():
        yield f"unset {name}"
    if _named(os.environ):
        exceptions = shlex.quote(os.environ["NO_PROXY"])
        yield f"export NO_PROXY={exceptions} no_proxy={exceptions}"


def unusable() -> str | None:
    """Say which variables name proxies that were set aside, without their values, which may hold passwords."""
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
    """Return whether an HTTP client can be made with it (httpx; `http` where no scheme is named)."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        # Looked at, because a port that is none is noticed then.
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    if parts.scheme in ("socks5", "socks5h"):
        return named and find_spec("socksio") is not None
    return named and parts.scheme in ("http", "https")
