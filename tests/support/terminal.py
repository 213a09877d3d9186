"""Commands as somebody types them: in a terminal, with nothing in the environment but what every user has.

All that they and what they start connect to is noted by strace(1).
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import pty
import re
import shutil
import subprocess
import tempfile
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.service.processes import end_with_parent

_ADDRESS = re.compile(r'(?:sin_addr=inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_DNS = 53
_END_WITH_TESTS = end_with_parent()


@dataclass(frozen=True)
class Typed:
    """How a command ended, and what could be seen of it."""

    code: int
    output: str
    contacted: frozenset[str]
    """Addresses outside of this machine, and name servers, that anything was sent to."""


def user(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a new user's terminal: Prefect leaves CI, and who asks for it, alone."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "xterm", **more}


def traced(log: Path) -> list[str]:
    """Return what notes in `log` what the command behind it connects to; the command stays the direct child."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    return ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log)]


def addresses_in(log: Path) -> frozenset[str]:
    """Return the addresses in a log of `traced` that are not of this machine, or of a name server."""
    addresses = set()
    for line in log.read_text(errors="replace").splitlines():
        for address in _ADDRESS.findall(line):
            port = _PORT.search(line)
            if not ipaddress.ip_address(address).is_loopback or (port and int(port[1]) == _DNS):
                addresses.add(f"{address} {port[1] if port else ''}".strip())
    return frozenset(addresses)


class Terminal:
    """A command that runs in a terminal of its own, which it can be interrupted from."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], folder: Path, log: Path) -> None:
        self._log = log
        self._keyboard, theirs = pty.openpty()
        self._output = b""
        self._process = subprocess.Popen(
            [*traced(log), *map(str, command)],
            env=environment,
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_have_terminal,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        # It fails when the last process has closed the terminal.
        with suppress(OSError):
            while block := os.read(self._keyboard, 1 << 16):
                self._output += block

    @property
    def sent(self) -> str:
        """All that the terminal has got so far."""
        return self._output.decode(errors="replace").replace("\r\n", "\n")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._keyboard, b"\x03")

    def ended(self) -> Typed:
        """Wait for the end of the command and of all that has its terminal."""
        code = self._process.wait()
        self._reader.join()
        return Typed(code, self.sent, addresses_in(self._log))

    def close(self) -> None:
        """End the command, if it still runs."""
        if self.running:
            self._process.terminate()
        self.ended()
        os.close(self._keyboard)


def _have_terminal() -> None:
    """Make the terminal that is the standard input the one whose Ctrl-C this process gets (tty_ioctl(4))."""
    _END_WITH_TESTS()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def opened(command: Sequence[str | Path], environment: Mapping[str, str], folder: Path) -> Iterator[Terminal]:
    """Run a command in a terminal of its own while the block lasts."""
    with tempfile.TemporaryDirectory() as place:
        terminal = Terminal(command, environment, folder, Path(place, "strace"))
        try:
            yield terminal
        finally:
            terminal.close()


def typed(command: Sequence[str | Path], environment: Mapping[str, str], folder: Path) -> Typed:
    """Run a command in a terminal of its own, and wait for its end."""
    with opened(command, environment, folder) as terminal:
        return terminal.ended()


def seen(sent: str) -> list[str]:
    """Return what stands on a terminal of endless height after all that was sent there (ECMA-48; no line wraps)."""
    lines, row, column = [""], 0, 0
    for control, number, name, character in re.findall(r"(\x1b\[([0-9;?]*)([a-zA-Z]))|([\s\S])", sent):
        if name == "A":
            row = max(0, row - int(number or 1))
        elif name == "K":
            lines[row] = ""
        elif control:
            continue
        elif character == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif character == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return lines
