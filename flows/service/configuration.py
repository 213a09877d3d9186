"""Prefect's settings, from the environment, files in the current folder and a profile.

If they can only come from the environment, they are read without Prefect, whose import takes longer than most
commands.
"""

from __future__ import annotations

import logging
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storage.datasets.catalog import shown
from storage.errors import PrefectFailed
from storage.files import NotRegular, check_regular
from storage.words import meant

URL = "PREFECT_API_URL"
_PROFILE = "PREFECT_PROFILE"
_DOTENV, _TOML, _PYPROJECT = ".env", "prefect.toml", "pyproject.toml"


@cache
def read() -> None:
    """Import Prefect, which reads its settings on import.

    Raises:
        PrefectFailed: the import fails, or the profile does not exist; the message names the file or the setting.
    """
    _check_files()
    # One sentence replaces Prefect's own warnings, log lines and tracebacks about it.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            import prefect.context
            import prefect.settings  # noqa: F401
    except Exception as error:
        raise PrefectFailed(f"expected settings that Prefect can read; {_trouble(error)}; correct it there") from error
    finally:
        logging.disable(before)
    _check_profile()


def _check_profile() -> None:
    """Check that the selected profile exists, because Prefect would use other settings if it does not.

    Raises:
        PrefectFailed: it does not exist.
    """
    from prefect.settings import get_current_settings, load_profiles

    profiles = load_profiles()
    active = os.environ.get(_PROFILE) or profiles.active_name
    if active not in (None, *profiles.names):
        file = get_current_settings().profiles_path
        place = f"{_PROFILE} of the environment" if os.environ.get(_PROFILE) else f"`active` in {file}"
        raise PrefectFailed(
            f"expected {place} to name a profile of Prefect's ({', '.join(sorted(profiles.names))}); found "
            f"{shown(active)}{meant(active, profiles.names)}; correct it there, or remove it"
        )


def _check_files() -> None:
    """Check that reading the files cannot block. Prefect ignores a folder of such a name.

    Raises:
        PrefectFailed: one of them is not a regular file, such as a FIFO, whose reader waits for a writer.
    """
    for path, _ in _files():
        try:
            check_regular(path)
        except NotRegular as error:
            if not path.samefile(os.devnull):
                raise PrefectFailed(
                    f"expected Prefect's settings in a file; {path.absolute()} is {error.strerror}; remove it"
                ) from error
        except OSError:
            continue


def url() -> str | None:
    """Return the URL of the API that Prefect is configured with, without a slash at its end, or None.

    Raises:
        PrefectFailed: the settings cannot be read, or the value is not a URL.
    """
    value = _value(URL)
    if not value:
        return None
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        from tasks.sources.download import redacted

        raise PrefectFailed(
            f"expected an address such as http://127.0.0.1:4200/api in {source()}; found {redacted(value)}; correct it "
            "there"
        )
    return value.rstrip("/")


def api_key(api: str) -> str | None:
    """Return the configured API key if `api` is the configured URL of the API, or None."""
    key = _value("PREFECT_API_KEY")
    return key if key and url() == api else None


def auth_string() -> str | None:
    """Return the auth string that Prefect is configured with, or None."""
    return _value("PREFECT_API_AUTH_STRING")


def home() -> Path:
    """Return Prefect's home folder."""
    return Path(_value("PREFECT_HOME") or "~/.prefect").expanduser()


def _value(setting: str) -> str | None:
    if _only_from_environment():
        return os.environ.get(setting) or None
    read()
    from prefect import settings

    value = getattr(settings, setting).value()
    value = value.get_secret_value() if hasattr(value, "get_secret_value") else value
    return str(value) if value else None


def _only_from_environment() -> bool:
    """Return whether no file can hold one of the settings read here, and Prefect is not already imported."""
    variables = {name for name in os.environ if name.upper().startswith("PREFECT_")}
    # Prefect also reads lower-case variables; and only Prefect knows temporary settings made in this process.
    if "prefect" in sys.modules or _PROFILE in variables or any(name != name.upper() for name in variables):
        return False
    _check_files()
    if any(path.exists() for path, _ in _files() if path.name != _PYPROJECT):
        return False
    try:
        tables = _table(Path(_PYPROJECT), "tool", "prefect") if Path(_PYPROJECT).exists() else {}
    except (OSError, ValueError):
        return False
    return not {"api", "home", "profiles_path"} & tables.keys()


def is_hosted(api: str) -> bool:
    """Return whether `api` is the API hosted by Prefect's makers, which does not report a version."""
    from prefect.settings import PREFECT_CLOUD_API_URL

    return api.startswith(PREFECT_CLOUD_API_URL.value())


def source() -> str | None:
    """Return where the API's URL is configured: the first such place in Prefect's search order, or None."""
    return next(_sources(), None) if _value(URL) else None


def _sources() -> Iterator[str]:
    if any(name.upper() == URL for name in os.environ):
        yield f"{URL} of the environment"
    for name, look in (
        (_DOTENV, _in_dotenv),
        (_TOML, lambda path: _in(path, "api", "url")),
        (_PYPROJECT, lambda path: _in(path, "tool", "prefect", "api", "url")),
    ):
        if Path(name).is_file() and look(Path(name)):
            yield f"{URL if look is _in_dotenv else 'api.url'} of {Path(name).absolute()}"
    if _only_from_environment():
        return
    from prefect.settings import load_profiles

    profiles = load_profiles()
    active = os.environ.get(_PROFILE) or profiles.active_name
    if active in profiles.names and any(setting.name == URL for setting in profiles[active].settings):
        yield f"{URL} of the profile {active!r} in {profiles[active].source}"


def _in_dotenv(path: Path) -> bool:
    import dotenv

    return any(name.upper() == URL for name in dotenv.dotenv_values(path))


def _in(path: Path, *keys: str) -> bool:
    *tables, key = keys
    return bool(_table(path, *tables).get(key))


def _table(path: Path, *keys: str) -> dict[str, Any]:
    """Return a table of a TOML file; empty if there is no such table."""
    value: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _trouble(error: Exception) -> str:
    """Return what cannot be read, and where."""
    for path, parse in _files():
        try:
            parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except UnicodeDecodeError:
            return f"{path.absolute()} is not UTF-8"
        except (OSError, tomllib.TOMLDecodeError) as wrong:
            return f"{path.absolute()}: {wrong.strerror if isinstance(wrong, OSError) else wrong}"
    return _wrong_value(error)


def _files() -> Iterator[tuple[Path, Callable[[str], object]]]:
    yield Path(_DOTENV), str
    yield Path(_TOML), tomllib.loads
    yield Path(_PYPROJECT), tomllib.loads
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    yield Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml"), tomllib.loads


def _wrong_value(error: Exception) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    first = error.errors(include_input=False)[0]
    name = "_".join(str(part) for part in first["loc"])
    variables = [key for key in os.environ if key.upper().startswith("PREFECT_") and key.upper().endswith(name.upper())]
    where = f"{variables[0]} of the environment" if variables else f"{name} ({error.title})"
    return f"{where}: {first['msg']}"
