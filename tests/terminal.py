"""Commands as somebody types them: in a terminal, with nothing in the environment but what every user has.

All that they and what they start connect to is noted by strace(1).
"""

from __future__ import annotations

import ipaddress
import os
import pty
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_ADDRESS = re.compile(r'(?:sin_addr=inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_DNS = 53


@dataclass(frozen=True)
class Typed:
    """How a command ended, and what could be seen of it."""

    code: int
    said: str
    asked: frozenset[str]
    """Addresses outside of this machine, and name servers, that anything was sent to."""


def user(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a new user's terminal: Prefect leaves CI, and who asks for it, alone."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "xterm", **more}


def traced(log: Path) -> list[str]:
    """Return what notes in `log` what the command behind it connects to; the command stays the direct child."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    return ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log)]


def asked(log: Path) -> frozenset[str]:
    """Return the addresses in a log of `traced` that are not of this machine, or of a name server."""
    found = set()
    for line in log.read_text(errors="replace").splitlines():
        for address in _ADDRESS.findall(line):
            port = _PORT.search(line)
            if not ipaddress.ip_address(address).is_loopback or (port and int(port[1]) == _DNS):
                found.add(f"{address} {port[1] if port else ''}".strip())
    return frozenset(found)


def typed(command: Sequence[str | Path], environment: Mapping[str, str], folder: Path) -> Typed:
    """Run a command in a terminal of its own, and wait for its end."""
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "strace")
        ours, theirs = pty.openpty()
        words = [*traced(log), *map(str, command)]
        process = subprocess.Popen(words, env=environment, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        said = b""
        try:
            while block := os.read(ours, 1 << 16):
                said += block
        except OSError:
            # The last process has closed the terminal.
            pass
        os.close(ours)
        return Typed(process.wait(), said.decode().replace("\r\n", "\n"), asked(log))
