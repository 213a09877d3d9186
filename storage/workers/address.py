"""Which workers a person names: a number of processes for this run, or the address of a cluster that exists.

Anyone who can reach the scheduler of a Dask cluster can run code on all its machines, unless it requires certificates
(TLS). So the address of a scheduler on another machine must begin with `tls://`, unless the user allows otherwise.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

from storage.errors import ConfigError

WORKERS_VARIABLE = "IDXFLOW_WORKERS"
INSECURE_VARIABLE = "IDXFLOW_INSECURE_WORKERS"
CERTIFICATES = {"ca": "IDXFLOW_WORKERS_CA", "cert": "IDXFLOW_WORKERS_CERT", "key": "IDXFLOW_WORKERS_KEY"}
"""The variables that name the files for `tls://`: the authority, and the certificate of this side with its key."""
PATIENCE_VARIABLE = "IDXFLOW_WORKERS_PATIENCE"
PATIENCE_SECONDS = 60.0
MOST = 1024
"""The most processes that a run starts."""
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
OPEN_WORKERS = (
    rf"^([1-9][0-9]{{0,2}}|10[01][0-9]|102[0-4]|(tls|tcp)://({_LABEL}(\.{_LABEL})*|\[[0-9A-Fa-f:.]+\]):{_PORT})$"
)
"""Pattern of what can be named, with `MOST`: neither a user nor a password fits. Also valid in JSON Schema."""
_EXPECTED = f"a number of processes from 1 to {MOST}, or the address of a Dask scheduler such as tls://scheduler:8786"


@dataclass(frozen=True)
class Cluster:
    """A Dask cluster that exists."""

    address: str
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @property
    def encrypted(self) -> bool:
        return self.address.startswith("tls://")


def chosen(workers: str | None) -> str | None:
    """Return which workers were named: `workers`, or those of `IDXFLOW_WORKERS`; None if none were."""
    return workers or os.environ.get(WORKERS_VARIABLE) or None


def are_elsewhere(workers: str | None) -> bool:
    """Return whether the workers that were named are a cluster, not processes of the run, before that is checked."""
    return "://" in (chosen(workers) or "")


def parse(text: str, insecure: bool = False) -> int | Cluster:
    """Return the number of processes, or the cluster, that `text` names.

    Args:
        insecure: whether a scheduler on another machine need not ask for certificates; the environment can say so, too.

    Raises:
        ConfigError: it is neither, the cluster is on another machine and not protected, or a certificate is missing or
            cannot be used.
    """
    word = text.strip()
    if not re.match(OPEN_WORKERS, word) or not _can_be_host(word):
        raise ConfigError(f"--workers or {WORKERS_VARIABLE}: expected {_EXPECTED}; found {_shown(word)}; correct it")
    if word.isdecimal():
        return int(word)
    if word.startswith("tcp://"):
        if is_unprotected(word) and not (insecure or os.environ.get(INSECURE_VARIABLE) == "1"):
            raise ConfigError(
                f"--workers or {WORKERS_VARIABLE}: expected an address that begins with tls://, because anyone who "
                f"can reach a scheduler without certificates can run code on its workers; found {word}; set up TLS "
                f"(docs/how-to/workers.md), or give --insecure-workers or {INSECURE_VARIABLE}=1 if only people whom "
                "you trust can reach it"
            )
        return Cluster(word)
    return Cluster(word, **_certificates())


def patience() -> float:
    """Return for how many seconds a run waits for workers when there are none.

    Raises:
        ConfigError: the variable has something else.
    """
    text = os.environ.get(PATIENCE_VARIABLE, "")
    if not text:
        return PATIENCE_SECONDS
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
        raise ConfigError(f"{PATIENCE_VARIABLE}: expected a number of seconds such as 60; found {text!r}; correct it")
    return float(text)


def _certificates() -> dict[str, str]:
    """Return the files that the variables name; none, for what Dask's own configuration says, if none is set."""
    # Few runs need it.
    import ssl

    files = {name: os.environ.get(variable, "") for name, variable in CERTIFICATES.items()}
    if not any(files.values()):
        return {}
    for name, variable in CERTIFICATES.items():
        if not files[name]:
            raise ConfigError(
                f"{variable}: expected the path of a file, because the address of the workers begins with tls://; "
                f"found none; set {', '.join(CERTIFICATES.values())}"
            )
        if not os.access(files[name], os.R_OK) or not Path(files[name]).is_file():
            raise ConfigError(
                f"{variable}: expected a file in PEM format that can be read at {files[name]}; found none; correct it"
            )
    try:
        ssl.create_default_context(cafile=files["ca"]).load_cert_chain(files["cert"], files["key"])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"expected {', '.join(CERTIFICATES.values())} to name an authority, and a certificate with its key, in PEM "
            f"format; found {error}; correct them"
        ) from error
    return files


def is_unprotected(name: str) -> bool:
    """Return whether workers are behind a scheduler on another machine that asks nobody for a certificate."""
    return name.startswith("tcp://") and not _is_loopback(name)


def _is_loopback(address: str) -> bool:
    host = _host(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _can_be_host(word: str) -> bool:
    """Return whether what is written as numbers is an address: 10.0.0.256 is a name of nothing."""
    host = _host(word)
    if not re.fullmatch(r"[0-9.]+|.*:.*", host):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host(address: str) -> str:
    return address.partition("://")[2].rpartition(":")[0].strip("[]")


def _shown(text: str) -> str:
    """Return what can be shown of a wrong value: it may be an address with a password."""
    return repr(text) if "@" not in text and len(text) < 100 else "another text"
