"""The packages that sending to another tool needs besides idxflow."""

from __future__ import annotations

import importlib.util
import sys

from storage.errors import ConfigError


def check_installed(package: str, command: str, extra: str) -> None:
    """Check that a package can be imported, without importing it.

    Args:
        package: by the name that it is imported by.
        command: what needs it, for the message.
        extra: of pyproject.toml, which brings it.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"expected the package {package} for `{command}`; found none; install the extra `{extra}` "
            f"(`{sys.executable} -m pip install 'idxflow[{extra}]'`), then repeat the command"
        )
